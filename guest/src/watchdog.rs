//! Notices a processor that makes no progress.
//!
//! Every processor's loop counts its rounds. Every processor's timer looks at the next one's count; when that has not
//! changed for too long, all are stopped by interrupts that cannot be masked, and say where they were.

use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_boot_protocol::GuestExit;

use crate::arch::interrupts::Frame;
use crate::{cpu, fault};

/// Ticks of 10 ms without progress that are too many; 0 for none.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Sets how long a processor may be silent.
pub fn set_seconds(seconds: u16) {
    PATIENCE.store(u64::from(seconds) * 100, Ordering::Relaxed);
}

/// The processor that runs this makes progress.
pub fn beat() {
    cpu::this().beats.fetch_add(1, Ordering::Relaxed);
}

/// A tick of this processor's timer.
pub fn tick(frame: &Frame) {
    let patience = PATIENCE.load(Ordering::Relaxed);
    let Some(other) = cpu::get((cpu::this().number + 1) % cpu::count()) else { return };
    let beats = other.beats.load(Ordering::Relaxed);
    if other.seen.swap(beats, Ordering::Relaxed) != beats {
        other.silent.store(0, Ordering::Relaxed);
        return;
    }
    let silent = other.silent.fetch_add(1, Ordering::Relaxed);
    if patience > 0 && silent > patience {
        let seconds = patience / 100;
        fault::end(
            GuestExit::Hang,
            Some(frame),
            format_args!(
                "processor {} for {seconds} s; processor {} noticed",
                other.number,
                cpu::this().number
            ),
        );
    }
}
