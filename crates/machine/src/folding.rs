//! What folding would leave of a machine's descriptors: computed from the states of its pages.
//!
//! The rules are the engine's (`docs/architecture.md`), by which `pagefold replay` loads a machine and folds it; a test of
//! the command holds the two against each other:
//!
//! * of a large folio, as many map pages stay as the [`Rule`] says;
//! * map pages of which no page is in use are folded, those that are all offline or without memory as well;
//! * all others stay. Poisoned pages keep none: they are recorded beside the map.

use std::ops::Range;

use crate::extents::Extent;
use crate::geometry::{MAX_ORDER, PAGES_PER_MAP_PAGE};
use crate::state::PageState;

/// What depends on the kind of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Pages that a map page (4 KiB of the memory map) describes.
    pub pages_per_map_page: u64,
    /// Map pages that stay of a folio that fills more than so many.
    pub kept: u64,
}

impl Rule {
    /// Descriptors of 64 bytes: the map page with the head stays.
    pub const PAGE: Rule = Rule { pages_per_map_page: PAGES_PER_MAP_PAGE, kept: 1 };
    /// Words of 8 bytes: one class entry says what all words of a map page would say.
    pub const MEMDESC: Rule = Rule { pages_per_map_page: 512, kept: 0 };
}

/// What folding leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Map pages that stay.
    pub map_pages: u64,
    /// Page tables that map them: one for 512 map pages, of which any stays.
    pub page_tables: u64,
    /// Folios: where descriptors are objects, so many objects. Reserved memory is in blocks as large as fit, and odd pages of
    /// offline memory are one each.
    pub folios: u64,
}

/// Map pages that a page table maps.
const MAP_PAGES_PER_TABLE: u64 = 512;

/// What becomes of a map page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPageFate {
    /// Folded: its pages are free.
    Free,
    /// Folded: its pages have no memory.
    Absent,
    /// Folded: its pages are tails of a large folio.
    Tail,
    /// Folded: its pages are offline.
    Offline,
    /// Stays materialised.
    Mapped,
}

/// Adjacent pages in one state, whose map pages have one fate.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The pages.
    pub pages: Range<u64>,
    /// What they are used for.
    pub state: PageState,
    /// What becomes of their map pages.
    pub fate: MapPageFate,
    /// Fates pages that stay because of them. One that stays because of several parts is shared out by their pages.
    pub kept: f64,
}

/// Visits the parts of extents, which are in ascending order and do not overlap. Returns what stays.
pub fn parts(rule: Rule, extents: impl Iterator<Item = Extent>, visit: impl FnMut(Part)) -> Left {
    let mut fates = Fates::new(rule, visit);
    extents.for_each(|extent| fates.extent(&extent));
    fates.close()
}

/// The fates of map pages under one rule, extent by extent.
pub struct Fates<V> {
    rule: Rule,
    /// Parts of one map page that is being put together, and whether they keep it.
    open: Vec<(Range<u64>, PageState, bool)>,
    left: Left,
    /// Page tables below are counted.
    next_table: u64,
    visit: V,
}

impl<V: FnMut(Part)> Fates<V> {
    /// Before the first extent. `visit` sees each part.
    pub fn new(rule: Rule, visit: V) -> Self {
        Self { rule, open: Vec::new(), left: Left::default(), next_table: 0, visit }
    }

    /// After the last extent: what stays.
    pub fn close(mut self) -> Left {
        self.close_map_page();
        self.left
    }

    /// The next extent, in ascending order.
    pub fn extent(&mut self, extent: &Extent) {
        let described = self.rule.pages_per_map_page;
        let Extent { start, pages, order, state, .. } = *extent;
        let end = start + pages;
        match state {
            PageState::Free | PageState::Deferred | PageState::HwPoison => {
                self.add(start..end, state, MapPageFate::Free);
            }
            PageState::Offline | PageState::NoPage => {
                let fate =
                    if state == PageState::Offline { MapPageFate::Offline } else { MapPageFate::Absent };
                let whole = start.next_multiple_of(described)..end / described * described;
                if whole.start >= whole.end {
                    self.left.folios += pages;
                    return self.add(start..end, state, MapPageFate::Mapped);
                }
                // The odd pages at its ends share their map pages with others.
                self.left.folios += pages - (whole.end - whole.start);
                self.add(start..whole.start, state, MapPageFate::Mapped);
                self.add(whole.clone(), state, fate);
                self.add(whole.end..end, state, MapPageFate::Mapped);
            }
            // One owner's, and never given back page by page: blocks as large as fit.
            PageState::Reserved => {
                let mut at = start;
                while at < end {
                    let order = at.trailing_zeros().min((end - at).ilog2()).min(MAX_ORDER);
                    self.left.folios += 1;
                    self.folio(at, 1 << order, state);
                    at += 1 << order;
                }
            }
            _ => {
                self.left.folios += pages >> order;
                if 1 << order < described {
                    return self.add(start..end, state, MapPageFate::Mapped);
                }
                (start..end).step_by(1 << order).for_each(|head| self.folio(head, 1 << order, state));
            }
        }
    }

    fn folio(&mut self, head: u64, pages: u64, state: PageState) {
        let Rule { pages_per_map_page, kept } = self.rule;
        let kept = if pages < pages_per_map_page { pages } else { pages.min(kept * pages_per_map_page) };
        self.add(head..head + kept, state, MapPageFate::Mapped);
        self.add(head + kept..head + pages, state, MapPageFate::Tail);
    }

    /// Pages whose map pages meet a fate, as far as their neighbours have no other.
    fn add(&mut self, pages: Range<u64>, state: PageState, fate: MapPageFate) {
        let described = self.rule.pages_per_map_page;
        let mut at = pages.start;
        while at < pages.end {
            let map_page = at / described;
            if self.open.last().is_some_and(|(open, ..)| open.start / described != map_page) {
                self.close_map_page();
            }
            let whole = pages.end / described * described;
            if at.is_multiple_of(described) && at < whole {
                let stay = if fate == MapPageFate::Mapped { map_page..whole / described } else { 0..0 };
                let kept = (stay.end - stay.start) as f64;
                self.keep(stay);
                (self.visit)(Part { pages: at..whole, state, fate, kept });
                at = whole;
            } else {
                let stop = pages.end.min((map_page + 1) * described);
                self.open.push((at..stop, state, fate == MapPageFate::Mapped));
                at = stop;
            }
        }
    }

    /// Ends the map page that is open.
    fn close_map_page(&mut self) {
        let length = |pages: &Range<u64>| pages.end - pages.start;
        let keeping: u64 = self.open.iter().filter(|part| part.2).map(|part| length(&part.0)).sum();
        if keeping > 0
            && let Some((pages, ..)) = self.open.first()
        {
            let map_page = pages.start / self.rule.pages_per_map_page;
            self.keep(map_page..map_page + 1);
        }
        let fate = if keeping > 0 { MapPageFate::Mapped } else { MapPageFate::Free };
        for (pages, state, keeps) in self.open.drain(..) {
            let kept = if keeps { length(&pages) as f64 / keeping as f64 } else { 0.0 };
            (self.visit)(Part { pages, state, fate, kept });
        }
    }

    /// Counts map pages that stay, and the page tables above them.
    fn keep(&mut self, map_pages: Range<u64>) {
        if map_pages.is_empty() {
            return;
        }
        self.left.map_pages += map_pages.end - map_pages.start;
        let first = (map_pages.start / MAP_PAGES_PER_TABLE).max(self.next_table);
        self.next_table = map_pages.end.div_ceil(MAP_PAGES_PER_TABLE).max(first);
        self.left.page_tables += self.next_table - first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fates, joined, and how many map pages stay.
    fn fates(extents: &[(u64, u64, u32, PageState)]) -> (Vec<(u64, u64, MapPageFate)>, u64) {
        let mut seen: Vec<(u64, u64, MapPageFate)> = Vec::new();
        let mut shared = 0.0;
        let extents = extents.iter().map(|&(start, pages, order, state)| Extent {
            start,
            pages,
            order,
            state,
            mapcount: 0,
            optimised: false,
        });
        let kept = parts(Rule::PAGE, extents, |part| {
            shared += part.kept;
            let pages = part.pages.end - part.pages.start;
            match seen.last_mut() {
                Some(last) if last.0 + last.1 == part.pages.start && last.2 == part.fate => last.1 += pages,
                _ => seen.push((part.pages.start, pages, part.fate)),
            }
        });
        assert_eq!(shared.round() as u64, kept.map_pages);
        (seen, kept.map_pages)
    }

    use MapPageFate::{Absent, Free, Mapped, Offline, Tail};

    #[test]
    fn one_used_page_keeps_its_map_page() {
        let free = |start, end| (start, end - start, 0, PageState::Free);
        assert_eq!(fates(&[free(0, 1024)]), (vec![(0, 1024, Free)], 0));
        let slab = fates(&[free(0, 100), (100, 1, 0, PageState::Slab), free(101, 1024)]);
        assert_eq!(slab, (vec![(0, 64, Free), (64, 64, Mapped), (128, 896, Free)], 1));
        let edge = fates(&[free(0, 127), (127, 130, 0, PageState::Anon), free(257, 1024)]);
        assert_eq!(edge, (vec![(0, 64, Free), (64, 256, Mapped), (320, 704, Free)], 4));
        // Poison is recorded beside the map.
        assert_eq!(fates(&[free(0, 9), (9, 1, 0, PageState::HwPoison), free(10, 64)]).1, 0);
    }

    #[test]
    fn large_folios_keep_the_map_page_of_their_head() {
        let anon = fates(&[(512, 1024, 9, PageState::Anon)]);
        let expected = vec![(512, 64, Mapped), (576, 448, Tail), (1024, 64, Mapped), (1088, 448, Tail)];
        assert_eq!(anon, (expected, 2));
        // Of 64 pages there is only that one.
        assert_eq!(fates(&[(0, 2048, 6, PageState::Anon)]), (vec![(0, 2048, Mapped)], 32));
        // Reserved memory is in blocks as large as fit: 512 + 128 + 1.
        assert_eq!(fates(&[(512, 641, 0, PageState::Reserved)]).1, 3);
    }

    #[test]
    fn odd_pages_at_the_ends_of_offline_memory_keep_their_map_pages() {
        let free = (260, 252, 0, PageState::Free);
        let offline = |state| fates(&[(0, 60, 0, PageState::Free), (60, 200, 0, state), free]);
        let expected =
            |fate| (vec![(0, 64, Mapped), (64, 192, fate), (256, 64, Mapped), (320, 192, Free)], 2);
        assert_eq!(offline(PageState::Offline), expected(Offline));
        assert_eq!(offline(PageState::NoPage), expected(Absent));
    }

    #[test]
    fn map_pages_without_all_of_their_memory_are_counted_once() {
        let free = |start, end| (start, end - start, 0, PageState::Free);
        let slab = (25, 1, 0, PageState::Slab);
        let (seen, kept) = fates(&[free(0, 10), free(20, 25), slab, free(26, 30), free(50, 70)]);
        assert_eq!(seen, [(0, 10, Mapped), (20, 10, Mapped), (50, 14, Mapped), (64, 6, Free)]);
        assert_eq!(kept, 1);
    }

    #[test]
    fn a_map_page_is_shared_out_by_pages_in_use() {
        let extent =
            |start, pages, state| Extent { start, pages, order: 0, state, mapcount: 0, optimised: false };
        let extents = [
            extent(0, 16, PageState::Anon),
            extent(16, 16, PageState::Free),
            extent(32, 32, PageState::Slab),
        ];
        let mut kept = Vec::new();
        let left = parts(Rule::PAGE, extents.into_iter(), |part| kept.push((part.kept * 3.0).round()));
        assert_eq!(left, Left { map_pages: 1, page_tables: 1, folios: 48 });
        assert_eq!(kept, [1.0, 0.0, 2.0]);
    }
}
