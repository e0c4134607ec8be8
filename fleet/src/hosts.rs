//! Hosts made up for the purpose: yesterday as snapshot files, today as roots with `/proc` and `/sys`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use pagefold_machine::{Flags, Header, Machine, MemoryRange, Run, ZoneRecord, flags, snapshot};

/// Pages of each: 256 MiB.
pub const PAGES: i64 = 1 << 16;

/// A host.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Whether HVO is on.
    pub hvo: bool,
    /// Whether its huge pages were made after HVO was on.
    pub is_optimised: bool,
    /// Whether its kernel's page flags show which huge pages are optimised (6.16 to 7.0).
    pub shows: bool,
    /// Huge pages of 2 MiB in a hugetlb pool.
    pub huge: i64,
    /// Transparent ones.
    pub transparent: i64,
    /// Pages that are offline.
    pub offline: i64,
    /// Pages of slab.
    pub slab: i64,
    /// Pages of slab that it had fewer of yesterday.
    pub grown: i64,
}

/// So many hosts, each a little different.
pub fn hosts(count: usize) -> Vec<Host> {
    let host = |n: i64| Host {
        name: format!("web-{n:05}.example"),
        hvo: n % 2 == 0,
        is_optimised: n % 4 == 0,
        shows: n % 3 == 0,
        huge: n % 8 * 5,
        transparent: n % 3,
        offline: n % 5 * 512,
        slab: 100 + n % 1000,
        grown: n % 50,
    };
    (0..count as i64).map(host).collect()
}

impl Host {
    /// Pages that are free.
    pub fn free(&self) -> i64 {
        PAGES - (self.huge + self.transparent) * 512 - self.offline - self.slab
    }

    /// Its pages by state.
    pub fn states(&self) -> [(&'static str, i64); 5] {
        [
            ("hugetlb", self.huge * 512),
            ("anonymous", self.transparent * 512),
            ("slab", self.slab),
            ("offline", self.offline),
            ("free", self.free()),
        ]
    }

    /// One for each huge page; the slab pages lie side by side from a huge page's end on.
    pub fn map_pages_left(&self) -> i64 {
        self.huge + self.transparent + (self.slab + 63) / 64
    }

    /// Its pages, `less` slab pages than now.
    fn runs(&self, less: i64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |len: i64, flags: u64| {
            let start = runs.last().map_or(0, Run::end);
            if len > 0 {
                runs.push(Run { start, len: len as u64, flags: Flags(flags), count: 0 });
            }
        };
        for (n, bits) in [(self.huge, flags::HUGE), (self.transparent, flags::ANON)] {
            // An optimised huge page shows its head again and again there.
            let is_shown = bits == flags::HUGE && self.shows && self.hvo && self.is_optimised;
            let piece = if is_shown { 64 } else { 512 };
            for _ in 0..n * 512 / piece {
                add(1, bits | flags::COMPOUND_HEAD);
                add(piece - 1, bits | flags::COMPOUND_TAIL);
            }
        }
        add(self.slab - less, flags::SLAB);
        // So that what is offline begins with a map page.
        let used = (self.huge + self.transparent) * 512 + self.slab - less;
        let gap = (64 - used % 64) % 64;
        add(gap, flags::BUDDY);
        add(self.offline, flags::OFFLINE);
        add(PAGES - used - gap - self.offline, flags::BUDDY);
        runs
    }

    fn yesterday(&self, at: u64) -> Machine {
        let zone = ZoneRecord {
            name: "Normal".into(),
            spanned: PAGES as u64,
            present: PAGES as u64,
            ..ZoneRecord::default()
        };
        let header = Header {
            page_size: 4096,
            kernel: "6.12.1".into(),
            recorded: at,
            memory: vec![MemoryRange { start: 0, end: PAGES as u64 }],
            zones: vec![zone],
            descriptor_size: 64,
            ..Header::default()
        };
        Machine { header, runs: self.runs(self.grown) }
    }

    /// The files that the command reads, in `root`.
    fn today(&self, root: &Path) {
        let write = |path: &str, bytes: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let words =
            self.runs(0).into_iter().flat_map(|run| std::iter::repeat_n(run.flags.0, run.len as usize));
        let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        write("proc/kpagecount", &vec![0; bytes.len()]);
        write("proc/kpageflags", &bytes);
        write("proc/iomem", format!("00000000-{:08x} : System RAM\n", PAGES * 4096 - 1).as_bytes());
        let zoneinfo = format!(
            "Node 1, zone   Normal\n  pages free {}\n        spanned  {PAGES}\n        present  {PAGES}\n        managed  \
             {PAGES}\n      nr_free_pages {}\n  start_pfn:           0\n",
            self.free(),
            self.free()
        );
        write("proc/zoneinfo", zoneinfo.as_bytes());
        write(
            "proc/meminfo",
            format!("MemTotal: {} kB\nMemFree: {} kB\n", PAGES * 4, self.free() * 4).as_bytes(),
        );
        let saved = if self.hvo && self.is_optimised { self.huge * 7 } else { 0 };
        let vmstat = format!(
            "nr_free_pages {}\nnr_memmap_boot_pages {}\nnr_memmap_pages 0\n",
            self.free(),
            PAGES / 64 - saved
        );
        write("proc/vmstat", vmstat.as_bytes());
        write("proc/sys/kernel/osrelease", if self.shows { b"6.18.1\n" } else { b"6.12.1\n" });
        write("proc/sys/kernel/hostname", format!("{}\n", self.name).as_bytes());
        write("proc/sys/kernel/random/boot_id", b"0a1b2c3d-0000-4000-8000-000000000000\n");
        write("proc/sys/vm/hugetlb_optimize_vmemmap", if self.hvo { b"1\n" } else { b"0\n" });
    }
}

/// Exports all hosts twice, as a fleet does: with the real command, into one directory. The command is the one that the
/// environment's `PAGEFOLD` names; without it, it is built.
///
/// # Panics
/// The command cannot be built, or fails.
pub fn export(hosts: &[Host], to: &Path) {
    let binary = std::env::var_os("PAGEFOLD").map_or_else(build, PathBuf::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for part in hosts.chunks(hosts.len().div_ceil(threads).max(1)) {
            scope.spawn(|| part.iter().for_each(|host| export_one(host, &binary, now, to)));
        }
    });
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let build = escargot::CargoBuild::new().manifest_path(root.join("crates/pagefold/Cargo.toml"));
    build.target_dir(root.join("target")).release().bin("pagefold").run().unwrap().path().to_owned()
}

fn export_one(host: &Host, binary: &Path, now: u64, to: &Path) {
    let work = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(binary);
        command.args(["export", "--format", "parquet", "--output"]).arg(to).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let file = work.path().join("host.pgf");
    snapshot::write(&host.yesterday(now - 86_400), File::create(&file).unwrap()).unwrap();
    run(&[file.to_str().unwrap(), "--host", &host.name]);
    let root = work.path().join("root");
    host.today(&root);
    run(&["--root", root.to_str().unwrap()]);
}
