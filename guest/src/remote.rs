//! What other processors must do before this one goes on: forget translations, pass a barrier.

use core::ops::Range;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use spin::Mutex;
use x86_64::VirtAddr;
use x86_64::instructions::{interrupts, tlb};

use crate::cpu;
use crate::interrupts::REMOTE;
use crate::layout::PAGE;

/// Pages that are forgotten one by one; for more, everything is.
const ONE_BY_ONE: u64 = 64;

/// Who holds it asks. Interrupts stay on while waiting for it, so that its holder is answered.
static ASKING: Mutex<()> = Mutex::new(());
/// Processors that have not done it yet.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// What they are to do: the ranges whose translations to forget; none for a barrier alone.
static RANGES: AtomicPtr<Range<u64>> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How often others were asked, for flushes and for barriers.
pub static FLUSHES: AtomicU64 = AtomicU64::new(0);
pub static BARRIERS: AtomicU64 = AtomicU64::new(0);

fn forget(ranges: &[Range<u64>]) {
    let pages: u64 = ranges.iter().map(|range| (range.end - range.start) / PAGE).sum();
    if pages > ONE_BY_ONE {
        // The engine's tables are not global: this forgets them, and what the processor kept of the levels above.
        tlb::flush_all();
        return;
    }
    for range in ranges {
        for page in range.clone().step_by(PAGE as usize) {
            tlb::flush(VirtAddr::new(page));
        }
    }
}

/// Does it here and on every other processor; returns when all have.
fn everywhere(ranges: &[Range<u64>]) {
    debug_assert!(
        interrupts::are_enabled() || cpu::count() == 1,
        "two that ask each other would wait for ever"
    );
    let _asking = ASKING.lock();
    let others = cpu::online() & !(1 << cpu::this().number);
    if others != 0 {
        RANGES.store(ranges.as_ptr().cast_mut(), Ordering::Relaxed);
        COUNT.store(ranges.len(), Ordering::Relaxed);
        // Release: a CPU that sees its bit sees the ranges, and all that was written before (page-table entries).
        PENDING.store(others, Ordering::Release);
        cpu::interrupt_others(REMOTE);
    }
    forget(ranges);
    fence(Ordering::SeqCst);
    // Acquire: pairs with the Release of those who did it.
    while PENDING.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
}

/// Makes every processor forget what it knows of how these addresses (multiples of 4 KiB) are mapped.
pub fn flush(ranges: &[Range<u64>]) {
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    everywhere(ranges);
}

/// Passes a full barrier on every processor, as `membarrier(2)` does.
pub fn barrier() {
    BARRIERS.fetch_add(1, Ordering::Relaxed);
    everywhere(&[]);
}

/// The handler of [`REMOTE`].
pub fn serve() {
    let me = 1 << cpu::this().number;
    // Acquire: pairs with the Release of who asks.
    if PENDING.load(Ordering::Acquire) & me == 0 {
        return;
    }
    let (at, count) = (RANGES.load(Ordering::Relaxed), COUNT.load(Ordering::Relaxed));
    // SAFETY: who asks keeps the ranges where they are until every bit is gone, and ours is not.
    let ranges = if count == 0 { &[][..] } else { unsafe { core::slice::from_raw_parts(at, count) } };
    forget(ranges);
    fence(Ordering::SeqCst);
    // Release: what this processor did before is seen by who asked.
    PENDING.fetch_and(!me, Ordering::Release);
}
