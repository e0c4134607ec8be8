//! Pages by category, counted into cells.

use std::ops::Range;

use crate::axis::Axis;
use crate::subject::Piece;

/// A count of pages for each category and slot of an axis.
#[derive(Clone, Debug)]
pub struct Cells {
    categories: usize,
    counts: Vec<u64>,
    totals: Vec<u64>,
    /// The span in which the last piece lay.
    span: usize,
}

impl Cells {
    /// No pages in any slot.
    pub fn new(axis: &Axis, categories: usize) -> Cells {
        let slots = usize::try_from(axis.slots()).unwrap_or(0);
        Cells { categories, counts: vec![0; slots * categories], totals: vec![0; categories], span: 0 }
    }

    /// Counts a piece. Pieces in ascending order cost least. Pages that have no slot are left out.
    pub fn add(&mut self, axis: &Axis, piece: Piece) {
        let unit = axis.unit();
        let end = piece.start + piece.pages;
        let mut at = piece.start;
        while at < end {
            let cell = at / unit;
            let spans = axis.spans();
            if !spans.get(self.span).is_some_and(|span| span.cells.contains(&cell)) {
                self.span = spans.partition_point(|span| span.cells.end <= cell);
            }
            let Some(span) = spans.get(self.span) else { return };
            if span.is_hole || cell < span.cells.start {
                let next = if span.is_hole { span.cells.end } else { span.cells.start };
                at = end.min(next.saturating_mul(unit));
                continue;
            }
            let stop = end.min((cell + 1).saturating_mul(unit));
            let slot = span.slots.start + (cell - span.cells.start);
            self.counts[slot as usize * self.categories + piece.category] += stop - at;
            self.totals[piece.category] += stop - at;
            at = stop;
        }
    }

    /// Pages of a slot, by category.
    pub fn pages(&self, slot: u64) -> &[u64] {
        let at = slot as usize * self.categories;
        self.counts.get(at..at + self.categories).unwrap_or(&[])
    }

    /// Pages of all slots, by category.
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// All slots.
    pub fn slots(&self) -> Range<u64> {
        0..(self.counts.len() / self.categories.max(1)) as u64
    }
}
