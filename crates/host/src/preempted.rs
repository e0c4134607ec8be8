//! Taking the CPU from walkers at the worst moment.
//!
//! The races of this subject need a walker that is descheduled between looking at a refcount and swapping it: two
//! neighbouring instructions. On a busy machine that happens every few seconds, to some walker. [`Preempted`] makes it
//! happen thousands of times a second: once in so many looks the thread yields right there. The rules are those of the
//! protocol it wraps, and a protocol that is right does not care.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use pagefold_engine::protocol::Protocol;

/// Protocol `R`, with walkers that lose their CPU between look and swap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preempted<R>(PhantomData<R>);

static PERIOD: AtomicU32 = AtomicU32::new(0);

/// From now on one look in about `period` is followed by a yield, in all threads; 0 for none.
pub fn preempt_every(period: u32) {
    PERIOD.store(period, Ordering::Relaxed);
}

impl<R: Protocol> Protocol for Preempted<R> {
    const NAME: &'static str = R::NAME;
    const ASKS_CLASS: bool = R::ASKS_CLASS;
    const WAITS: bool = R::WAITS;
    const TOLERATES_WRITES: bool = R::TOLERATES_WRITES;

    #[inline]
    fn between_look_and_swap() {
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
