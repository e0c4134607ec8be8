//! What a machine's pages are used for, summed up, and what folding would leave of their descriptors ([`crate::folding`]).

use std::ops::Range;

use crate::extents::Extent;
use crate::fake_heads;
use crate::folding::{Fates, Left, Rule};
use crate::geometry::ORDERS;
use crate::machine::Machine;
use crate::state::PageState;

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
    /// Those of them that HVO has optimised, if page flags tell which they are (see [`crate::fake_heads`]).
    pub optimised: Option<[u64; ORDERS]>,
    /// What folding would leave of descriptors of 64 bytes a page.
    pub page: Left,
    /// What it would leave of a word a page and an object a folio.
    pub memdesc: Left,
    /// Runs of offline pages, in ascending order.
    pub offline: Vec<Range<u64>>,
}

/// The pages in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StateTally {
    /// Pages.
    pub pages: u64,
    /// Map pages that folding would leave for them ([`Part::kept`](crate::folding::Part::kept)).
    pub map_pages_left: f64,
}

impl Tally {
    /// Sums up a machine.
    pub fn of(machine: &Machine) -> Self {
        let mut tally = Self {
            states: Default::default(),
            folios: [0; ORDERS],
            hugetlb: [0; ORDERS],
            optimised: fake_heads::are_shown(machine).then_some([0; ORDERS]),
            page: Left::default(),
            memdesc: Left::default(),
            offline: Vec::new(),
        };
        let mut kept = [0.0; PageState::ALL.len()];
        let mut page = Fates::new(Rule::PAGE, |part| kept[index(part.state)] += part.kept);
        let mut memdesc = Fates::new(Rule::MEMDESC, drop);
        for extent in machine.extents() {
            tally.add(&extent);
            page.extent(&extent);
            memdesc.extent(&extent);
        }
        (tally.page, tally.memdesc) = (page.close(), memdesc.close());
        for (state, kept) in tally.states.iter_mut().zip(kept) {
            state.map_pages_left = kept;
        }
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

    /// Adds an extent's pages and folios.
    fn add(&mut self, extent: &Extent) {
        let Extent { start, pages, order, state, .. } = *extent;
        self.state_mut(state).pages += pages;
        let order_index = (order as usize).min(ORDERS - 1);
        match state {
            PageState::Offline => match self.offline.last_mut() {
                Some(last) if last.end == start => last.end += pages,
                _ => self.offline.push(start..start + pages),
            },
            PageState::Free | PageState::Deferred | PageState::Reserved => {}
            PageState::HwPoison | PageState::NoPage => {}
            _ => {
                self.folios[order_index] += pages >> order;
                if state == PageState::Hugetlb {
                    self.hugetlb[order_index] += pages >> order;
                    if let Some(optimised) = self.optimised.as_mut().filter(|_| extent.optimised) {
                        optimised[order_index] += pages >> order;
                    }
                }
            }
        }
    }

    fn state_mut(&mut self, state: PageState) -> &mut StateTally {
        &mut self.states[index(state)]
    }
}

fn index(state: PageState) -> usize {
    PageState::ALL.iter().position(|&known| known == state).unwrap_or(0)
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

    /// The rule, page by page: which map pages stay, and how many folios there are.
    fn by_the_rule(machine: &Machine, described: u64, keeps_head: bool) -> Left {
        let mut kept = std::collections::BTreeSet::new();
        let mut folios = 0;
        for Extent { start, pages, order, state, .. } in machine.extents() {
            let end = start + pages;
            match state {
                PageState::Free | PageState::Deferred | PageState::HwPoison => {}
                PageState::Offline | PageState::NoPage => {
                    let is_whole = |page: u64| {
                        start <= page / described * described && (page / described + 1) * described <= end
                    };
                    let odd = (start..end).filter(|&page| !is_whole(page));
                    folios += odd.clone().count() as u64;
                    kept.extend(odd.map(|page| page / described));
                }
                _ => {
                    let mut at = start;
                    while at < end {
                        let order = match state {
                            PageState::Reserved => at.trailing_zeros().min((end - at).ilog2()).min(18),
                            _ => order,
                        };
                        // A folio that is less than a map page keeps it; of others the first is kept, or none.
                        if 1 << order < described || keeps_head {
                            kept.insert(at / described);
                        }
                        folios += 1;
                        at += 1 << order;
                    }
                }
            }
        }
        let tables: std::collections::BTreeSet<u64> = kept.iter().map(|map_page| map_page / 512).collect();
        Left { map_pages: kept.len() as u64, page_tables: tables.len() as u64, folios }
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
            prop_assert_eq!(tally.page, by_the_rule(&machine, 64, true));
            prop_assert_eq!(tally.memdesc, by_the_rule(&machine, 512, false));
            let shared: f64 = tally.states.iter().map(|state| state.map_pages_left).sum();
            prop_assert!((shared - tally.page.map_pages as f64).abs() < 1e-6);
            let pages: u64 = tally.states.iter().map(|state| state.pages).sum();
            prop_assert_eq!(pages, machine.pages());
        }
    }

    #[test]
    fn free_memory_folds_and_small_pages_do_not() {
        let tally = tally(1 << 16, &[(0, 4096, BUDDY), (4096, 64, SLAB), (4160, 1, LRU), (4161, 63, BUDDY)]);
        assert_eq!(tally.page, Left { map_pages: 2, page_tables: 1, folios: 65 });
        assert_eq!(tally.memdesc, Left { map_pages: 1, page_tables: 1, folios: 65 });
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
        assert_eq!(tally.page, Left { map_pages: 2, page_tables: 2, folios: 2 });
        assert_eq!(tally.memdesc, Left { map_pages: 0, page_tables: 0, folios: 2 });
        assert_eq!((tally.hugetlb[9], tally.hugetlb[18]), (1, 1));
    }

    #[test]
    fn one_plugged_sub_block_in_a_block() {
        // Linux's own numbers: 32,256 offline pages in a block of 128 MiB with 2 MiB plugged.
        let tally = tally(1 << 15, &[(0, 512, BUDDY), (512, 32_256, OFFLINE)]);
        assert_eq!(tally.state(PageState::Offline).pages, 32_256);
        assert_eq!((tally.offline_in(0..1 << 15), tally.offline_in(0..1024)), (32_256, 512));
        assert_eq!((tally.offline_in(0..512), tally.offline_in(1 << 15..2 << 15)), (0, 0));
        assert_eq!((tally.offline_blocks(1 << 15), tally.offline_blocks(512)), (1, 63));
        assert_eq!(tally.page, Left::default());
    }

    #[test]
    fn runs_of_offline_pages_are_counted_by_block_once() {
        let tally = tally(1 << 16, &[(10, 20, OFFLINE), (40, 4000, OFFLINE), (5000, 1, OFFLINE)]);
        assert_eq!(tally.offline, [10..30, 40..4040, 5000..5001]);
        assert_eq!((tally.offline_blocks(4096), tally.offline_blocks(2048)), (2, 3));
        assert_eq!(tally.offline_in(20..50), 20);
    }
}
