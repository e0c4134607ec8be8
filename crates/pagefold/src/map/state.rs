//! Physical memory by what its pages are used for.

use std::iter::Peekable;
use std::ops::Range;

use pagefold_machine::{Extent, PageState};

use crate::picture::Piece;
use crate::picture::palette::{
    BLACK, BLUE, Category, Color, GREEN, GREY, ORANGE, PURPLE, Palette, SKY, VERMILION, WHITE, YELLOW,
};

/// Categories in the order of [`STATES`].
pub static PALETTE: Palette = Palette {
    categories: &[
        Category::quiet("free", '.', Color(0xdf, 0xe5, 0xea), Color(0x2b, 0x34, 0x3d)),
        Category::quiet("free, not initialised", ',', Color(0xc9, 0xd3, 0xdb), Color(0x3e, 0x4a, 0x55)),
        Category::quiet("no memory", '-', Color(0xf4, 0xf4, 0xf4), Color(0x1c, 0x20, 0x24)),
        Category::new("anonymous", 'A', BLUE),
        Category::new("page cache", 'C', SKY),
        Category::new("slab", 'S', ORANGE),
        Category::new("page tables", 'T', VERMILION),
        Category::new("hugetlb", 'H', GREEN),
        Category::new("other kernel", 'K', PURPLE),
        Category::new("reserved", 'R', GREY),
        Category::new("offline", 'O', YELLOW),
        Category::quiet("poisoned", '!', BLACK, WHITE),
    ],
    quiet: 3,
    alarm: Some(11),
    rule: "A cell shows what most of its pages in use are",
    steps: [10, 33, 66],
};

/// The states, background first, as the palette has them.
pub const STATES: [PageState; 12] = [
    PageState::Free,
    PageState::Deferred,
    PageState::NoPage,
    PageState::Anon,
    PageState::File,
    PageState::Slab,
    PageState::PageTable,
    PageState::Hugetlb,
    PageState::Kernel,
    PageState::Reserved,
    PageState::Offline,
    PageState::HwPoison,
];

/// The category of a state.
pub fn category(state: PageState) -> usize {
    STATES.iter().position(|&other| other == state).unwrap_or(0)
}

/// Visits all of `memory` by state.
pub fn pieces(
    memory: impl Iterator<Item = Range<u64>>,
    extents: impl Iterator<Item = Extent>,
    visit: &mut dyn FnMut(Piece),
) {
    covered(memory, extents, &mut |extent| {
        visit(Piece { start: extent.start, pages: extent.pages, category: category(extent.state) });
    });
}

/// Visits `extents`, and as free ones the parts of `memory` that none of them speaks of. Both in ascending order.
pub fn covered(
    memory: impl Iterator<Item = Range<u64>>,
    extents: impl Iterator<Item = Extent>,
    visit: &mut dyn FnMut(Extent),
) {
    let mut memory = memory.peekable();
    let mut at = 0;
    for extent in extents {
        free_until(&mut memory, &mut at, extent.start, visit);
        visit(extent);
        at = extent.start + extent.pages;
    }
    free_until(&mut memory, &mut at, u64::MAX, visit);
}

fn free_until(
    memory: &mut Peekable<impl Iterator<Item = Range<u64>>>,
    at: &mut u64,
    until: u64,
    visit: &mut dyn FnMut(Extent),
) {
    while let Some(range) = memory.peek().filter(|range| range.start < until) {
        let (start, end) = (range.start.max(*at), range.end.min(until));
        if start < end {
            visit(Extent { start, pages: end - start, order: 0, state: PageState::Free, mapcount: 0 });
            *at = end;
        }
        if range.end > until {
            return;
        }
        memory.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_category() {
        for state in PageState::ALL {
            assert_eq!(PALETTE.categories[category(state)].name, state.name());
        }
    }

    #[test]
    fn memory_that_nothing_is_said_of_is_free() {
        let extent = |start, pages| Extent { start, pages, order: 0, state: PageState::Slab, mapcount: 0 };
        let mut seen = Vec::new();
        // The second extent spans two ranges that touch.
        let memory = [1..10, 20..30, 30..40, 50..60];
        let extents = [extent(3, 4), extent(25, 10), extent(35, 5)];
        pieces(memory.into_iter(), extents.into_iter(), &mut |piece| {
            seen.push((piece.start, piece.pages, STATES[piece.category]));
        });
        let (free, slab) = (PageState::Free, PageState::Slab);
        let expected = [
            (1, 2, free),
            (3, 4, slab),
            (7, 3, free),
            (20, 5, free),
            (25, 10, slab),
            (35, 5, slab),
            (50, 10, free),
        ];
        assert_eq!(seen, expected);
    }
}
