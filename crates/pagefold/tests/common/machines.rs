//! Machines made up for the purpose.

use pagefold_machine::{Flags, Header, Machine, MemoryRange, Run, flags};

pub fn header(memory: &[(u64, u64)]) -> Header {
    let memory = memory.iter().map(|&(start, end)| MemoryRange { start, end }).collect();
    Header { page_size: 4096, memory, ..Header::default() }
}

/// Runs one after the other, and where the next begins.
pub struct Runs(pub Vec<Run>, pub u64);

impl Runs {
    pub fn add(&mut self, len: u64, flags: u64, count: u64) -> &mut Self {
        self.0.push(Run { start: self.1, len, flags: Flags(flags), count });
        self.1 += len;
        self
    }

    /// Compound pages of `order`.
    pub fn folios(&mut self, n: u64, order: u32, flags: u64) -> &mut Self {
        for _ in 0..n {
            self.add(1, flags | flags::COMPOUND_HEAD, 1);
            self.add((1 << order) - 1, flags | flags::COMPOUND_TAIL, 0);
        }
        self
    }
}

/// Every page state, in odd numbers; and how many pages of free memory stand before the huge pages.
pub fn every_state() -> (Machine, u64) {
    let mut runs = Runs(Vec::new(), 1);
    runs.add(159, flags::RESERVED, 0)
        .add(96, flags::BUDDY, 0)
        // Small pages of all kinds, in odd numbers.
        .add(33, flags::ANON | flags::LRU | flags::SWAPBACKED, 3)
        .add(77, flags::LRU | flags::UPTODATE, 0)
        .add(5, flags::PGTABLE, 0)
        .add(41, 0, 0)
        .add(1, flags::HWPOISON, 0)
        .add(2, flags::SLAB, 0)
        .folios(4, 3, flags::SLAB)
        .folios(1, 4, flags::LRU)
        .add(1, flags::NOPAGE, 0);
    let gap = 512 - runs.1 % 512;
    runs.add(gap, flags::BUDDY, 0)
        .folios(3, 9, flags::ANON | flags::THP)
        .folios(2, 9, flags::HUGE)
        // Unplugged memory: whole map pages, and odd ones at its edges.
        .add(7, flags::ANON, 1)
        .add(1024 + 13, flags::OFFLINE, 0)
        .add(64, flags::NOPAGE, 0)
        // Bits that nobody has heard of.
        .add(9, 1 << 60, 0);
    (Machine { header: header(&[(1, runs.1)]), runs: runs.0 }, gap)
}
