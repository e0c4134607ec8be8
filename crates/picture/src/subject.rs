//! What a picture shows.

use std::ops::Range;

use crate::amount::Units;
use crate::palette::Palette;

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
    pub zones: Vec<ZoneSpan>,
    /// Bytes in a page.
    pub page_bytes: u64,
    /// How amounts of memory are written.
    pub units: Units,
    /// The categories.
    pub palette: &'static Palette,
    /// A last column of the legend.
    pub extra: Option<Extra>,
    /// Memory that repeats itself, from page 0 on.
    pub repeated: Option<Repeated<'a>>,
    /// Hands every piece of the rest of the memory, which comes after that, to a visitor, in ascending order.
    pub pieces: &'a VisitPieces<'a>,
}

/// Memory whose pieces come again and again: they are visited once, however often that is.
#[derive(Clone, Copy)]
pub struct Repeated<'a> {
    /// Hands the pieces of the first time to a visitor, in ascending order. All of them lie below `span`.
    pub pieces: &'a VisitPieces<'a>,
    /// Pages from each time to the next.
    pub span: u64,
    /// How often.
    pub times: u64,
}

/// Hands every piece of the memory to a visitor.
pub type VisitPieces<'a> = dyn Fn(&mut dyn FnMut(Piece)) + 'a;

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

/// A zone: the page numbers from its first page to its last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneSpan {
    /// The node that it belongs to.
    pub node: u32,
    /// Its name.
    pub name: String,
    /// First page.
    pub start: u64,
    /// Pages from the first to the last, holes included.
    pub pages: u64,
}
