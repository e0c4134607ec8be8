//! What all reservations of a machine share: the zeroed frame, the tables that lead to it, and the counts.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::{Entry, Level};
use crate::mmu::{Mmu, NoFrames, Slot};
use crate::part::index;

/// Frames of [`Shared`].
pub const SHARED_FRAMES: u64 = 3;

/// How often what happened. Relaxed everywhere: nothing is concluded from one count about another.
#[derive(Debug, Default)]
pub struct Counts {
    /// Calls that materialised something and could do it by compare-and-swap alone.
    pub spared: AtomicU64,
    /// Calls that had to flush what was there before.
    pub unfold_flushes: AtomicU64,
    /// Entries of pages that were swapped, and that were broken and made or taken over in two steps.
    pub swapped: AtomicU64,
    /// See `swapped`.
    pub replaced: AtomicU64,
    /// Tables that took a shared one's place.
    pub tables_made: AtomicU64,
    /// Flushes for folding: one a batch.
    pub fold_flushes: AtomicU64,
    /// Entries of pages that folding took away.
    pub folded_entries: AtomicU64,
}

/// The zeroed frame, and the tables that lead to nothing else.
#[derive(Debug)]
pub struct Shared<M> {
    mmu: M,
    page: u64,
    table: u64,
    directory: u64,
    counts: Counts,
}

impl<M: Mmu> Shared<M> {
    /// Makes them.
    ///
    /// # Errors
    /// There are no frames for them.
    pub fn new(mmu: M) -> Result<Self, NoFrames> {
        let format = mmu.format();
        let mut frames = mmu.take(SHARED_FRAMES).ok_or(NoFrames)?;
        let mut next = || frames.next().ok_or(NoFrames);
        let (page, table, directory) = (next()?, next()?, next()?);
        drop(frames);
        mmu.fill(table, format.zero(page));
        mmu.fill(directory, format.branch(table));
        Ok(Shared { mmu, page, table, directory, counts: Counts::default() })
    }

    /// The machine.
    pub fn mmu(&self) -> &M {
        &self.mmu
    }

    /// How often what happened.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn format(&self) -> M::Entry {
        self.mmu.format()
    }

    /// The entries of the shared table and directory, and the entry that leads to the directory.
    pub(crate) fn zero(&self) -> u64 {
        self.format().zero(self.page)
    }
    pub(crate) fn shared_table(&self) -> u64 {
        self.format().branch(self.table)
    }
    pub(crate) fn shared_directory(&self) -> u64 {
        self.format().branch(self.directory)
    }

    /// The table that the entry in `slot` leads to, present or not, if it is not a shared one.
    pub(crate) fn own(&self, slot: Slot) -> Option<u64> {
        let table = self.format().address(self.mmu.load(slot));
        (table != 0 && table != self.table && table != self.directory).then_some(table)
    }

    /// An access flag fault at an address of a reservation: sets the flag, as hardware that manages it does. Whether there was
    /// one to set, so that the access may be repeated; it will not be refused for this reason again.
    ///
    /// For processors without hardware management of the flag, where somebody looks at what is folded.
    pub fn note_access(&self, address: u64) -> bool {
        let format = self.format();
        let mut slot = self.mmu.upper(address);
        for level in [2, 1] {
            let word = self.mmu.load(slot);
            if !format.is_present(word) {
                return false;
            }
            slot = Slot { table: format.address(word), index: index(address, level) };
        }
        let word = self.mmu.load(slot);
        // A swap that fails finds the entry changed: the access is repeated, and finds what is there then.
        format.is_present(word)
            && (!format.is_unused(word, Level::Page)
                || self.mmu.compare_exchange(slot, word, format.used(word, Level::Page)).is_ok()
                || format.is_present(self.mmu.load(slot)))
    }
}

/// Counts one more. See [`Counts`] for the order.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
