//! This machine, as page tables see it: entries in the direct map, the kernel's frames, and the architecture's TLBs.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use pagefold_pagetable::{ENTRIES, Flush, HUGE, Mmu, Slot, map};

use crate::arch::{self, flush, tlb};
use crate::frames::{self, Chain};
use crate::layout::direct;

/// It.
#[derive(Clone, Copy, Debug)]
pub struct GuestMmu;

/// Physical address of the kernel's top table. Relaxed: noted at boot, before the engine has tables and before others start.
static TOP: AtomicU64 = AtomicU64::new(0);

/// Notes where the kernel's top table is.
pub fn note_top(table: u64) {
    TOP.store(table, Ordering::Relaxed);
}

/// Whether flushes do what they should. Relaxed: it is set once, to see what happens.
static BROKEN: AtomicU8 = AtomicU8::new(RIGHT);
const RIGHT: u8 = 0;
const LOCAL: u8 = 1;
const MISSING: u8 = 2;

/// From now on flushes reach this processor alone, or none.
pub fn break_flushes(is_local: bool) {
    BROKEN.store(if is_local { LOCAL } else { MISSING }, Ordering::Relaxed);
}

/// A table's entries, which the processor may write to as well.
///
/// # Safety
/// There is a table at this physical address, for as long as `'a`.
unsafe fn entries<'a>(table: u64) -> &'a [AtomicU64; ENTRIES] {
    // SAFETY: the caller's promise; the direct map covers all memory, and entries are only used as atomics.
    unsafe { &*direct::<[AtomicU64; ENTRIES]>(table) }
}

fn entry<'a>(slot: Slot) -> &'a AtomicU64 {
    // SAFETY: slots come from tables of ours, and one that is given back is not used again: its lock is held until then.
    let table = unsafe { entries(slot.table) };
    &table[slot.index]
}

// SAFETY: entries are atomics, and hardware changes them atomically too. `flush::flush` returns when every processor has
// forgotten, unless it was broken on purpose, and `flush::made` when all can use what was made. Frames come from the kernel's
// reserve, zeroed. The upper tables are never given back.
unsafe impl Mmu for GuestMmu {
    type Entry = arch::Format;
    type Frames = Chain;

    fn format(&self) -> arch::Format {
        arch::FORMAT
    }

    fn upper(&self, address: u64) -> Slot {
        // Fails only where `paging::make_upper` has made no tables, and then leads nowhere.
        map::find(self, TOP.load(Ordering::Relaxed), address, 3).unwrap_or(Slot { table: 0, index: 0 })
    }

    fn load(&self, slot: Slot) -> u64 {
        // Acquire: pairs with the Release of who stored it, so that a table is found filled.
        entry(slot).load(Ordering::Acquire)
    }

    fn swap(&self, slot: Slot, word: u64) -> u64 {
        // Release: the table or the frame's zeros are there before the entry is. Acquire: as above.
        entry(slot).swap(word, Ordering::AcqRel)
    }

    fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // As for `swap`, and for `load` where it fails.
        entry(slot).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    fn fill(&self, table: u64, word: u64) {
        // SAFETY: a fresh frame, the caller's alone.
        for slot in unsafe { entries(table) } {
            // Relaxed: whoever links the table releases.
            slot.store(word, Ordering::Relaxed);
        }
    }

    fn flush(&self, what: Flush<'_>) {
        match BROKEN.load(Ordering::Relaxed) {
            RIGHT => flush::flush(what),
            LOCAL => match what {
                Flush::Ranges(ranges) => tlb::forget(ranges),
                Flush::All => tlb::forget(core::slice::from_ref(&(0..HUGE))),
            },
            _ => {}
        }
    }

    fn made(&self, range: Range<u64>) {
        // What it flushes would make up for what was broken.
        if BROKEN.load(Ordering::Relaxed) == RIGHT {
            flush::made(range);
        }
    }

    fn take(&self, count: u64) -> Option<Chain> {
        frames::take_chain(count)
    }

    unsafe fn give(&self, frame: u64) {
        // SAFETY: the caller's promise.
        unsafe { frames::give(frame) };
    }
}
