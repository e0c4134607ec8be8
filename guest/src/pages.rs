//! All pages as `/proc/kpageflags` would have them, in runs.

use alloc::vec::Vec;

use pagefold_boot_protocol::PageRun;
use pagefold_engine::{Class, Kind, Order, PageKind, Pfn, Walker};

use crate::machine::{Choice, GuestPlatform};

/// Bits of `/proc/kpageflags` (Linux, `include/uapi/linux/kernel-page-flags.h`).
mod kpf {
    pub const UPTODATE: u64 = 1 << 3;
    pub const LRU: u64 = 1 << 5;
    pub const SLAB: u64 = 1 << 7;
    pub const BUDDY: u64 = 1 << 10;
    pub const ANON: u64 = 1 << 12;
    pub const COMPOUND_HEAD: u64 = 1 << 15;
    pub const COMPOUND_TAIL: u64 = 1 << 16;
    pub const HUGE: u64 = 1 << 17;
    pub const OFFLINE: u64 = 1 << 23;
    pub const PGTABLE: u64 = 1 << 26;
    pub const RESERVED: u64 = 1 << 32;
}

/// Pages of a map page.
const MAP_PAGE: u64 = 64;

/// All pages, some runs at a time.
pub struct Pages<'e, C: Choice> {
    walker: Walker<'e, GuestPlatform<C>>,
    end: u64,
    /// What is not given out yet.
    run: PageRun,
}

impl<'e, C: Choice> Pages<'e, C> {
    /// All pages below `end`.
    pub fn new(walker: Walker<'e, GuestPlatform<C>>, end: u64) -> Self {
        Self { walker, end, run: PageRun(0, 0, 0) }
    }

    /// Puts some hundred runs into `runs`, at most as many as fit; none at the end.
    pub fn next(&mut self, runs: &mut Vec<PageRun>) {
        runs.clear();
        let mut at = self.run.0 + self.run.1;
        while at < self.end && runs.len() + MAP_PAGE as usize + 1 < runs.capacity() {
            match self.class(at) {
                Class::Absent => at += MAP_PAGE,
                Class::Offline => at = self.push(runs, at, MAP_PAGE, kpf::OFFLINE),
                Class::Free => at = self.push(runs, at, MAP_PAGE, kpf::BUDDY),
                Class::Tail(_) | Class::Mapped => {
                    for pfn in at..at + MAP_PAGE {
                        let flags = self.flags(pfn);
                        self.push(runs, pfn, 1, flags);
                    }
                    at += MAP_PAGE;
                }
            }
        }
        // The rest of the machine may be absent: then the last run is complete.
        if at >= self.end {
            if self.run.1 > 0 {
                runs.push(self.run);
            }
            self.run = PageRun(self.end, 0, 0);
        }
    }

    fn class(&self, pfn: u64) -> Class {
        self.walker.peek(Pfn(pfn)).map_or(Class::Absent, |peek| peek.class)
    }

    /// More pages of the run, or the first of the next. Where to go on.
    fn push(&mut self, runs: &mut Vec<PageRun>, at: u64, pages: u64, flags: u64) -> u64 {
        if self.run.1 > 0 && self.run.0 + self.run.1 == at && self.run.2 == flags {
            self.run.1 += pages;
        } else {
            if self.run.1 > 0 {
                runs.push(self.run);
            }
            self.run = PageRun(at, pages, flags);
        }
        at + pages
    }

    fn flags(&self, pfn: u64) -> u64 {
        let Some(peek) = self.walker.peek(Pfn(pfn)) else { return 0 };
        let Some((head, state)) = peek.head else { return kpf::BUDDY };
        use PageKind::{Offline, Owned};
        let kind = match state.kind() {
            Owned(Kind::Anon) => kpf::ANON | kpf::LRU | kpf::UPTODATE,
            Owned(Kind::File) => kpf::LRU | kpf::UPTODATE,
            Owned(Kind::Slab) => kpf::SLAB,
            Owned(Kind::PageTable) => kpf::PGTABLE,
            Owned(Kind::Hugetlb) => kpf::HUGE | kpf::UPTODATE,
            Owned(Kind::Reserved) => kpf::RESERVED,
            Offline => kpf::OFFLINE,
            Owned(Kind::Kernel) => 0,
        };
        let part = match (state.order(), head == Pfn(pfn)) {
            (Order::ZERO, _) => 0,
            (_, true) => kpf::COMPOUND_HEAD,
            (_, false) => kpf::COMPOUND_TAIL,
        };
        kind | part
    }
}
