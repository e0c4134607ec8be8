//! What a machine's pages are used for, summed up, and what folding would leave of their descriptors.
//!
//! The rule is the engine's (`docs/architecture.md`): a map page stays materialised if anybody uses one of its 64 pages as
//! a page of its own, or as a folio that fits into it; a folio of several map pages keeps its first. All other map pages
//! are folded. `pagefold replay` does it with the engine and measures; this only counts.

use std::ops::Range;

use crate::machine::{Extent, Machine, PAGES_PER_SECTION};
use crate::state::PageState;

/// Pages that one map page describes: 4 KiB of 64-byte descriptors.
pub const PAGES_PER_MAP_PAGE: u64 = 64;
/// Orders a folio may have.
pub const ORDERS: usize = 19;

/// The pages of a machine, summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// By state, in [`PageState::ALL`]'s order.
    pub states: [StateTally; PageState::ALL.len()],
    /// Folios in use, by order: those of anonymous memory, page cache, slab, page tables, hugetlb and other kernel
    /// memory. Reserved memory has no folios.
    pub folios: [u64; ORDERS],
    /// Hugetlb folios by order.
    pub hugetlb: [u64; ORDERS],
    /// Map pages that folding would leave.
    pub map_pages_left: u64,
    /// Sections (128 MiB) in which it would leave any.
    pub sections_left: u64,
    /// Runs of offline pages, in ascending order.
    pub offline: Vec<Range<u64>>,
}

/// The pages in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StateTally {
    /// Pages.
    pub pages: u64,
    /// Map pages that folding would leave for them. One that describes pages of several states is shared out by pages in
    /// use.
    pub map_pages_left: f64,
}

impl Tally {
    /// Sums up a machine.
    pub fn of(machine: &Machine) -> Self {
        let mut tally = Self {
            states: Default::default(),
            folios: [0; ORDERS],
            hugetlb: [0; ORDERS],
            map_pages_left: 0,
            sections_left: 0,
            offline: Vec::new(),
        };
        let mut map = Map { tally: &mut tally, at: 0, parts: Vec::new(), next_section: 0 };
        machine.extents().for_each(|extent| map.add(&extent));
        map.flush();
        // Pages that no run speaks of are free.
        let known: u64 = tally.states.iter().map(|state| state.pages).sum();
        tally.state_mut(PageState::Free).pages += machine.pages().saturating_sub(known);
        tally
    }

    /// Offline pages among `pages`.
    pub fn offline_in(&self, pages: Range<u64>) -> u64 {
        let first = self.offline.partition_point(|run| run.end <= pages.start);
        let within = self.offline[first..].iter().take_while(|run| run.start < pages.end);
        within.map(|run| run.end.min(pages.end) - run.start.max(pages.start)).sum()
    }

    /// Blocks of `pages` pages each that have any offline page.
    pub fn offline_blocks(&self, pages: u64) -> u64 {
        let mut next = 0;
        let blocks = self.offline.iter().map(|run| {
            let first = (run.start / pages.max(1)).max(next);
            next = run.end.div_ceil(pages.max(1)).max(next);
            next.saturating_sub(first)
        });
        blocks.sum()
    }

    /// The pages in one state.
    pub fn state(&self, state: PageState) -> StateTally {
        self.states[index(state)]
    }

    fn state_mut(&mut self, state: PageState) -> &mut StateTally {
        &mut self.states[index(state)]
    }
}

fn index(state: PageState) -> usize {
    PageState::ALL.iter().position(|&known| known == state).unwrap_or(0)
}

/// Walks over map pages.
struct Map<'t> {
    tally: &'t mut Tally,
    /// The map page that is being summed up.
    at: u64,
    /// Its pages so far, by state.
    parts: Vec<(PageState, u64)>,
    /// Sections below are counted.
    next_section: u64,
}

impl Map<'_> {
    fn add(&mut self, extent: &Extent) {
        let Extent { start, pages, order, state, .. } = *extent;
        let end = start + pages;
        let tally = &mut *self.tally;
        tally.state_mut(state).pages += pages;
        let folios = pages >> order;
        match state {
            PageState::Offline => match tally.offline.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => tally.offline.push(start..end),
            },
            PageState::Free | PageState::Deferred | PageState::Reserved => {}
            PageState::HwPoison | PageState::NoPage => {}
            _ => {
                tally.folios[(order as usize).min(ORDERS - 1)] += folios;
                if state == PageState::Hugetlb {
                    tally.hugetlb[(order as usize).min(ORDERS - 1)] += folios;
                }
            }
        }
        match state {
            // One owner's, and never given back page by page: blocks as large as fit.
            PageState::Reserved => {
                let mut at = start;
                while at < end {
                    let order = at.trailing_zeros().min((end - at).ilog2()).min(ORDERS as u32 - 1);
                    self.add_folios(at, 1, order, state);
                    at += 1 << order;
                }
            }
            _ => self.add_folios(start, folios, order, state),
        }
    }

    /// Adds adjacent folios of one order.
    fn add_folios(&mut self, start: u64, folios: u64, order: u32, state: PageState) {
        let end = start + (folios << order);
        if 1 << order > PAGES_PER_MAP_PAGE {
            // Aligned, so that each has map pages of its own.
            self.flush();
            self.tally.map_pages_left += folios;
            self.tally.state_mut(state).map_pages_left += folios as f64;
            if 1 << order <= PAGES_PER_SECTION {
                self.sections(start, end);
            } else {
                (0..folios)
                    .for_each(|folio| self.sections(start + (folio << order), start + (folio << order) + 1));
            }
            return;
        }
        let mut at = start;
        while at < end {
            let map_page = at / PAGES_PER_MAP_PAGE;
            if map_page != self.at {
                self.flush();
                self.at = map_page;
            }
            let whole = (end - at) / PAGES_PER_MAP_PAGE;
            if at.is_multiple_of(PAGES_PER_MAP_PAGE) && whole > 1 {
                // Many map pages of one state.
                if uses(state) {
                    self.tally.map_pages_left += whole;
                    self.tally.state_mut(state).map_pages_left += whole as f64;
                    self.sections(at, at + whole * PAGES_PER_MAP_PAGE);
                }
                at += whole * PAGES_PER_MAP_PAGE;
                continue;
            }
            let stop = end.min((map_page + 1) * PAGES_PER_MAP_PAGE);
            self.parts.push((state, stop - at));
            at = stop;
        }
    }

    /// Ends the current map page.
    fn flush(&mut self) {
        let in_use: u64 = self.parts.iter().filter(|part| uses(part.0)).map(|part| part.1).sum();
        if in_use > 0 {
            self.tally.map_pages_left += 1;
            for (state, pages) in self.parts.iter().filter(|part| uses(part.0)) {
                self.tally.state_mut(*state).map_pages_left += *pages as f64 / in_use as f64;
            }
            self.sections(self.at * PAGES_PER_MAP_PAGE, (self.at + 1) * PAGES_PER_MAP_PAGE);
        }
        self.parts.clear();
    }

    /// Counts the sections of pages that keep descriptors; they come in ascending order.
    fn sections(&mut self, start: u64, end: u64) {
        let first = (start / PAGES_PER_SECTION).max(self.next_section);
        let last = end.div_ceil(PAGES_PER_SECTION);
        self.tally.sections_left += last.saturating_sub(first);
        self.next_section = self.next_section.max(last);
    }
}

/// Whether a page of this state keeps its map page from folding. Poison is recorded beside the map.
fn uses(state: PageState) -> bool {
    !matches!(
        state,
        PageState::Free | PageState::Deferred | PageState::Offline | PageState::NoPage | PageState::HwPoison
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{
        ANON, BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, Flags, HUGE, HWPOISON, LRU, NOPAGE, OFFLINE, RESERVED,
        SLAB,
    };
    use crate::layout::MemoryRange;
    use crate::machine::{Header, Run};
    use proptest::prelude::*;

    fn machine(pages: u64, runs: &[(u64, u64, u64)]) -> Machine {
        let run = |&(start, len, flags): &(u64, u64, u64)| Run { start, len, flags: Flags(flags), count: 0 };
        let header = Header { memory: vec![MemoryRange { start: 0, end: pages }], ..Header::default() };
        Machine { header, runs: runs.iter().map(run).collect() }
    }

    fn tally(pages: u64, runs: &[(u64, u64, u64)]) -> Tally {
        Tally::of(&machine(pages, runs))
    }

    /// The rule, page by page: which map pages stay.
    fn by_the_rule(machine: &Machine) -> (u64, u64) {
        let mut kept = std::collections::BTreeSet::new();
        for Extent { start, pages, order, state, .. } in machine.extents().filter(|extent| uses(extent.state))
        {
            let mut at = start;
            while at < start + pages {
                let left = start + pages - at;
                let order = match state {
                    PageState::Reserved => at.trailing_zeros().min(left.ilog2()).min(18),
                    _ => order,
                };
                // A folio that fits into a map page keeps it; of a larger one, the first is kept.
                kept.insert(at / PAGES_PER_MAP_PAGE);
                at += 1 << order;
            }
        }
        let sections: std::collections::BTreeSet<u64> = kept.iter().map(|map_page| map_page / 512).collect();
        (kept.len() as u64, sections.len() as u64)
    }

    proptest! {
        #[test]
        fn sums_are_the_rules(
            gaps in prop::collection::vec((0u64..80, 1u64..700, 0usize..9), 1..60),
            huge in prop::collection::vec(0u64..256, 0..6),
        ) {
            const KINDS: [u64; 9] =
                [BUDDY, LRU, ANON, SLAB, OFFLINE, RESERVED, NOPAGE, HWPOISON, 0];
            let mut runs: Vec<(u64, u64, u64)> = Vec::new();
            let mut at = 0;
            for (gap, len, kind) in gaps {
                runs.push((at + gap, len, KINDS[kind]));
                at += gap + len;
            }
            // Huge pages above, of 2 MiB.
            let base = 1 << 17;
            let mut places: Vec<u64> = huge.iter().map(|place| base + place * 512).collect();
            places.sort_unstable();
            places.dedup();
            for place in places {
                runs.push((place, 1, HUGE | COMPOUND_HEAD));
                runs.push((place + 1, 511, HUGE | COMPOUND_TAIL));
            }
            let machine = machine(1 << 18, &runs);
            let tally = Tally::of(&machine);
            prop_assert_eq!((tally.map_pages_left, tally.sections_left), by_the_rule(&machine));
            let shared: f64 = tally.states.iter().map(|state| state.map_pages_left).sum();
            prop_assert!((shared - tally.map_pages_left as f64).abs() < 1e-6);
            let pages: u64 = tally.states.iter().map(|state| state.pages).sum();
            prop_assert_eq!(pages, machine.pages());
        }
    }

    #[test]
    fn free_memory_folds_and_small_pages_do_not() {
        let tally = tally(1 << 16, &[(0, 4096, BUDDY), (4096, 64, SLAB), (4160, 1, LRU), (4161, 63, BUDDY)]);
        assert_eq!((tally.map_pages_left, tally.sections_left), (2, 1));
        assert_eq!(tally.state(PageState::Slab), StateTally { pages: 64, map_pages_left: 1.0 });
        assert_eq!(tally.state(PageState::File), StateTally { pages: 1, map_pages_left: 1.0 });
        assert_eq!(tally.state(PageState::Free).pages, (1 << 16) - 65);
        assert_eq!(tally.folios[0], 65);
    }

    #[test]
    fn a_huge_page_keeps_one_map_page() {
        let head = HUGE | COMPOUND_HEAD;
        let tail = HUGE | COMPOUND_TAIL;
        let gigabyte = 1 << 18;
        let tally = tally(
            2 << 18,
            &[(512, 1, head), (513, 511, tail), (gigabyte, 1, head), (gigabyte + 1, gigabyte - 1, tail)],
        );
        assert_eq!((tally.map_pages_left, tally.sections_left), (2, 2));
        assert_eq!((tally.hugetlb[9], tally.hugetlb[18]), (1, 1));
    }

    #[test]
    fn a_map_page_of_several_states_is_shared_out() {
        let tally = tally(64, &[(0, 16, ANON), (16, 16, BUDDY), (32, 32, SLAB)]);
        assert_eq!(tally.map_pages_left, 1);
        let left = |state| (tally.state(state).map_pages_left * 3.0).round();
        assert_eq!((left(PageState::Anon), left(PageState::Slab), left(PageState::Free)), (1.0, 2.0, 0.0));
    }

    #[test]
    fn one_plugged_sub_block_in_a_block() {
        // Linux's own numbers: 32,256 offline pages in a block of 128 MiB with 2 MiB plugged.
        let tally = tally(1 << 15, &[(0, 512, BUDDY), (512, 32_256, OFFLINE)]);
        assert_eq!(tally.state(PageState::Offline).pages, 32_256);
        assert_eq!((tally.offline_in(0..1 << 15), tally.offline_in(0..1024)), (32_256, 512));
        assert_eq!((tally.offline_in(0..512), tally.offline_in(1 << 15..2 << 15)), (0, 0));
        assert_eq!((tally.offline_blocks(1 << 15), tally.offline_blocks(512)), (1, 63));
        assert_eq!(tally.map_pages_left, 0);
    }

    #[test]
    fn runs_of_offline_pages_are_counted_by_block_once() {
        let tally = tally(1 << 16, &[(10, 20, OFFLINE), (40, 4000, OFFLINE), (5000, 1, OFFLINE)]);
        assert_eq!(tally.offline, [10..30, 40..4040, 5000..5001]);
        assert_eq!((tally.offline_blocks(4096), tally.offline_blocks(2048)), (2, 3));
        assert_eq!(tally.offline_in(20..50), 20);
    }

    #[test]
    fn reserved_memory_is_as_large_as_it_fits() {
        // 64..128 and 128..256 and 256..512 keep one map page each.
        assert_eq!(tally(4096, &[(64, 448, RESERVED)]).map_pages_left, 3);
    }
}
