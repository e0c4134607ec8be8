//! Reading the machine this runs on.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::flags::{Flags, NOPAGE};
use crate::geometry::PAGE_BYTES;
use crate::host::blocks::{self, OnlineState};
use crate::host::files::Files;
use crate::host::{Counters, Memmap, hugetlb};
use crate::layout::{MemoryRange, ZoneRecord, parse_iomem, parse_zoneinfo};
use crate::machine::{Header, Machine, Run};
pub use crate::reading::{LiveError, ScanProgress};
use crate::scan::{PageFiles, scan};

/// Reads all of this machine, with as many threads as it has CPUs. Needs root.
///
/// # Errors
/// [`LiveError`].
pub fn read(note: &str, progress: &ScanProgress) -> Result<Machine, LiveError> {
    read_from(Path::new("/"), note, progress)
}

/// As [`read`], with the `proc` and `sys` of another directory.
///
/// Pages of memory blocks that are offline have no state. They have descriptors, but what these hold means nothing, and
/// kernels differ in what `/proc/kpageflags` says of them (6.1 and 6.12: no page; 6.18: no flags).
///
/// # Errors
/// [`LiveError`].
pub fn read_from(root: &Path, note: &str, progress: &ScanProgress) -> Result<Machine, LiveError> {
    let proc = root.join("proc");
    let files = PageFiles::open(&proc)?;
    let mut machine = Machine { header: read_header(&proc, note)?, runs: Vec::new() };
    progress.begin(machine.described_pages());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = scan(&files, &machine.header.memory, threads, progress)?;
    machine.runs = without_states(runs, &offline_blocks(root, machine.header.page_size));
    Ok(machine)
}

/// Flags and map counts of some pages, as runs of pages that are alike. Needs root.
///
/// # Errors
/// [`LiveError`].
pub fn read_pages(root: &Path, pages: Range<u64>) -> Result<Vec<Run>, LiveError> {
    let files = PageFiles::open(&root.join("proc"))?;
    let runs =
        scan(&files, &[MemoryRange { start: pages.start, end: pages.end }], 1, &ScanProgress::default())?;
    let machine = Machine {
        header: Header {
            memory: vec![MemoryRange { start: pages.start, end: pages.end }],
            ..Header::default()
        },
        runs,
    };
    // Whole sections are read.
    Ok(machine.clipped().collect())
}

/// Pages of blocks that are offline, in ascending order; none where nothing tells.
fn offline_blocks(root: &Path, page_size: u64) -> Vec<Range<u64>> {
    let Some(blocks) = blocks::read(&mut Files::new(root)) else { return Vec::new() };
    let pages = blocks.size / page_size;
    let offline = blocks.list.iter().filter(|block| block.state == OnlineState::Offline);
    offline.map(|block| block.id * pages..(block.id + 1) * pages).collect()
}

/// `runs`, of which the pages in `ranges` have no state. Both in ascending order.
fn without_states(runs: Vec<Run>, ranges: &[Range<u64>]) -> Vec<Run> {
    if ranges.is_empty() {
        return runs;
    }
    let mut done: Vec<Run> = Vec::with_capacity(runs.len());
    let mut add = |run: Run| match done.last_mut() {
        Some(last) if last.end() == run.start && last.is_like(&run) => last.len += run.len,
        _ => done.push(run),
    };
    for run in runs {
        let mut at = run.start;
        let first = ranges.partition_point(|range| range.end <= at);
        for range in ranges[first..].iter().take_while(|range| range.start < run.end()) {
            let (start, end) = (range.start.max(at), range.end.min(run.end()));
            if at < start {
                add(Run { start: at, len: start - at, ..run });
            }
            add(Run { start, len: end - start, flags: Flags(NOPAGE), count: 0 });
            at = end;
        }
        if at < run.end() {
            add(Run { start: at, len: run.end() - at, ..run });
        }
    }
    done
}

fn read_header(proc: &Path, note: &str) -> Result<Header, LiveError> {
    let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let zones = parse_zoneinfo(&text("zoneinfo"));
    let mut memory = parse_iomem(&text("iomem"));
    if memory.is_empty() {
        memory = spans(&zones);
    }
    if memory.is_empty() {
        return Err(LiveError::NoMemory);
    }
    let meminfo = Counters::parse(&text("meminfo"));
    let memmap = Memmap::of(&Counters::parse(&text("vmstat")));
    let release = text("sys/kernel/osrelease");
    let root = proc.parent().unwrap_or(proc);
    Ok(Header {
        page_size: PAGE_BYTES,
        kernel: release.trim().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        recorded: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
        note: note.to_owned(),
        memory,
        zones,
        descriptor_size: 64,
        mem_total: meminfo.get("MemTotal").unwrap_or(0),
        mem_free: meminfo.get("MemFree").unwrap_or(0),
        memmap_pages: memmap.map(|memmap| memmap.pages),
        pools: hugetlb::read_pools(&mut Files::new(root), "sys/kernel/mm/hugepages"),
    })
}

/// Where zones say memory is: their spans, which may have holes that no other file shows.
fn spans(zones: &[ZoneRecord]) -> Vec<MemoryRange> {
    let mut ranges: Vec<_> = zones
        .iter()
        .filter(|zone| !zone.is_device())
        .map(|zone| MemoryRange { start: zone.start, end: zone.start.saturating_add(zone.spanned) })
        .filter(|range| range.start < range.end)
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let overlaps = next.start <= last.end;
        if overlaps {
            last.end = last.end.max(next.end);
        }
        overlaps
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{BUDDY, LRU, MMAP};

    #[test]
    fn missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc");
        fs::create_dir(&proc).unwrap();
        let error = read_from(dir.path(), "", &ScanProgress::default()).unwrap_err();
        assert!(error.to_string().contains("kpageflags"), "{error}");
        fs::write(proc.join("kpageflags"), [0; 8]).unwrap();
        let error = read_from(dir.path(), "", &ScanProgress::default()).unwrap_err();
        assert!(error.to_string().contains("kpagecount"), "{error}");
        fs::write(proc.join("kpagecount"), [0; 8]).unwrap();
        fs::write(proc.join("iomem"), "nonsense\n").unwrap();
        assert!(matches!(read_from(dir.path(), "", &ScanProgress::default()), Err(LiveError::NoMemory)));
    }

    #[test]
    fn pages_of_offline_blocks_have_no_state() {
        const BLOCK: u64 = 1 << 15;
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        // Of offline pages, the kernel says now this and now that, or what they were before.
        let word = |pfn: u64| [BUDDY, 0, LRU | MMAP, NOPAGE][(pfn / (BLOCK / 2) % 4) as usize];
        let flags: Vec<u8> = (0..4 * BLOCK).flat_map(|pfn| word(pfn).to_ne_bytes()).collect();
        write("proc/kpageflags", &flags);
        write("proc/kpagecount", &vec![0; flags.len()]);
        write("proc/iomem", b"00000000-1fffffff : System RAM\n");
        write("sys/devices/system/memory/block_size_bytes", b"8000000\n");
        for (block, state) in ["online", "offline", "offline", "going-offline"].iter().enumerate() {
            write(&format!("sys/devices/system/memory/memory{block}/state"), state.as_bytes());
        }
        let machine = read_from(dir.path(), "", &ScanProgress::default()).unwrap();
        let run = |start, len, flags| Run { start, len, flags: Flags(flags), count: 0 };
        let half = BLOCK / 2;
        assert_eq!(
            machine.runs,
            [
                run(0, half, BUDDY),
                run(half, half, 0),
                run(BLOCK, 2 * BLOCK, NOPAGE),
                run(3 * BLOCK, half, LRU | MMAP),
                run(3 * BLOCK + half, half, NOPAGE),
            ]
        );
        // They have descriptors all the same.
        assert_eq!(machine.described_pages(), 4 * BLOCK);
    }

    #[test]
    fn ranges_without_states_may_begin_and_end_anywhere() {
        let run = |start, len, flags, count| Run { start, len, flags: Flags(flags), count };
        let runs = vec![run(0, 10, BUDDY, 0), run(10, 10, LRU, 1), run(40, 10, LRU, 2)];
        assert_eq!(without_states(runs.clone(), &[]), runs);
        assert_eq!(
            without_states(runs, &[2..4, 4..6, 15..42, 45..46, 60..70]),
            [
                run(0, 2, BUDDY, 0),
                run(2, 4, NOPAGE, 0),
                run(6, 4, BUDDY, 0),
                run(10, 5, LRU, 1),
                run(15, 5, NOPAGE, 0),
                run(40, 2, NOPAGE, 0),
                run(42, 3, LRU, 2),
                run(45, 1, NOPAGE, 0),
                run(46, 4, LRU, 2),
            ]
        );
    }

    #[test]
    fn spans_of_zones_stand_in_for_iomem() {
        let zone = |start, spanned| ZoneRecord { start, spanned, present: 1, ..ZoneRecord::default() };
        let ranges = spans(&[zone(4096, 100), zone(1, 4095), zone(10_000, 1)]);
        assert_eq!(ranges, [MemoryRange { start: 1, end: 4196 }, MemoryRange { start: 10_000, end: 10_001 }]);
    }
}
