//! A range of addresses that folds.

mod fold;
mod materialise;
mod take;

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::PAGE;
use crate::entry::{Entry, Level};
use crate::mmu::{Mmu, Slot};
use crate::part::{index, pages, parts};
use crate::shared::Shared;

/// Whether a range may be unreadable for a moment while it is materialised or folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It may: nobody reads what is folded, and nobody reads what is being folded.
    Allowed,
    /// It may not. Such a range is never folded.
    Never,
}

/// A range of addresses, folded where nothing was materialised. Lives as long as its machine: there is no way to give the
/// addresses back.
pub struct Reservation<'s, M: Mmu> {
    shared: &'s Shared<M>,
    base: u64,
    len: u64,
    gap: Gap,
    lock: Mutex<()>,
    /// Pages and tables that are its own, by its own count. Relaxed: changed under the lock, read for information.
    pages: AtomicU64,
    tables: AtomicU64,
}

/// What is behind a reservation, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Of content.
    pub pages: u64,
    /// Of page tables.
    pub tables: u64,
}

/// What became of an entry that was to lead elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    /// It leads there, and nobody remembers another.
    Done,
    /// It is broken, or leads to something that reads the same: a flush must follow, and then the rest.
    HalfDone,
}

impl<M: Mmu> Reservation<'_, M> {
    /// The first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range is empty: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the range may be unreadable for a moment.
    pub fn gap(&self) -> Gap {
        self.gap
    }

    /// What is behind it, by its own count.
    pub fn counted(&self) -> Behind {
        Behind { pages: self.pages.load(Ordering::Relaxed), tables: self.tables.load(Ordering::Relaxed) }
    }

    /// What is behind it, by what the page tables say.
    pub fn measured(&self) -> Behind {
        let _lock = self.lock.lock();
        let mut behind = Behind { pages: 0, tables: 0 };
        let mut last = None;
        for part in parts(self.base..self.base + self.len) {
            let upper = self.upper(part.start);
            let Some(directory) = self.shared.own(upper) else { continue };
            behind.tables += u64::from(last.replace(upper) != Some(upper));
            let Some(table) = self.shared.own(under(directory, part.start, 2)) else { continue };
            behind.tables += 1;
            behind.pages += pages(part).filter(|&page| self.is_frame(under(table, page, 1))).count() as u64;
        }
        behind
    }

    fn upper(&self, address: u64) -> Slot {
        self.shared.mmu().upper(address)
    }

    /// The entries on the way to an address: of the page directory's table, and of the page table's; and the page table, if
    /// it is its own.
    fn way(&self, address: u64) -> Option<(Slot, Slot, Option<u64>)> {
        let upper = self.upper(address);
        let middle = under(self.shared.own(upper)?, address, 2);
        Some((upper, middle, self.shared.own(middle)))
    }

    /// Whether an entry of a page table leads to a frame of its own.
    fn is_frame(&self, slot: Slot) -> bool {
        self.shared.format().is_writable(self.shared.mmu().load(slot))
    }

    /// The range's bytes as whole pages.
    fn addresses(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.len).next_multiple_of(PAGE);
        self.base + bytes.start / PAGE * PAGE..self.base + end
    }

    /// Changes how many entries of the table that `slot` leads to are that table's own. How many there are now.
    fn change_count(&self, slot: Slot, change: impl Fn(u64) -> u64) -> u64 {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        let mut word = mmu.load(slot);
        loop {
            let count = change(format.count(word));
            // Hardware may set the accessed flag meanwhile, and does that once.
            match mmu.compare_exchange(slot, word, format.with_count(word, count)) {
                Ok(()) => return count,
                Err(now) => word = now,
            }
        }
    }

    /// Breaks an entry: from now on no hardware finds what it leads to, and its address stays in it.
    fn break_entry(&self, slot: Slot) {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        // Under the lock nobody but hardware writes, and that sets the accessed flag, which does not matter any more.
        mmu.swap(slot, format.broken(mmu.load(slot)));
    }

    /// Lets an entry that leads to what is shared lead to `new`; or begins to.
    fn begin(&self, slot: Slot, new: u64, level: Level, before: impl FnOnce() -> u64) -> Changed {
        let (mmu, format) = (self.shared.mmu(), self.shared.format());
        let old = mmu.load(slot);
        if format.is_unused(old, level) && mmu.compare_exchange(slot, old, new).is_ok() {
            return Changed::Done;
        }
        match self.gap {
            Gap::Allowed => mmu.swap(slot, format.broken(new)),
            Gap::Never => mmu.swap(slot, before()),
        };
        Changed::HalfDone
    }
}

/// The entry of a table of `level` that leads to an address.
fn under(table: u64, address: u64, level: u32) -> Slot {
    Slot { table, index: index(address, level) }
}
