//! Reading this machine's pages beside a plain read of the files, and beside the kernel's own `page-types`. Needs root.
//! `cargo bench -p pagefold --bench scan` prints the second table of docs/benchmarks.md.

mod pairs;

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagefold_machine::geometry::PAGES_PER_SECTION;
use pagefold_machine::live::{self, ScanProgress};
use pagefold_machine::{Machine, MemoryRange};
use pairs::{Bar, pair, print, time};

/// Where benches/page-types.sh puts it.
const PAGE_TYPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/peers/page-types");

fn main() {
    let machine = match live::read("", &ScanProgress::default()) {
        Ok(machine) => machine,
        Err(error) => {
            println!("left out: everything, since this machine's pages cannot be read ({error})");
            return;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pages = machine.described_pages();
    println!(
        "{threads} threads, {pages} pages in {} runs, {} extents\n",
        machine.runs.len(),
        machine.extents().count()
    );
    let what = "pages read and classified";
    let mut ours = || time(scan_and_classify);
    let mut rows = Vec::new();
    let name = format!("plain read of both files, {threads} threads");
    let mut files = || time(|| read_files(&["kpageflags", "kpagecount"], &machine, threads));
    rows.push(pair(what, &mut ours, &name, &mut files, pages, Bar::AtMost(1.15)));
    let name = format!("plain read of `kpageflags`, {threads} threads");
    let mut flags = || time(|| read_files(&["kpageflags"], &machine, threads));
    rows.push(pair(what, &mut ours, &name, &mut flags, pages, Bar::None));
    if Path::new(PAGE_TYPES).exists() {
        for (arguments, name) in [
            (&[][..], "`page-types`, which reads no map counts and keeps sums"),
            // No page is both and nothing else.
            (&["-l", "-M", "-b", "=buddy,nopage"], "`page-types -l -M` of no page, which reads both files"),
            (&["-l", "-M"], "`page-types -l -M`, which reads both files and lists runs"),
        ] {
            let mut peer = || page_types(arguments);
            rows.push(pair(what, &mut ours, name, &mut peer, pages, Bar::Faster(2.0)));
        }
    }
    let all_hold = print(&rows);
    if !all_hold {
        println!("\nNot every bar holds in this run.");
    }
    if !Path::new(PAGE_TYPES).exists() {
        println!(
            "\nleft out: page-types, which is not there; crates/pagefold/benches/page-types.sh builds it"
        );
    }
}

/// What `pagefold` does with a live machine before anything else: from the files to folios with states.
fn scan_and_classify() -> u64 {
    let machine = live::read("", &ScanProgress::default()).expect("this machine");
    machine.extents().map(|extent| extent.pages).sum()
}

/// Reads the files' words of all sections with memory, and does nothing with them.
fn read_files(names: &[&str], machine: &Machine, threads: usize) {
    let files: Vec<_> =
        names.iter().map(|name| File::open(Path::new("/proc").join(name)).expect(name)).collect();
    let sections = sections(&machine.header.memory);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; BUFFER];
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(section) = sections.get(at) else { break };
                    for offset in (0..PAGES_PER_SECTION * 8).step_by(BUFFER) {
                        for file in &files {
                            let read = file.read_at(&mut buffer, section * PAGES_PER_SECTION * 8 + offset);
                            black_box((read.expect("a page file"), &buffer));
                        }
                    }
                }
            });
        }
    });
}

/// Bytes a read, as on our side; larger ones are not faster here.
const BUFFER: usize = 64 << 10;

/// The numbers of all sections that have memory.
fn sections(memory: &[MemoryRange]) -> Vec<u64> {
    let mut sections: Vec<_> = memory
        .iter()
        .flat_map(|range| range.start / PAGES_PER_SECTION..range.end.div_ceil(PAGES_PER_SECTION))
        .collect();
    sections.dedup();
    sections
}

fn page_types(arguments: &[&str]) -> Duration {
    let mut command = Command::new(PAGE_TYPES);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    time(|| assert!(command.status().expect("page-types").success()))
}
