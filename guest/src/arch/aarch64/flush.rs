//! The TLBs of all processors: one instruction reaches them, and interrupts none.

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagefold_pagetable::{Flush, PAGE};

use super::registers;

/// Pages that are forgotten one by one; for more, everything is. As in Linux where there are no instructions for ranges.
const ONE_BY_ONE: u64 = 512;

/// What the processors can do, noted at boot by the first. Relaxed: it never changes after.
static HAS_RANGES: AtomicBool = AtomicBool::new(false);
/// How often [`made`] flushed.
static AFTER_MAKING: AtomicU64 = AtomicU64::new(0);

/// Notes what the processors can do.
pub fn init() {
    HAS_RANGES.store(registers::flushes_ranges(), Ordering::Relaxed);
}

/// Stores are seen by every processor, device and walk of page tables from here on: a DMB orders no walks.
pub(super) fn finish_stores() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack)) };
}

/// All flushes of this processor have reached everybody, and accesses by what was flushed have ended; and this processor
/// fetches instructions anew.
fn finish_flushes() {
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
}

/// Makes every processor forget.
pub fn flush(what: Flush<'_>) {
    finish_stores();
    let pages = match what {
        Flush::Ranges(ranges) => ranges.iter().map(|range| (range.end - range.start) / PAGE).sum(),
        Flush::All => u64::MAX,
    };
    match what {
        Flush::Ranges(ranges) if pages <= ONE_BY_ONE => ranges.iter().for_each(flush_range),
        // SAFETY: as much as it likes may be forgotten.
        _ => unsafe { asm!("tlbi vmalle1is", options(nostack)) },
    }
    finish_flushes();
}

/// Pages of all levels and address spaces (VAAE1IS, not VAALE1IS): tables may have changed too.
fn flush_range(range: &Range<u64>) {
    let mut page = range.start / PAGE;
    let end = range.end / PAGE;
    while page < end {
        if HAS_RANGES.load(Ordering::Relaxed) && end - page >= 2 {
            // (NUM + 1) * 2 pages at scale 0: 2 to 64.
            let pairs = ((end - page) / 2).min(32);
            let argument = page & 0x1f_ffff_ffff | (pairs - 1) << 39 | 1 << 46;
            // SAFETY: as in `flush`.
            unsafe {
                asm!(".arch_extension tlb-rmi", "tlbi rvaae1is, {}", in(reg) argument, options(nostack))
            };
            page += pairs * 2;
        } else {
            // SAFETY: as in `flush`.
            unsafe { asm!("tlbi vaae1is, {}", in(reg) page & 0xfff_ffff_ffff, options(nostack)) };
            page += 1;
        }
    }
}

/// What is needed until all processors may use entries that were made: their walks see the stores, and walks from before are
/// not reported as faults any more. A processor without FEAT_ETS2 may report a translation fault by a walk from before although
/// it learned of the entry since; and one with it may still report a permission fault, where the entry was the zeroed frame's
/// (litmus tests `unfold-late-fault`, `unfold-swap-write`). A flush ends such walks. The other cure, a fault handler that
/// tries again, would have to tell such a fault from a stray write.
pub fn made(range: Range<u64>) {
    finish_stores();
    if range.is_empty() {
        // SAFETY: a barrier.
        unsafe { asm!("isb", options(nostack)) };
        return;
    }
    AFTER_MAKING.fetch_add(1, Ordering::Relaxed);
    if (range.end - range.start) / PAGE <= ONE_BY_ONE {
        flush_range(&range);
    } else {
        // SAFETY: as in `flush`.
        unsafe { asm!("tlbi vmalle1is", options(nostack)) };
    }
    finish_flushes();
}

/// How often [`made`] flushed.
pub fn after_making() -> u64 {
    AFTER_MAKING.load(Ordering::Relaxed)
}
