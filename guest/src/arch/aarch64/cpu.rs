//! What a processor has of its own: a stack for exceptions, and a timer; and how it interrupts others.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::gic;
use super::registers::{get, set};

/// What names a processor: its affinity, as in MPIDR_EL1.
pub type Id = u64;

/// The virtual timer's interrupt, as the device tree has it. Relaxed: noted at boot.
static TIMER: AtomicU32 = AtomicU32::new(27);
/// Ticks of the counter between two of its interrupts.
static PERIOD: AtomicU64 = AtomicU64::new(u64::MAX);

/// What a processor has of its own.
pub struct Own {
    pub(super) id: Id,
    /// Where its stack for exceptions ends.
    pub(super) exceptions: u64,
}

impl Own {
    /// Its affinity.
    pub fn id(&self) -> Id {
        self.id
    }
}

/// Notes the timer's interrupt, and how many ticks of the counter there are between two.
pub fn init(timer: u32, period: u64) {
    TIMER.store(timer, Ordering::Relaxed);
    PERIOD.store(period, Ordering::Relaxed);
}

/// This processor's: what `start::enter` has put there.
pub fn own() -> *const Own {
    get!("tpidr_el1") as *const Own
}

/// Whether this processor has entered.
pub fn has_entered() -> bool {
    get!("tpidr_el1") != 0
}

/// The timer's interrupt.
pub fn timer() -> u32 {
    TIMER.load(Ordering::Relaxed)
}

/// The next tick comes a period from now.
pub fn set_timer() {
    // SAFETY: the virtual timer is this kernel's; enabled, not masked.
    unsafe {
        set!("cntv_tval_el0", PERIOD.load(Ordering::Relaxed));
        set!("cntv_ctl_el0", 1);
    }
}

/// Interrupts all other processors: they [serve](crate::remote::serve).
pub fn interrupt_others() {
    gic::interrupt_others(gic::ASK);
}

/// Stops all other processors, whatever they do.
pub fn stop_others() {
    gic::interrupt_others(gic::STOP);
}
