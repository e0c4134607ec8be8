//! Processors: what each has of its own, and which run. How they are made and started: [`processors`](crate::processors).

use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch;

/// Processors that are started at most.
pub const MAX: usize = 64;
/// Interrupts of each processor's timer in a second.
pub const TIMER_HZ: u64 = 100;

/// A processor.
#[repr(C)]
pub struct Cpu {
    /// What only its architecture has. First: where that is, a processor can find out.
    pub own: arch::cpu::Own,
    /// Its number, from 0.
    pub number: usize,
    /// Where its stack is; those for exceptions not counted.
    pub stack: Range<u64>,
    /// Grows whenever its loop comes round.
    pub beats: AtomicU64,
    /// What the watchdog last saw of that, and when in its ticks.
    pub seen: AtomicU64,
    /// Since how many ticks nothing was seen.
    pub silent: AtomicU64,
}

/// The processors that run: bit by number. Release by who starts, Acquire by who asks.
static ONLINE: AtomicU64 = AtomicU64::new(0);
/// All of them, by number, for the code that looks after them.
static ALL: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

/// The processor that runs this.
pub fn this() -> &'static Cpu {
    const { assert!(offset_of!(Cpu, own) == 0) };
    // SAFETY: what a processor finds is what it entered with (`processors::enter`): the first field of a `Cpu` that lives for
    // ever.
    unsafe { &*arch::cpu::own().cast::<Cpu>() }
}

/// This processor runs: from here on all others find it.
pub fn note(cpu: &'static Cpu) {
    if let Some(slot) = ALL.get(cpu.number) {
        // Release: pairs with `get`.
        slot.store(core::ptr::from_ref(cpu) as u64, Ordering::Release);
    }
    ONLINE.fetch_or(1 << cpu.number, Ordering::Release);
}

/// Processor `number`, if it runs.
pub fn get(number: usize) -> Option<&'static Cpu> {
    // Acquire: pairs with the Release of `note`, so that all of it is seen.
    let at = ALL.get(number)?.load(Ordering::Acquire) as *const Cpu;
    // SAFETY: only ever zero or a `Cpu` that lives for ever.
    unsafe { at.as_ref() }
}

/// Bits of the processors that run.
pub fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// How many processors run.
pub fn count() -> usize {
    online().count_ones() as usize
}
