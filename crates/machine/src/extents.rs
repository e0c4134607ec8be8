//! A machine's memory as folios with states.

use crate::fake_heads;
use crate::flags::{COMPOUND_HEAD, COMPOUND_TAIL, Flags};
use crate::geometry::MAX_ORDER;
use crate::machine::{Clipped, Machine, Run};
use crate::state::PageState;

/// Adjacent folios of one order, in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First page.
    pub start: u64,
    /// Pages in all.
    pub pages: u64,
    /// Order of each folio. Free, reserved, offline and absent pages have no folios: 0.
    pub order: u32,
    /// What they are used for.
    pub state: PageState,
    /// Map count of each folio's first page.
    pub mapcount: u64,
    /// Whether HVO has taken the descriptors of their tails (see [`crate::fake_heads`]).
    pub optimised: bool,
}

/// Runs without any flag that are this long are no everyday kernel allocations: they were never handed to the buddy
/// allocator (not yet, or not at all). 8 MiB, more than the largest block the buddy allocator has (4 MiB).
const UNTOUCHED: u64 = 2048;

impl Machine {
    /// The machine's memory as folios with states: what flags and map counts say, made consistent.
    ///
    /// * Runs are clipped to the memory ranges.
    /// * A head and its tails are one folio, if they are a power of two, aligned; else (the kernel changed them while they
    ///   were read) single pages.
    /// * A huge page that HVO has optimised is one folio too, although some kernels show heads inside of it (see
    ///   [`crate::fake_heads`]).
    /// * Long runs without any flag are memory that the buddy allocator never had. As many pages of them, lowest first,
    ///   as the kernel counts as free outside of all zones are [`PageState::Deferred`], the rest (the memory map itself,
    ///   mostly) [`PageState::Reserved`].
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        Extents {
            runs: self.clipped(),
            peeked: None,
            deferred: self.deferred_pages(),
            gigantic: fake_heads::gigantic_pages(self),
            rest: None,
            pending: None,
        }
    }
}

struct Extents<'a> {
    runs: Clipped<'a>,
    peeked: Option<Run>,
    /// Deferred pages still to be found.
    deferred: u64,
    /// Optimised huge pages of 1 GiB still to be found.
    gigantic: u64,
    /// The reserved rest of a run that is deferred at first.
    rest: Option<Extent>,
    /// The extent after the one that is being joined.
    pending: Option<Extent>,
}

impl Extents<'_> {
    fn next_run(&mut self) -> Option<Run> {
        self.peeked.take().or_else(|| self.runs.next())
    }

    /// The tails that follow `end` without a gap.
    fn tails(&mut self, mut end: u64) -> u64 {
        while let Some(run) = self.next_run() {
            if run.start != end || !run.flags.any(COMPOUND_TAIL) {
                self.peeked = Some(run);
                break;
            }
            end = run.end();
        }
        end
    }

    /// A huge page that HVO has optimised, from `head` on, of which `first` is what was read so far. Should there be no such
    /// page after all, `first` is a folio of its own.
    fn optimised(&mut self, head: &Run, first: Extent) -> Extent {
        // Look ahead on a copy: what does not belong to the page is read again.
        let ahead = self.peeked.into_iter().chain(self.runs.clone());
        let Some(pages) = fake_heads::huge_page(head, ahead, self.gigantic > 0) else {
            return Extent { order: first.pages.ilog2(), ..first };
        };
        if pages.ilog2() == MAX_ORDER {
            self.gigantic -= 1;
        }
        let end = head.start + pages;
        while let Some(run) = self.next_run() {
            if run.start >= end {
                self.peeked = Some(run);
                break;
            }
        }
        Extent { pages, order: pages.ilog2(), optimised: true, ..first }
    }

    fn next_raw(&mut self) -> Option<Extent> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        let run = self.next_run()?;
        let state = PageState::of(run.flags);
        if run.flags.any(COMPOUND_HEAD) && !run.flags.any(COMPOUND_TAIL) && !state.is_free() {
            // Heads in a row, but for the last, have no tails: single pages.
            if run.len > 1 {
                let last = Run { start: run.end() - 1, len: 1, ..run };
                self.peeked = Some(last);
                return Some(single(Run { len: run.len - 1, ..run }, state));
            }
            let end = self.tails(run.end());
            let pages = end - run.start;
            let order = pages.ilog2();
            let extent =
                Extent { start: run.start, pages, order: 0, state, mapcount: run.count, optimised: false };
            if fake_heads::begins(&run, pages) {
                return Some(self.optimised(&run, extent));
            }
            if pages.is_power_of_two() && order <= MAX_ORDER && run.start.is_multiple_of(pages) {
                return Some(Extent { order, ..extent });
            }
            return Some(extent);
        }
        if run.flags == Flags(0) && run.count == 0 && run.len >= UNTOUCHED {
            let deferred = run.len.min(self.deferred);
            if deferred == 0 {
                return Some(single(run, PageState::Reserved));
            }
            self.deferred -= deferred;
            if deferred < run.len {
                // Whatever its length, it is not to be taken for an everyday run.
                let rest = Run { start: run.start + deferred, len: run.len - deferred, ..run };
                self.rest = Some(single(rest, PageState::Reserved));
            }
            return Some(single(Run { len: deferred, ..run }, PageState::Deferred));
        }
        Some(single(run, state))
    }
}

fn single(run: Run, state: PageState) -> Extent {
    Extent { start: run.start, pages: run.len, order: 0, state, mapcount: run.count, optimised: false }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        // Joins what differs only in flags that do not matter.
        let mut extent = match self.pending.take() {
            Some(extent) => extent,
            None => self.next_raw()?,
        };
        while self.pending.is_none() {
            match self.next_raw() {
                Some(next)
                    if next.start == extent.start + extent.pages
                        && (next.order, next.state, next.mapcount, next.optimised)
                            == (extent.order, extent.state, extent.mapcount, extent.optimised) =>
                {
                    extent.pages += next.pages;
                }
                Some(next) => self.pending = Some(next),
                None => break,
            }
        }
        Some(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{ANON, BUDDY, HUGE, LRU, SLAB};
    use crate::geometry::PAGES_PER_SECTION;
    use crate::layout::{MemoryRange, ZoneRecord};
    use crate::machine::Header;

    fn machine(memory: &[(u64, u64)], runs: &[(u64, u64, u64)]) -> Machine {
        let memory = memory.iter().map(|&(start, end)| MemoryRange { start, end }).collect();
        let run = |&(start, len, flags): &(u64, u64, u64)| Run { start, len, flags: Flags(flags), count: 0 };
        let header = Header { memory, ..Header::default() };
        Machine { header, runs: runs.iter().map(run).collect() }
    }

    fn extents(machine: &Machine) -> Vec<(u64, u64, u32, PageState)> {
        machine.extents().map(|extent| (extent.start, extent.pages, extent.order, extent.state)).collect()
    }

    #[test]
    fn heads_and_tails_are_folios() {
        let head = ANON | COMPOUND_HEAD;
        let tail = COMPOUND_TAIL;
        let machine = machine(
            &[(0, 1 << 20)],
            &[(0, 8, BUDDY), (8, 1, head), (9, 7, tail), (16, 1, head), (17, 7, tail | ANON), (24, 1, ANON)],
        );
        assert_eq!(
            extents(&machine),
            [(0, 8, 0, PageState::Free), (8, 16, 3, PageState::Anon), (24, 1, 0, PageState::Anon),]
        );
    }

    #[test]
    fn torn_folios_become_single_pages() {
        let head = LRU | COMPOUND_HEAD;
        // Not a power of two; not aligned; a tail without a head.
        let machine = machine(
            &[(0, 1 << 20)],
            &[
                (0, 1, head),
                (1, 2, COMPOUND_TAIL),
                (3, 1, head),
                (4, 1, COMPOUND_TAIL),
                (8, 2, COMPOUND_TAIL),
            ],
        );
        assert_eq!(extents(&machine), [(0, 5, 0, PageState::File), (8, 2, 0, PageState::Kernel)]);
    }

    #[test]
    fn a_gigabyte_page_is_one_folio() {
        let head = HUGE | COMPOUND_HEAD;
        let pages = 1 << 18;
        let machine =
            machine(&[(0, 1 << 20)], &[(pages, 1, head), (pages + 1, pages - 1, HUGE | COMPOUND_TAIL)]);
        assert_eq!(extents(&machine), [(pages, pages, 18, PageState::Hugetlb)]);
    }

    #[test]
    fn runs_are_cut_to_memory() {
        let machine = machine(&[(10, 20), (30, 40)], &[(0, 35, SLAB), (35, 100, BUDDY)]);
        assert_eq!(
            extents(&machine),
            [(10, 10, 0, PageState::Slab), (30, 5, 0, PageState::Slab), (35, 5, 0, PageState::Free)]
        );
        assert_eq!((machine.pages(), machine.end()), (20, 135));
        assert_eq!(machine.described_pages(), PAGES_PER_SECTION);
    }

    #[test]
    fn absurd_zones_do_not_overflow() {
        let mut machine = machine(&[(0, 1 << 20)], &[]);
        machine.header.mem_free = u64::MAX;
        machine.header.zones = vec![ZoneRecord { free: u64::MAX, ..ZoneRecord::default() }; 2];
        assert_eq!(machine.deferred_pages(), 0);
    }

    #[test]
    fn untouched_memory_is_deferred_as_far_as_the_kernel_counts_it_as_free() {
        let mut machine =
            machine(&[(0, 1 << 20)], &[(0, 100, 0), (100, 4, BUDDY), (4096, 4096, 0), (16384, 4096, 0)]);
        assert_eq!(extents(&machine)[2], (4096, 4096, 0, PageState::Reserved));
        machine.header.mem_free = 5000 * 4096;
        machine.header.mem_total = 5000 * 4096;
        machine.header.zones = vec![ZoneRecord { free: 4, managed: 4, ..ZoneRecord::default() }];
        assert_eq!(machine.deferred_pages(), 4996);
        assert_eq!(
            extents(&machine),
            [
                (0, 100, 0, PageState::Kernel),
                (100, 4, 0, PageState::Free),
                (4096, 4096, 0, PageState::Deferred),
                (16384, 900, 0, PageState::Deferred),
                (17284, 3196, 0, PageState::Reserved),
            ]
        );
    }
}
