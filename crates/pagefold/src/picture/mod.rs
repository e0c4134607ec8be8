//! Pictures of physical memory: a grid of cells, each of which stands for many pages.
//!
//! * [`args`] are the arguments that all commands with a picture share.
//! * [`axis`] lays page numbers out in a row of slots, holes made short.
//! * [`layout`] turns slots into places: line by line, or along a Hilbert curve.
//! * [`cells`] counts pages by category and cell. Its size follows the picture, not the machine.
//! * [`palette`] says what categories there are, and how a cell with several looks.
//! * [`grid`] is the three together: memory, counted into cells at their places.
//! * [`zones`] finds zones on a grid.
//! * [`draw`] makes a [`scene`] of a grid and its [`legend`], which [`svg`] and [`png`] write.
//! * [`terminal`] writes text, [`output`] files.

pub mod args;
pub mod axis;
pub mod cells;
pub mod draw;
pub mod grid;
pub mod layout;
pub mod legend;
pub mod output;
pub mod palette;
pub mod png;
pub mod scene;
pub mod svg;
pub mod terminal;
pub mod text;
pub mod zones;

use std::ops::Range;

use pagefold_machine::Zone;

use self::palette::Palette;
use crate::size::Units;

/// Adjacent pages of one category.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First page.
    pub start: u64,
    /// Pages.
    pub pages: u64,
    /// Index into the palette's categories.
    pub category: usize,
}

/// What a picture shows.
pub struct Subject<'a> {
    /// The headline: which machine.
    pub title: String,
    /// What else is to be said about it, a line each.
    pub notes: Vec<String>,
    /// Where memory is, in pages: ascending, without overlap.
    pub memory: Vec<Range<u64>>,
    /// Its zones, if their boundaries mean something here.
    pub zones: &'a [Zone],
    /// Bytes in a page.
    pub page_bytes: u64,
    /// How amounts of memory are written.
    pub units: Units,
    /// The categories.
    pub palette: &'static Palette,
    /// A last column of the legend.
    pub extra: Option<Extra>,
    /// Hands every piece of the memory to a visitor, in ascending order.
    pub pieces: &'a Pieces<'a>,
}

/// Visits pieces.
pub type Pieces<'a> = dyn Fn(&mut dyn FnMut(Piece)) + 'a;

/// A last column of the legend: bytes of something, by category.
pub struct Extra {
    /// What they are.
    pub title: &'static str,
    /// Bytes by category.
    pub bytes: Vec<u64>,
}

impl Subject<'_> {
    /// The page numbers without memory around `pages`, none of which has any: to the page, where a picture has cells.
    pub fn hole_around(&self, pages: Range<u64>) -> Range<u64> {
        let next = self.memory.partition_point(|range| range.start < pages.start);
        let start = next.checked_sub(1).and_then(|before| self.memory.get(before)).map(|range| range.end);
        let end = self.memory.get(next).map(|range| range.start);
        start.unwrap_or(pages.start)..end.unwrap_or(pages.end)
    }

    /// Page numbers between the first page and the last that have no memory.
    pub fn hole_pages(&self) -> u64 {
        match (self.memory.first(), self.memory.last()) {
            (Some(first), Some(last)) => (last.end - first.start).saturating_sub(self.pages()),
            _ => 0,
        }
    }

    /// So many pages, as an amount of memory in a table.
    pub fn memory_of(&self, pages: u64) -> String {
        self.units.show(pages.saturating_mul(self.page_bytes))
    }

    /// So many pages, as an amount of memory in a sentence.
    pub fn words_of(&self, pages: u64) -> String {
        self.units.words(pages.saturating_mul(self.page_bytes))
    }

    /// Pages of memory.
    pub fn pages(&self) -> u64 {
        self.memory.iter().map(|range| range.end - range.start).sum()
    }
}
