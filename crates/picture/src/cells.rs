//! Pages by category, counted into cells.

use std::ops::Range;

use crate::axis::Axis;
use crate::subject::{Piece, Repeated};

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

    /// Counts pieces that repeat themselves. The cost is that of the pieces once, and of the slots: what lies in a slot is
    /// the difference of what lies below its ends, and that of whole times and a part of one.
    pub fn add_repeated(&mut self, axis: &Axis, repeated: &Repeated<'_>) {
        let Repeated { pieces, span, times } = *repeated;
        if span == 0 || times == 0 {
            return;
        }
        let (unit, all) = (axis.unit(), span.saturating_mul(times));
        // The first page of each slot with memory, and the one after its last; how far into a time each lies.
        let ends = |cell: u64| [cell, cell + 1].map(|cell| cell.saturating_mul(unit).min(all));
        let within = |page: u64| if page == all { span } else { page % span };
        let spans = || axis.spans().iter().filter(|span| !span.is_hole);
        let cells = || spans().flat_map(|span| span.cells.clone().zip(span.slots.clone()));
        let mut offsets: Vec<u64> = cells().flat_map(|(cell, _)| ends(cell)).map(within).collect();
        offsets.push(span);
        offsets.sort_unstable();
        offsets.dedup();
        // Pages below each of them, by category.
        let mut below = vec![0; offsets.len() * self.categories];
        let mut sums = vec![0u64; self.categories];
        let mut next = 0;
        let categories = self.categories;
        let mut note = |until: u64, sums: &[u64], part: Option<Piece>| {
            while let Some(&offset) = offsets.get(next).filter(|&&offset| offset <= until) {
                let counts = &mut below[next * categories..(next + 1) * categories];
                counts.copy_from_slice(sums);
                if let Some(piece) = part {
                    counts[piece.category] += offset.saturating_sub(piece.start);
                }
                next += 1;
            }
        };
        pieces(&mut |piece| {
            note(piece.start, &sums, None);
            note(piece.start + piece.pages, &sums, Some(piece));
            sums[piece.category] += piece.pages;
        });
        note(u64::MAX, &sums, None);
        let at = |page: u64| {
            let place = offsets.binary_search(&within(page)).unwrap_or(0);
            let whole = if page == all { times - 1 } else { page / span };
            (whole, &below[place * categories..(place + 1) * categories])
        };
        for (cell, slot) in cells() {
            let [start, end] = ends(cell);
            let (low, high) = (at(start), at(end));
            for category in 0..categories {
                let of_time = |(whole, counts): (u64, &[u64])| whole * sums[category] + counts[category];
                let pages = of_time(high) - of_time(low);
                self.counts[slot as usize * categories + category] += pages;
                self.totals[category] += pages;
            }
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
