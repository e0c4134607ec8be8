//! Taking the memory behind parts of a reservation away again.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::{Gap, Reservation, under};
use crate::ENTRIES;
use crate::entry::{Entry, Level};
use crate::mmu::{Flush, Mmu, Slot};
use crate::part::{pages, parts};
use crate::shared::count;

/// Ranges that are flushed one by one; for more, everything is. Freeing must not need memory, so the list has a fixed length.
const LIST: usize = 64;

impl<M: Mmu> Reservation<'_, M> {
    /// Folds all of `ranges`, offsets that are multiples of 4 KiB: afterwards they read as zero and have no memory. One flush
    /// for all of them. Does nothing in a range that may never be unreadable.
    ///
    /// # Safety
    /// Nobody reads or writes the ranges until this returns, nor writes them until they are materialised again; and all who
    /// did have finished.
    pub unsafe fn fold(&self, ranges: impl Iterator<Item = Range<u64>> + Clone) {
        if self.gap == Gap::Never {
            return;
        }
        let _lock = self.lock.lock();
        let ranges = ranges.map(|bytes| self.addresses(&bytes));
        let broken: u64 = ranges.clone().map(|range| self.break_pages(range)).sum();
        if broken == 0 {
            return;
        }
        count(&self.shared.counts().fold_flushes, 1);
        count(&self.shared.counts().folded_entries, broken);
        let mut list = [const { 0..0 }; LIST];
        let length = ranges.clone().count();
        list.iter_mut().zip(ranges.clone()).for_each(|(slot, range)| *slot = range);
        self.shared.mmu().flush(list.get(..length).map_or(Flush::All, Flush::Ranges));
        ranges.clone().for_each(|range| self.make_zero(range));
        // Tables after all pages of the batch, and directories after all tables: several ranges may have parts of one.
        ranges.clone().for_each(|range| self.release_tables(range));
        ranges.for_each(|range| self.release_directories(range));
        self.pages.fetch_sub(broken, Ordering::Relaxed);
        self.shared.mmu().made(0..0);
    }

    /// Before the flush: breaks entries that lead to frames of their own, and those above that lead to none other any more.
    /// Returns how many of the first.
    fn break_pages(&self, range: Range<u64>) -> u64 {
        let mut broken = 0;
        for part in parts(range) {
            let Some((upper, middle, Some(table))) = self.way(part.start) else { continue };
            let mut here = 0;
            for page in pages(part) {
                let slot = under(table, page, 1);
                if self.is_frame(slot) {
                    self.break_entry(slot);
                    here += 1;
                }
            }
            broken += here;
            if here > 0 && self.change_count(middle, |count| count - here) == 0 {
                self.break_entry(middle);
                if self.change_count(upper, |count| count - 1) == 0 {
                    self.break_entry(upper);
                }
            }
        }
        broken
    }

    /// After the flush: what was broken becomes the zeroed frame, and frames are given back.
    fn make_zero(&self, range: Range<u64>) {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        for part in parts(range) {
            let Some((.., Some(table))) = self.way(part.start) else { continue };
            for page in pages(part) {
                let slot = under(table, page, 1);
                if !format.is_present(mmu.load(slot)) {
                    let old = mmu.swap(slot, self.shared.zero());
                    // SAFETY: its only entry was broken, and every processor has forgotten it.
                    unsafe { mmu.give(format.address(old)) };
                }
            }
        }
    }

    fn release_tables(&self, range: Range<u64>) {
        for part in parts(range) {
            if let Some((_, middle, Some(table))) = self.way(part.start) {
                self.release(middle, table, Level::Page, self.shared.shared_table());
            }
        }
    }

    fn release_directories(&self, range: Range<u64>) {
        for part in parts(range) {
            let upper = self.upper(part.start);
            if let Some(directory) = self.shared.own(upper) {
                self.release(upper, directory, Level::Table, self.shared.shared_directory());
            }
        }
    }

    /// Gives a table with entries of `level` back, if the entry that led to it is broken; `shared` takes its place.
    ///
    /// What was folded before may have been read through the table, and a processor may still remember that it is read-only.
    /// The accessed flags of its entries go with the table. So `shared` counts as used if one of them is set: the next table
    /// there is made with a flush of everything under it.
    fn release(&self, slot: Slot, table: u64, level: Level, shared: u64) {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        if format.is_present(mmu.load(slot)) {
            return;
        }
        let is_used = |index| !format.is_unused(mmu.load(Slot { table, index }), level);
        let shared = if (0..ENTRIES).any(is_used) { format.used(shared, Level::Table) } else { shared };
        mmu.swap(slot, shared);
        self.tables.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: its only entry was broken, every processor has forgotten it, and what it led to was broken too.
        unsafe { mmu.give(table) };
    }
}
