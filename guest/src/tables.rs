//! The engine's tables as page tables: folded parts read as zero, and cost nothing.
//!
//! # How it is mapped
//!
//! Each table has a range of addresses of its own, in multiples of 1 GiB. Folded, every page of it is the *one* zeroed
//! frame, read-only; and because 512 such entries are always the same page of entries, there is *one* page table of them,
//! and *one* page directory of 512 times that. So 1 GiB of folded table (the map of 64 GiB of memory) costs one entry.
//! Unfolding a page makes what is missing on the way down a table of its own, and folding the last page under one makes it
//! shared again. How many entries of a table are its own stands in the entry that leads to it, in bits that the processor
//! ignores (52 to 61).
//!
//! # Folding
//!
//! The engine has published the class and waited for a grace period, so no CPU reads what is to be folded. All entries are
//! cleared first, each keeping its frame's address; then every processor forgets the range, once for the whole batch; then
//! the entries are set to the zeroed frame and the frames given back. In between the range is *not mapped*: the order that
//! arm64 demands (break-before-make), and on x86 the one that finds a reader who should not be there.
//!
//! # Unfolding
//!
//! The zeroed frame gives way to a frame of zeros. A processor that remembers the zeroed frame would go on reading zeros,
//! and could not write; so it has to forget. But whether any processor can remember stands in the entry: its *accessed*
//! bit is set before a translation is used. Who asks for the class first never looks at a folded descriptor, so the bit is
//! clear as a rule, and unfolding interrupts no CPU.
//!
//! # Locks
//!
//! One lock a table, held while entries change and across the flush. Interrupts stay on while it is held: processors that
//! wait for it still answer.

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::OutOfMemory;
use pagefold_engine::platform::{FoldRange, Mapping, TableKind};
use spin::{Mutex, Once};
use x86_64::structures::paging::PageTableFlags;

use crate::frames::{self, Chain};
use crate::layout::{PAGE, TABLES};
use crate::paging::{self, ADDRESS, BRANCH, DATA, Entries, MapError, entries, index};
use crate::remote;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const ACCESSED: u64 = PageTableFlags::ACCESSED.bits();
/// One entry more that is a table's own.
const OWN: u64 = 1 << 52;
const OWN_MASK: u64 = 0x3ff << 52;
/// Present, read-only, not executable.
const ZERO: u64 = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE).bits();

/// Ranges that are flushed one by one.
const LIST: usize = 64;

/// Bytes under one page table, and under one page directory.
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;

/// The shared tables: entries that lead to the zeroed frame, a page table of those, a page directory of those.
struct Shared {
    page: u64,
    table: u64,
    directory: u64,
}

/// Frames of those.
pub const SHARED_FRAMES: u64 = 3;

static SHARED: Once<Shared> = Once::new();
/// Where the next table's range begins, and all that there are.
static NEXT: AtomicU64 = AtomicU64::new(TABLES);
static ALL: Mutex<Vec<(TableKind, Range<u64>)>> = Mutex::new(Vec::new());

/// Flushes that unfolding needed, and those that it was spared.
pub static UNFOLD_FLUSHES: AtomicU64 = AtomicU64::new(0);
pub static SPARED: AtomicU64 = AtomicU64::new(0);
/// Flushes for folding, and entries that they took away.
pub static FOLD_FLUSHES: AtomicU64 = AtomicU64::new(0);
pub static FOLDED_ENTRIES: AtomicU64 = AtomicU64::new(0);

fn fill(table: u64, entry: u64) {
    // SAFETY: a fresh frame, ours alone.
    for slot in unsafe { entries(table) } {
        slot.store(entry, Ordering::Relaxed);
    }
}

impl Shared {
    fn new() -> Option<Shared> {
        let shared = Shared { page: frames::take()?, table: frames::take()?, directory: frames::take()? };
        fill(shared.table, shared.page | ZERO);
        fill(shared.directory, shared.table | BRANCH.bits());
        Some(shared)
    }
}

/// Makes the shared tables. `None` without frames for them.
pub fn init() -> Option<()> {
    let shared = Shared::new()?;
    SHARED.call_once(|| shared);
    Some(())
}

/// The table that an address is in, and where in it.
pub fn find(address: u64) -> Option<(TableKind, u64)> {
    // For a fault handler: who holds the lock may never go on.
    let all = ALL.try_lock()?;
    let (kind, range) = all.iter().find(|(_, range)| range.contains(&address))?;
    Some((*kind, address - range.start))
}

/// A table's range of addresses. Lives for ever.
pub struct Table {
    base: u64,
    len: u64,
    lock: Mutex<()>,
    /// Pages and page tables that are its own, by its own count.
    pages: AtomicU64,
    tables: AtomicU64,
}

/// What is behind a table, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Of content.
    pub pages: u64,
    /// Of page tables.
    pub tables: u64,
}

impl Table {
    /// Reserves a range.
    pub fn reserve(kind: TableKind, bytes: u64) -> Result<Table, MapError> {
        let shared = SHARED.get().ok_or(MapError)?;
        let len = bytes.max(PAGE).checked_next_multiple_of(HUGE).ok_or(MapError)?;
        let base = NEXT.fetch_add(len, Ordering::Relaxed);
        if base.checked_add(len).is_none_or(|end| end > crate::layout::DEVICES) {
            return Err(MapError);
        }
        for at in (base..base + len).step_by(HUGE as usize) {
            let entry = &paging::upper_table(at)?[index(at, 3)];
            entry.store(shared.directory | BRANCH.bits(), Ordering::Relaxed);
        }
        ALL.lock().push((kind, base..base + len));
        Ok(Table {
            base,
            len: bytes.max(PAGE),
            lock: Mutex::new(()),
            pages: AtomicU64::new(0),
            tables: AtomicU64::new(0),
        })
    }

    /// By its own count.
    pub fn counted(&self) -> Behind {
        Behind { pages: self.pages.load(Ordering::Relaxed), tables: self.tables.load(Ordering::Relaxed) }
    }

    /// By what the page tables say.
    pub fn measured(&self) -> Behind {
        let _lock = self.lock.lock();
        let mut behind = Behind { pages: 0, tables: 0 };
        for at in (self.base..self.base + self.len).step_by(HUGE as usize) {
            let Some(directory) = self.upper(at).and_then(own) else { continue };
            behind.tables += 1;
            for entry in directory {
                let Some(table) = own(entry) else { continue };
                behind.tables += 1;
                behind.pages +=
                    table.iter().filter(|entry| is_frame(entry.load(Ordering::Relaxed))).count() as u64;
            }
        }
        behind
    }

    /// The entry that leads to the page directory of an address.
    fn upper(&self, address: u64) -> Option<&'static AtomicU64> {
        Some(&paging::upper_table(address).ok()?[index(address, 3)])
    }

    /// Frames needed to put memory behind all of `pages`.
    fn needed(&self, pages: &Range<u64>) -> u64 {
        let mut needed = 0;
        let mut at = pages.start;
        while at < pages.end {
            let (huge, large) = (end_of(at, HUGE).min(pages.end), end_of(at, LARGE).min(pages.end));
            let Some(directory) = self.upper(at).and_then(own) else {
                let tables = (huge - 1) / LARGE - at / LARGE + 1;
                needed += 1 + tables + (huge - at) / PAGE;
                at = huge;
                continue;
            };
            needed += match own(&directory[index(at, 2)]) {
                None => 1 + (large - at) / PAGE,
                Some(table) => (at..large)
                    .step_by(PAGE as usize)
                    .filter(|&page| !is_frame(table[index(page, 1)].load(Ordering::Relaxed)))
                    .count() as u64,
            };
            at = large;
        }
        needed
    }

    /// A table of its own in place of the shared one that `entry` leads to. Whether others may remember the old one.
    fn make_own(&self, entry: &AtomicU64, shared: u64, chain: &mut Chain) -> bool {
        let Some(frame) = chain.next() else { return false };
        fill(frame, shared);
        self.tables.fetch_add(1, Ordering::Relaxed);
        // Release: a processor that walks through the new entry finds the table filled.
        entry.swap(frame | BRANCH.bits(), Ordering::AcqRel) & ACCESSED != 0
    }
}

/// The first multiple of `unit` above an address.
fn end_of(address: u64, unit: u64) -> u64 {
    (address | (unit - 1)).wrapping_add(1)
}

/// Whether an entry of a page table leads to a frame of its own.
fn is_frame(entry: u64) -> bool {
    entry & (PRESENT | PageTableFlags::WRITABLE.bits()) == PRESENT | PageTableFlags::WRITABLE.bits()
}

/// The table that an entry leads to, if it is not a shared one.
fn own(entry: &AtomicU64) -> Option<&'static Entries> {
    let word = entry.load(Ordering::Relaxed);
    let table = word & ADDRESS;
    let is_shared = SHARED.get().is_some_and(|shared| table == shared.table || table == shared.directory);
    // SAFETY: entries of a table's range lead to tables of ours; the lock keeps this one from being given back.
    (word & PRESENT != 0 && !is_shared).then(|| unsafe { entries(table) })
}

// SAFETY: a range is mapped for ever, but for folded parts in the midst of `fold`, which nobody reads then. Folded parts
// are the zeroed frame, which nobody can write. `materialise` returns after the frame is mapped for writing and nobody
// remembers that it was not.
unsafe impl Mapping for Table {
    fn base(&self) -> NonNull<u8> {
        // Never null.
        NonNull::new(self.base as *mut u8).unwrap_or(NonNull::dangling())
    }

    fn len(&self) -> u64 {
        self.len
    }

    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        let shared = SHARED.get().ok_or(OutOfMemory)?;
        let start = self.base + bytes.start / PAGE * PAGE;
        let end = self.base + bytes.end.min(self.len).next_multiple_of(PAGE);
        if start >= end {
            return Ok(());
        }
        let _lock = self.lock.lock();
        let needed = self.needed(&(start..end));
        if needed == 0 {
            return Ok(());
        }
        // All at once, so that nothing has to be undone.
        let mut chain = frames::take_chain(needed).ok_or(OutOfMemory)?;
        let mut is_remembered = false;
        let mut pages = 0;
        for page in (start..end).step_by(PAGE as usize) {
            let Some(upper) = self.upper(page) else { continue };
            if own(upper).is_none() {
                is_remembered |= self.make_own(upper, shared.table | BRANCH.bits(), &mut chain);
            }
            let Some(directory) = own(upper) else { continue };
            let middle = &directory[index(page, 2)];
            if own(middle).is_none() {
                is_remembered |= self.make_own(middle, shared.page | ZERO, &mut chain);
                upper.fetch_add(OWN, Ordering::Relaxed);
            }
            let Some(table) = own(middle) else { continue };
            let entry = &table[index(page, 1)];
            if is_frame(entry.load(Ordering::Relaxed)) {
                continue;
            }
            let Some(frame) = chain.next() else { continue };
            // Release: the frame's zeros are there before the frame is.
            is_remembered |= entry.swap(frame | DATA.bits(), Ordering::AcqRel) & ACCESSED != 0;
            middle.fetch_add(OWN, Ordering::Relaxed);
            pages += 1;
        }
        self.pages.fetch_add(pages, Ordering::Relaxed);
        if is_remembered {
            UNFOLD_FLUSHES.fetch_add(1, Ordering::Relaxed);
            // Tables above may be remembered too: everything, rather than page by page.
            remote::flush(core::slice::from_ref(&(start..start + HUGE)));
        } else {
            SPARED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        let _lock = self.lock.lock();
        let ranges = || {
            ranges
                .iter()
                .map(|range| self.base + range.bytes.start..self.base + range.bytes.end.min(self.len))
        };
        let cleared: u64 = ranges().map(|range| self.clear(range)).sum();
        if cleared == 0 {
            return ranges().count();
        }
        FOLD_FLUSHES.fetch_add(1, Ordering::Relaxed);
        FOLDED_ENTRIES.fetch_add(cleared, Ordering::Relaxed);
        // Freeing must not need memory: a list of a fixed length, and for more ranges than that everything.
        let mut list = [const { 0..0 }; LIST];
        let count = ranges().count();
        list.iter_mut().zip(ranges()).for_each(|(slot, range)| *slot = range);
        match list.get(..count) {
            Some(list) => remote::flush(list),
            None => remote::flush(core::slice::from_ref(&(self.base..self.base + HUGE))),
        }
        ranges().for_each(|range| self.set(range));
        self.pages.fetch_sub(cleared, Ordering::Relaxed);
        ranges().count()
    }
}

impl Table {
    /// Folding, before the flush: entries that lead to frames of their own stop to be present, and keep the address; so do
    /// those above that lead to none other any more. Returns frames.
    fn clear(&self, range: Range<u64>) -> u64 {
        let mut cleared = 0;
        let mut at = range.start;
        while at < range.end {
            let (huge, large) = (end_of(at, HUGE).min(range.end), end_of(at, LARGE).min(range.end));
            let Some(upper) = self.upper(at) else { break };
            let Some(directory) = own(upper) else {
                at = huge;
                continue;
            };
            let middle = &directory[index(at, 2)];
            if let Some(table) = own(middle) {
                let mut here = 0;
                for page in (at..large).step_by(PAGE as usize) {
                    let entry = &table[index(page, 1)];
                    if is_frame(entry.load(Ordering::Relaxed)) {
                        entry.fetch_and(!PRESENT, Ordering::Relaxed);
                        here += 1;
                    }
                }
                cleared += here;
                if middle.fetch_sub(here * OWN, Ordering::Relaxed) & OWN_MASK == here * OWN && here > 0 {
                    middle.fetch_and(!PRESENT, Ordering::Relaxed);
                    if upper.fetch_sub(OWN, Ordering::Relaxed) & OWN_MASK == OWN {
                        upper.fetch_and(!PRESENT, Ordering::Relaxed);
                    }
                }
            }
            at = large;
        }
        cleared
    }

    /// Folding, after the flush: what was cleared becomes the zeroed frame, or a shared table of it, and frames are given
    /// back.
    fn set(&self, range: Range<u64>) {
        let Some(shared) = SHARED.get() else { return };
        let mut at = range.start;
        while at < range.end {
            let (huge, large) = (end_of(at, HUGE).min(range.end), end_of(at, LARGE).min(range.end));
            let Some(upper) = self.upper(at) else { break };
            let word = upper.load(Ordering::Relaxed);
            if word & ADDRESS == shared.directory {
                at = huge;
                continue;
            }
            // SAFETY: a directory of its own, cleared or not.
            let directory = unsafe { entries(word & ADDRESS) };
            let middle = &directory[index(at, 2)];
            self.set_table(middle, at..large, shared);
            if word & PRESENT == 0 && directory.iter().all(|entry| is_table(entry, shared.table)) {
                upper.store(shared.directory | BRANCH.bits(), Ordering::Release);
                self.release(word & ADDRESS);
            }
            at = large;
        }
    }

    fn set_table(&self, middle: &AtomicU64, pages: Range<u64>, shared: &Shared) {
        let word = middle.load(Ordering::Relaxed);
        if word & ADDRESS == shared.table {
            return;
        }
        // SAFETY: a page table of its own, cleared or not.
        let table = unsafe { entries(word & ADDRESS) };
        for page in pages.step_by(PAGE as usize) {
            let entry = &table[index(page, 1)];
            let old = entry.load(Ordering::Relaxed);
            if old & PRESENT == 0 {
                entry.store(shared.page | ZERO, Ordering::Release);
                // SAFETY: its only entry was cleared and every processor has forgotten it.
                unsafe { frames::give(old & ADDRESS) };
            }
        }
        // Another range of the batch may have more of the same table to set.
        if word & PRESENT == 0 && table.iter().all(|entry| is_table(entry, shared.page)) {
            middle.store(shared.table | BRANCH.bits(), Ordering::Release);
            self.release(word & ADDRESS);
        }
    }

    /// Gives a page table back.
    fn release(&self, table: u64) {
        self.tables.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: its only entry was cleared before every processor forgot the range, and leads elsewhere now.
        unsafe { frames::give(table) };
    }
}

/// Whether an entry leads to `shared`.
fn is_table(entry: &AtomicU64, shared: u64) -> bool {
    let word = entry.load(Ordering::Relaxed);
    word & PRESENT != 0 && word & ADDRESS == shared
}
