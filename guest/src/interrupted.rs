//! Walkers that are interrupted at the worst moment: once in some thousand looks a walker waits right there, for as long as
//! a long interrupt takes.

use core::sync::atomic::{AtomicU32, Ordering};

use pagefold_engine::protocol::{Delay, Delayed};

use crate::clock;

/// One look in so many is held up.
const PERIOD: u32 = 4096;
/// For so long, in nanoseconds.
const LENGTH: u64 = 50_000;

/// The rules `R`, with walkers that are held up between look and swap.
pub type Interrupted<R> = Delayed<R, Interruption>;

/// Waits once in `PERIOD` looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interruption;

impl Delay for Interruption {
    #[inline]
    fn delay() {
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        // Not exact, and shared on purpose: a plain counter of each processor's would do as well.
        let looks = LOOKS.load(Ordering::Relaxed).wrapping_add(1);
        LOOKS.store(looks, Ordering::Relaxed);
        if looks.is_multiple_of(PERIOD) {
            clock::wait(LENGTH);
        }
    }
}
