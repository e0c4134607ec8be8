//! Folding and unfolding the same huge folios over and over, under the walkers' eyes.

use alloc::vec::Vec;
use core::ops::Range;
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{FoldBatch, Frozen, Kind, Order, OutOfMemory, Platform};

use crate::index::Index;
use crate::owner::{gather, share};
use crate::stamp::Stamp;

/// What the rounds did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CycleCounts {
    /// Folios that were folded, and unfolded again.
    pub cycles: u64,
    /// Rounds of all folios: grace periods, and flushes.
    pub rounds: u64,
    /// Map pages given back.
    pub folded: u64,
    /// Map pages materialised again.
    pub unfolded: u64,
    /// Times that a folio could not be gathered because a walker held a piece.
    pub busy: u64,
    /// Times that there was no memory for a folio or its descriptors.
    pub no_memory: u64,
}

/// Folios of 2 MiB that are one folio each, folded, in one half of a round, and pieces of 32 KiB that anyone may find in
/// the other: the heads of pieces are the descriptors that go, so a walker that comes late writes where nothing is.
///
/// One grace period and one flush a round.
pub struct CycleTask<'a, 'e, P: Platform<Owner = Stamp>> {
    index: &'a Index<'e, P>,
    windows: Range<usize>,
    batch: FoldBatch<'e, P>,
    pieces: Vec<Frozen<'e, P>>,
    counts: CycleCounts,
}

const PIECES: usize = 64;

impl<'a, 'e, P: Platform<Owner = Stamp>> CycleTask<'a, 'e, P> {
    /// Nothing yet. `windows` of the index are for this task alone: a folio each.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(index: &'a Index<'e, P>, windows: Range<usize>) -> Result<Self, OutOfMemory> {
        let batch = index.engine().fold_batch(windows.len().max(1))?;
        Ok(Self { index, windows, batch, pieces: Vec::new(), counts: CycleCounts::default() })
    }

    /// What it did so far.
    pub fn counts(&self) -> CycleCounts {
        self.counts
    }

    /// Gathers every folio and folds it, then breaks it up again. A folio that a walker holds on to waits for the next
    /// round.
    pub fn round(&mut self) {
        for number in self.windows.clone() {
            if self.is_empty(number) {
                self.fill(number);
            }
        }
        for number in self.windows.clone() {
            if let Some(whole) = self.gather(number)
                && let Err((whole, _)) = self.batch.push(whole)
            {
                self.counts.no_memory += 1;
                self.scatter(whole, number);
            }
        }
        self.counts.folded += self.batch.commit().map_pages;
        self.counts.rounds += 1;
        let mut wholes: Vec<_> = self.batch.drain().collect();
        self.counts.cycles += wholes.len() as u64;
        for number in self.windows.clone() {
            if self.is_empty(number)
                && let Some(whole) = wholes.pop()
            {
                self.scatter(whole, number);
            }
        }
    }

    /// Frees everything.
    pub fn finish(&mut self) {
        for number in self.windows.clone() {
            self.index.window(number).for_each(|at| drop(self.index.take(at)));
        }
    }

    fn is_empty(&self, number: usize) -> bool {
        self.index.window(number).all(|at| self.index.load(at).is_none())
    }

    fn fill(&mut self, number: usize) {
        match self.index.engine().alloc(Order::AREA, Kind::Anon) {
            Ok(whole) => self.scatter(whole, number),
            Err(_) => self.counts.no_memory += 1,
        }
    }

    /// Breaks a folio up into a window.
    fn scatter(&mut self, whole: Frozen<'e, P>, number: usize) {
        let Some(piece) = Order::new(Order::AREA.get() - PIECES.ilog2()) else { return };
        match whole.split(piece) {
            Ok(pieces) => {
                self.counts.unfolded += P::Descriptors::folding_map_pages(Order::AREA);
                for (at, piece) in self.index.window(number).zip(pieces) {
                    drop(self.index.put(at, share(piece)));
                }
            }
            // Freed.
            Err(_) => self.counts.no_memory += 1,
        }
    }

    /// The folio of a window's pieces, if no walker is on any of them.
    fn gather(&mut self, number: usize) -> Option<Frozen<'e, P>> {
        if !gather(self.index, self.index.window(number), &mut self.pieces) {
            self.counts.busy += 1;
            return None;
        }
        Frozen::collapse(core::mem::take(&mut self.pieces)).ok()
    }
}

impl<P: Platform<Owner = Stamp>> core::fmt::Debug for CycleTask<'_, '_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CycleTask").field("counts", &self.counts).finish_non_exhaustive()
    }
}
