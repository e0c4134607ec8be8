//! A machine in memory: its layout, and runs of pages that are alike.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::flags::Flags;
use crate::geometry::{PAGE_BYTES, PAGES_PER_SECTION};
use crate::host::Pool;
use crate::layout::{MemoryRange, ZoneRecord};

/// What is known about a machine besides its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Bytes in a page; 0 if nothing tells: see [`Header::page_bytes`].
    pub page_size: u64,
    /// Kernel release.
    pub kernel: String,
    /// Architecture, as `uname -m` says.
    pub arch: String,
    /// When it was recorded: seconds since 1970.
    pub recorded: u64,
    /// A line about the machine, from the person who recorded it.
    pub note: String,
    /// Where its memory is.
    pub memory: Vec<MemoryRange>,
    /// Its zones.
    pub zones: Vec<ZoneRecord>,
    /// Bytes of a page descriptor of that kernel.
    pub descriptor_size: u64,
    /// `MemTotal` in bytes.
    pub mem_total: u64,
    /// `MemFree` in bytes.
    pub mem_free: u64,
    /// `nr_memmap_pages` + `nr_memmap_boot_pages` in pages, where the kernel counts them.
    pub memmap_pages: Option<u64>,
    /// Pools of huge pages, where they are known.
    pub pools: Vec<Pool>,
}

impl Header {
    /// Bytes in a page.
    pub fn page_bytes(&self) -> u64 {
        if self.page_size == 0 { PAGE_BYTES } else { self.page_size }
    }
}

/// Adjacent pages with the same flags and map count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First page.
    pub start: u64,
    /// Pages.
    pub len: u64,
    /// Their flags.
    pub flags: Flags,
    /// Their map count (`/proc/kpagecount`).
    pub count: u64,
}

impl Run {
    /// One past the last page.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Whether the pages of both are alike.
    pub(crate) fn is_like(&self, other: &Run) -> bool {
        (self.flags, self.count) == (other.flags, other.count)
    }
}

/// A machine: its layout and its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The layout and the rest.
    pub header: Header,
    /// Runs in ascending order, without overlap. Page numbers in none of them have no page.
    pub runs: Vec<Run>,
}

impl Machine {
    /// Page numbers end here.
    pub fn end(&self) -> u64 {
        let runs = self.runs.last().map_or(0, Run::end);
        self.header.memory.iter().map(|range| range.end).max().unwrap_or(0).max(runs)
    }

    /// Pages of memory.
    pub fn pages(&self) -> u64 {
        self.header.memory.iter().map(|range| range.end - range.start).sum()
    }

    /// Pages for which Linux has descriptors: every section that has memory, whole.
    pub fn described_pages(&self) -> u64 {
        described_pages(self.header.memory.iter().map(|range| range.start..range.end))
    }

    /// Free pages whose descriptors the kernel has not written yet; see [`deferred_pages`].
    pub fn deferred_pages(&self) -> u64 {
        let Header { zones, mem_total, mem_free, .. } = &self.header;
        deferred_pages(zones, (mem_total / PAGE_BYTES, mem_free / PAGE_BYTES))
    }

    /// The runs, cut to the memory ranges.
    pub(crate) fn clipped(&self) -> Clipped<'_> {
        Clipped { runs: &self.runs, memory: &self.header.memory, run: 0, range: 0, at: 0 }
    }
}

/// Pages for which Linux has descriptors, if this is all memory, in ascending order: every section that has some, whole.
pub fn described_pages(memory: impl Iterator<Item = Range<u64>>) -> u64 {
    let mut next = 0;
    let of_range = |range: Range<u64>| {
        let first = (range.start / PAGES_PER_SECTION).max(next);
        next = range.end.div_ceil(PAGES_PER_SECTION).max(first);
        (next - first) * PAGES_PER_SECTION
    };
    memory.map(of_range).sum()
}

/// Free pages whose descriptors the kernel has not written yet (`CONFIG_DEFERRED_STRUCT_PAGE_INIT`): it counts them in all
/// and as free, but no zone has them. `in_all` is `MemTotal` and `MemFree`, in pages.
///
/// Both counts must say so. The files are not read at the same moment, sometimes minutes apart: then what is free differs,
/// but what there is in all does not.
pub fn deferred_pages(zones: &[ZoneRecord], in_all: (u64, u64)) -> u64 {
    let sum =
        |field: fn(&ZoneRecord) -> u64| zones.iter().fold(0u64, |sum, zone| sum.saturating_add(field(zone)));
    let (total, free) = in_all;
    // A small difference means nothing.
    let more = |all: u64, zones: u64| all.checked_sub(zones).filter(|&pages| pages > all / 64).unwrap_or(0);
    more(free, sum(|zone| zone.free)).min(more(total, sum(|zone| zone.managed)))
}

/// Runs, cut to memory ranges.
#[derive(Clone)]
pub(crate) struct Clipped<'a> {
    runs: &'a [Run],
    memory: &'a [MemoryRange],
    run: usize,
    range: usize,
    /// Pages below are done.
    at: u64,
}

impl Iterator for Clipped<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        loop {
            let run = *self.runs.get(self.run)?;
            let range = self.memory.get(self.range)?;
            if range.end <= self.at.max(run.start) {
                self.range += 1;
                continue;
            }
            let start = run.start.max(range.start).max(self.at);
            let end = run.end().min(range.end);
            if end <= start {
                self.run += 1;
                continue;
            }
            self.at = end;
            if end == run.end() {
                self.run += 1;
            }
            return Some(Run { start, len: end - start, ..run });
        }
    }
}
