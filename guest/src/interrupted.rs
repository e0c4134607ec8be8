//! Walkers that are interrupted at the worst moment.
//!
//! The races of this subject need a walker that is held up between looking at a refcount and swapping it: two
//! neighbouring instructions. On real machines an interrupt, or the hypervisor, does that now and then. Here it happens
//! once in some thousand looks: the walker waits right there, for as long as a long interrupt takes. The rules are those of
//! the protocol it wraps, and one that is right does not care.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering};

use pagefold_engine::protocol::Protocol;

use crate::clock;

/// One look in so many is held up.
const PERIOD: u32 = 4096;
/// For so long, in nanoseconds.
const LENGTH: u64 = 50_000;

/// Protocol `R`, with walkers that are held up between look and swap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interrupted<R>(PhantomData<R>);

impl<R: Protocol> Protocol for Interrupted<R> {
    const NAME: &'static str = R::NAME;
    const ASKS_CLASS: bool = R::ASKS_CLASS;
    const WAITS: bool = R::WAITS;
    const TOLERATES_WRITES: bool = R::TOLERATES_WRITES;

    #[inline]
    fn between_look_and_swap() {
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        // Not exact, and shared on purpose: a plain counter of each processor's would do as well.
        let looks = LOOKS.load(Ordering::Relaxed).wrapping_add(1);
        LOOKS.store(looks, Ordering::Relaxed);
        if looks.is_multiple_of(PERIOD) {
            clock::wait(LENGTH);
        }
    }
}
