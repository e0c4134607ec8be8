//! What other processors must do before this one goes on: forget translations, pass a barrier.

use core::ops::Range;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use spin::Mutex;

use crate::arch::{self, interrupts, tlb};
use crate::cpu;

/// Who holds it asks. Interrupts stay on while waiting for it, so that its holder is answered.
static ASKING: Mutex<()> = Mutex::new(());
/// Processors that have not done it yet.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// What they are to do: the ranges whose translations to forget; none for a barrier alone.
static RANGES: AtomicPtr<Range<u64>> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

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
        arch::cpu::interrupt_others();
    }
    if !ranges.is_empty() {
        tlb::forget(ranges);
    }
    fence(Ordering::SeqCst);
    // Acquire: pairs with the Release of those who did it.
    while PENDING.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
}

/// Makes every processor forget what it knows of how these addresses (multiples of 4 KiB) are mapped.
#[cfg_attr(target_arch = "aarch64", allow(dead_code, reason = "an instruction reaches all there"))]
pub fn flush(ranges: &[Range<u64>]) {
    everywhere(ranges);
}

/// Passes a full barrier on every processor, as `membarrier(2)` does.
pub fn barrier() {
    everywhere(&[]);
}

/// The handler of the interrupt that asks.
pub fn serve() {
    let me = 1 << cpu::this().number;
    // Acquire: pairs with the Release of who asks.
    if PENDING.load(Ordering::Acquire) & me == 0 {
        return;
    }
    let (at, count) = (RANGES.load(Ordering::Relaxed), COUNT.load(Ordering::Relaxed));
    // SAFETY: both are of the one slice that `everywhere` has borrowed. It keeps the slice until every bit of `PENDING` is gone,
    // and ours is not.
    let ranges = if count == 0 { &[][..] } else { unsafe { core::slice::from_raw_parts(at, count) } };
    if !ranges.is_empty() {
        tlb::forget(ranges);
    }
    fence(Ordering::SeqCst);
    // Release: what this processor did before is seen by who asked.
    PENDING.fetch_and(!me, Ordering::Release);
}
