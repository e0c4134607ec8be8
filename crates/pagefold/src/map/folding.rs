//! Physical memory by what folding leaves of its descriptors: computed, not measured.
//!
//! The rules are those by which `pagefold replay` loads a machine into the engine and folds it; a test holds the two
//! against each other. One map page describes 64 pages:
//!
//! * folios of 128 pages (512 KiB) or more keep the map page with their head; the others become `Tail`;
//! * map pages whose pages are all free become `Free`, those whose pages are all offline `Offline`;
//! * all others stay.

use std::ops::Range;

use pagefold_engine::geometry::PAGES_PER_MAP_PAGE;
use pagefold_engine::{Order, Pfn};
use pagefold_machine::{Extent, PageState};

use crate::picture::Piece;
use crate::picture::palette::{BLUE, Category, Color, GREEN, Palette, YELLOW};

/// Categories in the order of [`Fate`].
pub static PALETTE: Palette = Palette {
    categories: &[
        Category::quiet("folded: free", '.', Color(0xdf, 0xe5, 0xea), Color(0x2b, 0x34, 0x3d)),
        Category::quiet("no descriptors: no memory", '-', Color(0xf4, 0xf4, 0xf4), Color(0x1c, 0x20, 0x24)),
        Category::new("folded: tails of large folios", 'T', GREEN),
        Category::new("folded: offline", 'O', YELLOW),
        Category::new("materialised", 'M', BLUE),
    ],
    quiet: 2,
    alarm: None,
    rule: "A cell shows what most of its pages have that are not free",
    steps: [10, 33, 66],
};

/// What becomes of a map page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Free,
    Absent,
    Tail,
    Offline,
    Mapped,
}

/// Visits all of a machine's memory by what becomes of its map pages. Returns how many stay materialised.
pub fn pieces(covered: impl Iterator<Item = Extent>, visit: &mut dyn FnMut(Piece)) -> u64 {
    let mut fates = Fates { open: Open::default(), mapped: 0, visit };
    covered.for_each(|extent| fates.extent(&extent));
    fates.close();
    fates.mapped
}

/// The map page that is being put together.
#[derive(Default)]
struct Open {
    map_page: u64,
    is_mapped: bool,
    /// Its pages with memory.
    parts: Vec<(u64, u64)>,
}

struct Fates<'v> {
    open: Open,
    mapped: u64,
    visit: &'v mut dyn FnMut(Piece),
}

impl Fates<'_> {
    fn extent(&mut self, extent: &Extent) {
        let Extent { start, pages, order, state, .. } = *extent;
        let end = start + pages;
        match state {
            // Poisoned pages are recorded beside the map.
            PageState::Free | PageState::Deferred | PageState::HwPoison => self.add(start..end, Fate::Free),
            PageState::Offline | PageState::NoPage => {
                let fate = if state == PageState::Offline { Fate::Offline } else { Fate::Absent };
                let whole =
                    start.next_multiple_of(PAGES_PER_MAP_PAGE)..end / PAGES_PER_MAP_PAGE * PAGES_PER_MAP_PAGE;
                if whole.start >= whole.end {
                    return self.add(start..end, Fate::Mapped);
                }
                // The odd pages at its ends share their map pages with others.
                self.add(start..whole.start, Fate::Mapped);
                self.add(whole.clone(), fate);
                self.add(whole.end..end, Fate::Mapped);
            }
            // One owner's, and never given back page by page: blocks as large as fit.
            PageState::Reserved => {
                let mut at = start;
                while at < end {
                    let order = Order::fitting(Pfn(at), end - at);
                    self.folio(at, order);
                    at += order.pages();
                }
            }
            _ => match Order::new(order).filter(|order| order.is_foldable()) {
                Some(order) => {
                    (start..end).step_by(order.pages() as usize).for_each(|head| self.folio(head, order));
                }
                None => self.add(start..end, Fate::Mapped),
            },
        }
    }

    fn folio(&mut self, head: u64, order: Order) {
        let end = head + order.pages();
        let kept = end.min(head + PAGES_PER_MAP_PAGE);
        self.add(head..kept, Fate::Mapped);
        self.add(kept..end, Fate::Tail);
    }

    /// Pages whose map pages meet a fate, as far as their neighbours have no other.
    fn add(&mut self, pages: Range<u64>, fate: Fate) {
        let mut at = pages.start;
        while at < pages.end {
            let map_page = at / PAGES_PER_MAP_PAGE;
            if map_page != self.open.map_page {
                self.close();
                self.open.map_page = map_page;
            }
            let whole = pages.end / PAGES_PER_MAP_PAGE * PAGES_PER_MAP_PAGE;
            let stop = if at.is_multiple_of(PAGES_PER_MAP_PAGE) && at < whole {
                self.close();
                self.emit(at, whole - at, fate);
                self.mapped += if fate == Fate::Mapped { (whole - at) / PAGES_PER_MAP_PAGE } else { 0 };
                whole
            } else {
                let stop = pages.end.min((map_page + 1) * PAGES_PER_MAP_PAGE);
                self.open.parts.push((at, stop - at));
                self.open.is_mapped |= fate == Fate::Mapped;
                stop
            };
            at = stop;
        }
    }

    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.parts.is_empty() {
            return;
        }
        self.mapped += u64::from(open.is_mapped);
        let fate = if open.is_mapped { Fate::Mapped } else { Fate::Free };
        open.parts.into_iter().for_each(|(start, pages)| self.emit(start, pages, fate));
    }

    fn emit(&mut self, start: u64, pages: u64, fate: Fate) {
        (self.visit)(Piece { start, pages, category: fate as usize });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::covered::Covered;
    use std::slice::from_ref;

    fn fates(memory: &[Range<u64>], extents: &[(u64, u64, u32, PageState)]) -> (Vec<(u64, u64, usize)>, u64) {
        let mut seen: Vec<(u64, u64, usize)> = Vec::new();
        let extents = extents.iter().map(|&(start, pages, order, state)| Extent {
            start,
            pages,
            order,
            state,
            mapcount: 0,
        });
        let mapped =
            pieces(Covered::new(memory.iter().cloned(), extents), &mut |piece| match seen.last_mut() {
                Some(last) if last.0 + last.1 == piece.start && last.2 == piece.category => {
                    last.1 += piece.pages
                }
                _ => seen.push((piece.start, piece.pages, piece.category)),
            });
        (seen, mapped)
    }

    const FREE: usize = Fate::Free as usize;
    const TAIL: usize = Fate::Tail as usize;
    const OFFLINE: usize = Fate::Offline as usize;
    const MAPPED: usize = Fate::Mapped as usize;

    #[test]
    fn one_used_page_keeps_its_map_page() {
        let memory = from_ref(&(0..1024));
        assert_eq!(fates(memory, &[]), (vec![(0, 1024, FREE)], 0));
        let slab = fates(memory, &[(100, 1, 0, PageState::Slab)]);
        assert_eq!(slab, (vec![(0, 64, FREE), (64, 64, MAPPED), (128, 896, FREE)], 1));
        let edge = fates(memory, &[(127, 130, 0, PageState::Anon)]);
        assert_eq!(edge, (vec![(0, 64, FREE), (64, 256, MAPPED), (320, 704, FREE)], 4));
    }

    #[test]
    fn large_folios_keep_the_map_page_of_their_head() {
        let memory = from_ref(&(0..2048));
        let anon = fates(memory, &[(512, 1024, 9, PageState::Anon)]);
        let expected = vec![
            (0, 512, FREE),
            (512, 64, MAPPED),
            (576, 448, TAIL),
            (1024, 64, MAPPED),
            (1088, 448, TAIL),
            (1536, 512, FREE),
        ];
        assert_eq!(anon, (expected, 2));
        // Of 64 pages there is only that one.
        assert_eq!(fates(memory, &[(0, 2048, 6, PageState::Anon)]), (vec![(0, 2048, MAPPED)], 32));
        // Reserved memory is in blocks as large as fit: 512 + 128 + 1.
        let reserved = fates(memory, &[(512, 641, 0, PageState::Reserved)]);
        assert_eq!(reserved.1, 3);
    }

    #[test]
    fn odd_pages_at_the_ends_of_offline_memory_keep_their_map_pages() {
        let memory = from_ref(&(0..512));
        let offline = fates(memory, &[(60, 200, 0, PageState::Offline)]);
        assert_eq!(
            offline,
            (vec![(0, 64, MAPPED), (64, 192, OFFLINE), (256, 64, MAPPED), (320, 192, FREE)], 2)
        );
    }

    #[test]
    fn map_pages_without_all_of_their_memory_are_counted_once() {
        let memory = [0..10, 20..30, 50..70];
        let (seen, mapped) = fates(&memory, &[(25, 1, 0, PageState::Slab)]);
        assert_eq!(seen, [(0, 10, MAPPED), (20, 10, MAPPED), (50, 14, MAPPED), (64, 6, FREE)]);
        assert_eq!(mapped, 1);
    }
}
