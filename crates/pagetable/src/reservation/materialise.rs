//! Putting memory behind a part of a reservation.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::{Changed, Gap, Reservation, under};
use crate::entry::{Entry, Level};
use crate::mmu::{Flush, Mmu, NoFrames, Slot};
use crate::part::{around, join, pages, parts};
use crate::shared::count;
use crate::{HUGE, LARGE};

impl<M: Mmu> Reservation<'_, M> {
    /// Puts memory behind `bytes`, offsets that are widened to whole pages. What was folded reads as zero and can be written
    /// by every processor when this returns; what had memory keeps its content.
    ///
    /// # Safety
    /// Where a gap is allowed, nobody reads the folded parts of the range meanwhile.
    ///
    /// # Errors
    /// There are fewer frames than it takes. Nothing has changed then.
    pub unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), NoFrames> {
        let range = self.addresses(&bytes);
        if range.is_empty() {
            return Ok(());
        }
        let _lock = self.lock.lock();
        let needed = self.needed(&range);
        if needed == 0 {
            return Ok(());
        }
        // All at once, so that nothing has to be undone.
        let mut frames = self.shared.mmu().take(needed).ok_or(NoFrames)?;
        let has_flushed = self.make_tables(&range, &mut frames) | self.make_pages(&range, &mut frames);
        let counts = self.shared.counts();
        count(if has_flushed { &counts.unfold_flushes } else { &counts.spared }, 1);
        self.shared.mmu().made(range);
        Ok(())
    }

    /// Makes all tables of the range, for one that may never be unreadable.
    pub(super) fn make_all_tables(&self) -> Result<(), NoFrames> {
        let range = self.base..self.base + self.len;
        let tables = parts(range.clone()).count() as u64 + self.len.div_ceil(HUGE);
        let mut frames = self.shared.mmu().take(tables).ok_or(NoFrames)?;
        for gib in range.clone().step_by(HUGE as usize) {
            if let Some((directory, _)) = self.new_directory(&(gib..(gib + HUGE).min(range.end)), &mut frames)
            {
                // Nothing was mapped there: there is nothing to break.
                self.shared.mmu().swap(self.upper(gib), directory);
            }
        }
        Ok(())
    }

    /// Frames needed to put memory behind all of the range.
    fn needed(&self, range: &Range<u64>) -> u64 {
        let mut needed = 0;
        let mut missing = None;
        for part in parts(range.clone()) {
            let upper = self.upper(part.start);
            needed += match self.way(part.start) {
                None => {
                    let is_another = missing.replace(upper) != Some(upper);
                    u64::from(is_another) + 1 + pages(part).count() as u64
                }
                Some((.., None)) => 1 + pages(part).count() as u64,
                Some((.., Some(table))) => {
                    pages(part).filter(|&page| !self.is_frame(under(table, page, 1))).count() as u64
                }
            };
        }
        needed
    }

    /// A page table that says what the shared one says: the entry that leads to it.
    fn new_table(&self, frames: &mut M::Frames) -> Option<u64> {
        let table = frames.next()?;
        self.shared.mmu().fill(table, self.shared.zero());
        self.tables.fetch_add(1, Ordering::Relaxed);
        Some(self.shared.format().branch(table))
    }

    /// A page directory that says what the shared one says, with page tables of its own for `range`, which is under it: the
    /// entry that leads to it, and how many tables those are.
    fn new_directory(&self, range: &Range<u64>, frames: &mut M::Frames) -> Option<(u64, u64)> {
        let directory = frames.next()?;
        self.shared.mmu().fill(directory, self.shared.shared_table());
        self.tables.fetch_add(1, Ordering::Relaxed);
        let mut tables = 0;
        for part in parts(range.clone()) {
            let table = self.new_table(frames)?;
            // No hardware can reach the directory yet.
            self.shared.mmu().swap(under(directory, part.start, 2), table);
            tables += 1;
        }
        let format = self.shared.format();
        Some((format.with_count(format.branch(directory), tables), tables))
    }

    /// Makes tables of its own on the way to all pages of the range. Whether that took a flush.
    fn make_tables(&self, range: &Range<u64>, frames: &mut M::Frames) -> bool {
        let mut remembered = 0..0;
        let mut made = 0;
        for part in parts(range.clone()) {
            let upper = self.upper(part.start);
            match self.way(part.start) {
                Some((.., Some(_))) => {}
                Some((_, middle, None)) => {
                    let Some(table) = self.new_table(frames) else { break };
                    if self.begin(middle, table, Level::Table, || table) == Changed::HalfDone {
                        remembered = join(remembered, around(part.start, LARGE));
                    }
                    self.change_count(upper, |count| count + 1);
                    made += 1;
                }
                None => {
                    let gib = around(part.start, HUGE);
                    let here = part.start..range.end.min(gib.end);
                    let Some((directory, tables)) = self.new_directory(&here, frames) else { break };
                    if self.begin(upper, directory, Level::Table, || directory) == Changed::HalfDone {
                        remembered = join(remembered, gib);
                    }
                    made += 1 + tables;
                }
            }
        }
        count(&self.shared.counts().tables_made, made);
        if remembered.is_empty() {
            return false;
        }
        // All that is under them, not only the range: see the head of the crate.
        self.shared.mmu().flush(Flush::Ranges(&[remembered]));
        for part in parts(range.clone()) {
            self.mend(self.upper(part.start));
            if let Some((_, middle, _)) = self.way(part.start) {
                self.mend(middle);
            }
        }
        true
    }

    /// Makes an entry present that was broken.
    fn mend(&self, slot: Slot) {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        let word = mmu.load(slot);
        if !format.is_present(word) {
            mmu.swap(slot, format.mended(word));
        }
    }

    /// Puts frames behind all pages of the range that have none. Whether that took a flush.
    fn make_pages(&self, range: &Range<u64>, frames: &mut M::Frames) -> bool {
        let format = self.shared.format();
        let mut remembered = 0..0;
        let (mut swapped, mut replaced) = (0, 0);
        for part in parts(range.clone()) {
            let Some((_, middle, Some(table))) = self.way(part.start) else { continue };
            let mut here = 0;
            for page in pages(part) {
                let slot = under(table, page, 1);
                if self.is_frame(slot) {
                    continue;
                }
                let Some(frame) = frames.next() else { break };
                match self.begin(slot, format.page(frame), Level::Page, || format.read_only(frame)) {
                    Changed::Done => swapped += 1,
                    Changed::HalfDone => {
                        replaced += 1;
                        remembered = join(remembered, page..page + crate::PAGE);
                    }
                }
                here += 1;
            }
            self.change_count(middle, |count| count + here);
        }
        self.pages.fetch_add(swapped + replaced, Ordering::Relaxed);
        count(&self.shared.counts().swapped, swapped);
        count(&self.shared.counts().replaced, replaced);
        if remembered.is_empty() {
            return false;
        }
        self.shared.mmu().flush(Flush::Ranges(core::slice::from_ref(&remembered)));
        self.finish_pages(&remembered);
        if self.gap == Gap::Never {
            // Whoever remembers that the frame was read-only must be able to write it.
            self.shared.mmu().flush(Flush::Ranges(core::slice::from_ref(&remembered)));
        }
        true
    }

    /// Makes every entry in the range lead to its frame for writing, after what was there before has been forgotten.
    fn finish_pages(&self, range: &Range<u64>) {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        for part in parts(range.clone()) {
            let Some((.., Some(table))) = self.way(part.start) else { continue };
            for page in pages(part) {
                let slot = under(table, page, 1);
                match self.gap {
                    Gap::Allowed => self.mend(slot),
                    Gap::Never if !self.is_frame(slot) => {
                        mmu.swap(slot, format.page(format.address(mmu.load(slot))));
                    }
                    Gap::Never => {}
                }
            }
        }
    }
}
