//! Which rules walkers and folders follow. One set is right and meant for use; the others exist to be compared with it.
//!
//! The others read descriptors that are folded or being folded: either their walkers do not ask the class, or their
//! folders do not wait for walkers who asked before. So they need a platform where such a read sees what was there or
//! zeros at every moment, one without a gap ([`Mapping::HAS_GAP`](crate::platform::Mapping::HAS_GAP)).

use core::marker::PhantomData;

/// The rules of one strategy, fixed at compile time.
///
/// Anyone may write some down, and they may be wrong: only [`Engine::with_rules`](crate::Engine::with_rules), which is
/// `unsafe`, makes an engine that follows them.
pub trait Protocol: Send + Sync + 'static {
    /// As the command line spells it.
    const NAME: &'static str;
    /// Walkers ask the class table, inside their section, before they look at a descriptor, and find the head of a folded
    /// tail there.
    const ASKS_CLASS: bool;
    /// Folders wait for a grace period between publishing a class and taking the memory away.
    const WAITS: bool;
    /// A write that reaches a folded map page is part of the plan, not a violation.
    const TOLERATES_WRITES: bool;

    /// Runs in a walker that has seen a refcount above zero and has not swapped it yet. Nothing belongs here but a
    /// test's mischief.
    #[inline]
    fn between_look_and_swap() {}
}

/// Whether it is part of the plan that walkers read descriptors that are folded or being folded. (Of [`NoGracePeriod`] it
/// is the bug, which a gap turns into a fault.)
pub(crate) const fn reads_folded<R: Protocol>() -> bool {
    !R::ASKS_CLASS || R::TOLERATES_WRITES
}

/// The protocol of this engine: publish the class, wait for a grace period, remap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fold;

impl Protocol for Fold {
    const NAME: &'static str = "fold";
    const ASKS_CLASS: bool = true;
    const WAITS: bool = true;
    const TOLERATES_WRITES: bool = false;
}

/// Linux 6.11's protocol: RCU, and a look at the refcount before the compare-and-swap; no class table. Safe. It reads
/// folded descriptors, and here it cannot find the head of a folded tail (Linux can, by reading a copy of the head's
/// map page there, its "fake heads").
#[derive(Clone, Copy, Debug, Default)]
pub struct RefcountFirst;

impl Protocol for RefcountFirst {
    const NAME: &'static str = "refcount-first";
    const ASKS_CLASS: bool = false;
    const WAITS: bool = true;
    const TOLERATES_WRITES: bool = false;
}

/// The bug: folders do not wait. A walker that read a refcount just before the fold runs its compare-and-swap on a
/// page that is gone; even a failing one is a write.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGracePeriod;

impl Protocol for NoGracePeriod {
    const NAME: &'static str = "no-grace-period";
    const ASKS_CLASS: bool = true;
    const WAITS: bool = false;
    const TOLERATES_WRITES: bool = false;
}

/// The fix that was rejected for Linux: folders do not wait, and folded descriptors stay writable. Nothing crashes, but
/// nothing traps either: real stray writes go unseen, and every one brings a page back.
#[derive(Clone, Copy, Debug, Default)]
pub struct WritableTails;

impl Protocol for WritableTails {
    const NAME: &'static str = "writable-tails";
    const ASKS_CLASS: bool = true;
    const WAITS: bool = false;
    const TOLERATES_WRITES: bool = true;
}

/// What holds a walker up, in [`Delayed`] rules.
pub trait Delay: Send + Sync + 'static {
    /// Called at every look; most calls return at once.
    fn delay();
}

/// The rules `R`, with walkers that `D` holds up at the worst moment, for tests.
///
/// The races of this subject need a walker that stops between looking at a refcount and swapping it: two neighbouring
/// instructions. A scheduler, an interrupt or a hypervisor does that every few seconds, to some walker. Here it happens
/// thousands of times a second, and rules that are right do not care.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delayed<R, D>(PhantomData<(R, D)>);

impl<R: Protocol, D: Delay> Protocol for Delayed<R, D> {
    const NAME: &'static str = R::NAME;
    const ASKS_CLASS: bool = R::ASKS_CLASS;
    const WAITS: bool = R::WAITS;
    const TOLERATES_WRITES: bool = R::TOLERATES_WRITES;

    #[inline]
    fn between_look_and_swap() {
        D::delay();
    }
}
