//! Pages marked one by one, beside the map: a bit a page, in rows of 64, so that folded descriptors can have marks too.
//!
//! There are three sets:
//!
//! | set | its pages | a bit is set by | and cleared |
//! |---|---|---|---|
//! | *holes* | without memory, in a map page that is only partly present | the code that adds memory, before it is free | by the code that adds it after all |
//! | *poison* | whose memory is broken, in use or not | the code that records it | never |
//! | *withheld* | kept back from their zone's allocator because of poison | the page's owner in the allocator | by its next owner, when its memory goes |
//!
//! Poisoned and withheld are two facts. A poisoned page may be in use: its folio stays as it is, and the page is withheld
//! when it is freed. The poison mark in a descriptor is a copy for dumps, put back when the map page is unfolded.
//!
//! # The invariant
//!
//! *A withheld page is poisoned, taken from its zone's allocator, in no folio, and nobody owns it.* The same is true of a
//! hole, but for the poison. So a map page whose other pages are all free, or one owner's, is that owner's as a whole:
//! the folder and memory hotplug rest on that, and [`Engine::audit`](crate::Engine::audit) checks it. Where no memory is
//! (`Absent`, `Offline`), nothing is withheld: the poison mark stays, and the page is withheld again when its memory comes
//! back.
//!
//! # How poison and allocation meet
//!
//! A poisoned page is never handed out, and is kept back from when it is free. An allocation looks at the poison *after* taking
//! the pages, and keeps back what is poisoned of them. Recording poison sets the bit *before* trying to take the page; freeing
//! looks *after* giving the pages back, and tries to take what is poisoned. Both try by a read-modify-write of the page's row
//! or lane, even where the page turns out to be taken ([`Frames::take_free_of`](crate::frames::Frames::take_free_of)). So
//! whichever of the two comes second sees what the first has done, and one of them takes the page.
//!
//! A CPU that must see a mark comes after the CPU that made it, at a row, at a lane, or at a folder's hint. A CPU that sees a mark
//! earlier may note the page as withheld at once, in memory that was made for that before the mark: hence Acquire and Release
//! here. A page that was taken for a moment only (a block that is not all free, an isolation that fails) is given back as a page
//! that was in use, since poison that was recorded meanwhile was left to that.
//!
//! Recording makes room for all that withholding needs, in both zones, so that withholding cannot fail for lack of memory.

use core::ops::Range;

use crate::geometry::{Pfn, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{AtomicU64, Ordering};
use crate::table::Table;

pub(crate) struct Marks<M> {
    rows: Table<AtomicU64, M>,
    pages: AtomicU64,
}

impl<M: Mapping> Marks<M> {
    pub(crate) fn new(rows: Table<AtomicU64, M>) -> Self {
        Self { rows, pages: AtomicU64::new(0) }
    }

    pub(crate) fn mapping(&self) -> &M {
        self.rows.mapping()
    }

    /// Marked pages. For poison that is 0 almost everywhere, which spares everyone a look at the bits.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        // Acquire: pairs with `mark`.
        self.pages.load(Ordering::Acquire)
    }

    /// The marked pages of one row, as a mask.
    #[inline]
    pub(crate) fn mask(&self, row: Row) -> u64 {
        if self.pages() == 0 {
            return 0;
        }
        // Acquire: pairs with `mark`.
        self.rows.get(row.0).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether `pfn` is marked.
    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        self.mask(pfn.row()) & pfn.bit() != 0
    }

    /// Makes room for marks in `row`, so that marking cannot fail.
    pub(crate) fn ensure(&self, row: Row) -> Result<(), OutOfMemory> {
        self.rows.materialise(row.0..row.0 + 1)
    }

    /// Marks the pages of `mask`, for which there is room. Returns those that are new.
    pub(crate) fn mark(&self, row: Row, mask: u64) -> u64 {
        if mask == 0 {
            // Nothing was ensured for it either.
            return 0;
        }
        // Counted first: the bits may not be skipped while one of them is set. Release: who sees the count or the bit sees the
        // room that was made before, here and in other sets.
        self.pages.fetch_add(u64::from(mask.count_ones()), Ordering::AcqRel);
        let before = self.rows.get(row.0).map_or(mask, |word| word.fetch_or(mask, Ordering::AcqRel));
        self.pages.fetch_sub(u64::from((before & mask).count_ones()), Ordering::AcqRel);
        mask & !before
    }

    /// Clears the marks of `mask`. The caller owns the pages.
    pub(crate) fn unmark(&self, row: Row, mask: u64) {
        if mask != 0
            && let Some(word) = self.rows.get(row.0)
        {
            let before = word.fetch_and(!mask, Ordering::AcqRel);
            self.pages.fetch_sub(u64::from((before & mask).count_ones()), Ordering::AcqRel);
        }
    }

    /// Clears all marks of `rows`. The caller owns the pages that are marked.
    pub(crate) fn clear(&self, rows: Range<u64>) {
        if self.pages() == 0 {
            return;
        }
        for row in self.rows.slice(rows) {
            // A row without marks may have nothing behind it. Acquire: pairs with `mark`.
            if row.load(Ordering::Acquire) != 0 {
                let before = row.swap(0, Ordering::AcqRel);
                self.pages.fetch_sub(u64::from(before.count_ones()), Ordering::AcqRel);
            }
        }
    }
}
