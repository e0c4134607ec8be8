//! A guest's pages as those of any machine: for snapshots and pictures.

use std::time::SystemTime;

use pagefold_boot_protocol::{PageRun, Report};
use pagefold_machine::flags::RESERVED;
use pagefold_machine::{Flags, Header, Machine, MemoryRange, Run, ZoneRecord};

/// The machine that a guest is. `own` are the pages that its kernel took at boot: what lies below the first page that its
/// engine has, of which nothing is told otherwise.
pub fn machine(runs: &[PageRun], own: u64, report: &Report, note: String) -> Machine {
    let own = own.min(runs.first().map_or(0, |run| run.0));
    let boot = PageRun(runs.first().map_or(0, |run| run.0) - own, own, RESERVED);
    let runs: Vec<PageRun> = (own > 0).then_some(boot).into_iter().chain(runs.iter().copied()).collect();
    let mut memory: Vec<MemoryRange> = Vec::new();
    for &PageRun(start, pages, _) in &runs {
        match memory.last_mut() {
            Some(last) if last.end == start => last.end += pages,
            _ => memory.push(MemoryRange { start, end: start + pages }),
        }
    }
    let present: u64 = memory.iter().map(|range| range.end - range.start).sum();
    let first = memory.first().map_or(0, |range| range.start);
    let end = memory.last().map_or(0, |range| range.end);
    let free = report.memory.free / 4096;
    // Which of its two zones a page is in the guest does not say: one for all of it.
    let zone = ZoneRecord {
        node: 0,
        name: "Normal".into(),
        start: first,
        spanned: end - first,
        present,
        managed: present,
        free,
    };
    let recorded = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    Machine {
        header: Header {
            page_size: 4096,
            // No Linux.
            kernel: String::new(),
            arch: "x86_64".into(),
            recorded,
            note,
            memory,
            zones: vec![zone],
            descriptor_size: 64,
            mem_total: present * 4096,
            mem_free: report.memory.free,
            memmap_pages: None,
            pools: Vec::new(),
        },
        runs: runs
            .iter()
            .map(|&PageRun(start, len, flags)| Run { start, len, flags: Flags(flags), count: 0 })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_where_runs_are() {
        let runs = [PageRun(256, 64, 1 << 10), PageRun(320, 64, 0), PageRun(1024, 64, 1 << 23)];
        let machine = machine(&runs, 100, &Report::default(), String::new());
        assert_eq!(machine.pages(), 292);
        let range = |start, end| MemoryRange { start, end };
        assert_eq!(machine.header.memory, [range(156, 384), range(1024, 1088)]);
        assert_eq!(machine.runs.len(), 4);
    }
}
