//! Physical memory by what its pages are used for.

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

/// Visits all of a machine's memory by state.
pub fn pieces(covered: impl Iterator<Item = Extent>, visit: &mut dyn FnMut(Piece)) {
    for Extent { start, pages, state, .. } in covered {
        visit(Piece { start, pages, category: category(state) });
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
}
