//! Taking the CPU from walkers at the worst moment: once in so many looks the thread yields right there.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use pagefold_engine::protocol::{Delay, Delayed};

/// The rules `R`, with walkers that lose their CPU between look and swap.
pub type Preempted<R> = Delayed<R, Preemption>;

/// Yields once in [`preempt_every`] looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preemption;

static PERIOD: AtomicU32 = AtomicU32::new(0);

/// From now on one look in about `period` is followed by a yield, in all threads; 0 for none.
pub fn preempt_every(period: u32) {
    PERIOD.store(period, Ordering::Relaxed);
}

impl Delay for Preemption {
    #[inline]
    fn delay() {
        thread_local!(static LOOKS: Cell<u32> = const { Cell::new(0) });
        let period = PERIOD.load(Ordering::Relaxed);
        if period == 0 {
            return;
        }
        LOOKS.with(|looks| {
            looks.set(looks.get() + 1);
            if looks.get() >= period {
                looks.set(0);
                std::thread::yield_now();
            }
        });
    }
}
