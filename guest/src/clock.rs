//! Time: the processor's counter.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch;

/// Ticks of the counter in a millisecond; and where it stood at boot.
static TICKS_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);
static START: AtomicU64 = AtomicU64::new(0);

/// Notes the moment of boot.
pub fn start() {
    START.store(arch::ticks(), Ordering::Relaxed);
}

/// Notes how fast the counter is.
pub fn set_rate(ticks_per_ms: u64) {
    TICKS_PER_MS.store(ticks_per_ms.max(1), Ordering::Relaxed);
}

/// Nanoseconds since boot.
pub fn now() -> u64 {
    let ticks = arch::ticks().saturating_sub(START.load(Ordering::Relaxed));
    (u128::from(ticks) * 1_000_000 / u128::from(TICKS_PER_MS.load(Ordering::Relaxed))) as u64
}

/// Waits.
pub fn wait(ns: u64) {
    let end = now() + ns;
    while now() < end {
        core::hint::spin_loop();
    }
}
