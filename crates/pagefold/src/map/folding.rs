//! Physical memory by what folding leaves of its descriptors: computed, not measured.

use pagefold_machine::Extent;
use pagefold_machine::folding::{Rule, parts};

use pagefold_picture::Piece;
use pagefold_picture::palette::{BLUE, Category, Color, GREEN, Palette, YELLOW};

pub use pagefold_machine::folding::MapPageFate;

/// Categories in the order of [`MapPageFate`].
pub static PALETTE: Palette = Palette {
    categories: &[
        Category::two_toned("folded: free", '.', Color(0xdf, 0xe5, 0xea), Color(0x2b, 0x34, 0x3d)),
        Category::two_toned(
            "no descriptors: no memory",
            '-',
            Color(0xf4, 0xf4, 0xf4),
            Color(0x1c, 0x20, 0x24),
        ),
        Category::new("folded: tails of large folios", 'T', GREEN),
        Category::new("folded: offline", 'O', YELLOW),
        Category::new("materialised", 'M', BLUE),
    ],
    quiet: 2,
    alarm: None,
    rule: "A cell shows what most of its pages have that are not free",
    steps: [10, 33, 66],
};

/// Visits all of a machine's memory by what becomes of its map pages. Returns how many stay materialised.
pub fn pieces(covered: impl Iterator<Item = Extent>, visit: &mut dyn FnMut(Piece)) -> u64 {
    let left = parts(Rule::PAGE, covered, |part| {
        let pages = part.pages.end - part.pages.start;
        visit(Piece { start: part.pages.start, pages, category: part.fate as usize });
    });
    left.map_pages
}
