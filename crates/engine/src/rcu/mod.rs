//! Read-copy-update: walkers look inside sections, writers wait for a grace period.
//!
//! # The algorithm
//!
//! There is one epoch, a counter that only grows. A reader owns a slot. Entering a section stores the epoch and a
//! nesting count of one into the slot; leaving stores a nesting count of zero. A writer that has published something
//! takes a barrier, raises the epoch, and waits until every slot is either idle or carries the new epoch.
//!
//! # The argument
//!
//! *Theorem.* When [`Ticket::is_over`] says true, every section that could still act on what it read before
//! [`Rcu::start`] has ended, and what those sections did happens before the poll's return.
//!
//! Take a section S and a ticket T. The reader stores its slot, then passes `light`, then reads. The writer publishes,
//! then passes `heavy`, then raises the epoch (to E), then scans. By the contract of [`Barrier`] the two passes are
//! ordered:
//!
//! * `heavy` before `light`: what was published before T is seen by every read in S. S needs no waiting.
//! * `light` before `heavy`: the store to the slot is seen by the scan. S read the epoch before that store, hence before
//!   E existed: the slot carries less than E, and the scan waits until the slot changes. It changes to idle, or to a
//!   later section of the same reader, both after S ended.
//!
//! The scan reads slots with Acquire, and all stores to a slot are Release, entering ones too: so even if it first sees
//! a *later* section of the same reader, everything S did happens before. That is why one barrier is enough where
//! schemes with relaxed stores need a second one at the end.
//!
//! The epoch is 48 bits above 16 bits of nesting. It would take 89 years of a grace period every 10 us to wrap, so a
//! single pass suffices; no phase bits.
//!
//! What stops a reader that arrives right after the grace period? Nothing, and nothing need: it passed `light` after
//! `heavy`, so it sees what was published.

mod callbacks;
mod deferred;
mod reader;

use alloc::boxed::Box;
use core::ptr;

use crate::barrier::Barrier;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU64, CachePadded, Ordering};

use callbacks::{Callback, Callbacks};
pub use deferred::Deferred;
pub use reader::{ReadSection, Reader};

/// One section deep; the epoch starts above it.
const NEST: u64 = 1;
const NEST_MASK: u64 = 0xffff;
const EPOCH: u64 = NEST_MASK + 1;

/// Slots in a block. Blocks are added when all are taken and live as long as the [`Rcu`].
const SLOTS: usize = if cfg!(loom) { 2 } else { 16 };

struct ReaderSlot {
    /// Epoch above, nesting count in the low 16 bits; a nesting count of 0 means idle, whatever the epoch.
    word: AtomicU64,
    taken: AtomicBool,
}

struct Block {
    slots: [CachePadded<ReaderSlot>; SLOTS],
    next: *mut Block,
}

impl Block {
    fn new() -> Self {
        let slot = || CachePadded(ReaderSlot { word: AtomicU64::new(0), taken: AtomicBool::new(false) });
        Self { slots: core::array::from_fn(|_| slot()), next: ptr::null_mut() }
    }
}

/// A grace period that was started. It knows its domain, so that no other one can be asked.
#[must_use = "a grace period is over when is_over says so"]
pub struct Ticket<'r, B> {
    rcu: &'r Rcu<B>,
    epoch: u64,
}

impl<B> Clone for Ticket<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B> Copy for Ticket<'_, B> {}

impl<B> core::fmt::Debug for Ticket<'_, B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ticket").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl<B: Barrier> Ticket<'_, B> {
    /// Whether the grace period is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        // Acquire: a reader that registered before the ticket is in the list.
        let head = self.rcu.blocks.load(Ordering::Acquire);
        self.rcu.slots_from(head).all(|slot| {
            // Acquire: pairs with the Release of leaving, so that what the section did happens before us.
            let word = slot.word.load(Ordering::Acquire);
            word & NEST_MASK == 0 || word >= self.epoch
        })
    }

    /// Waits until the grace period is over. Must not be called inside a section of this domain: it would wait for
    /// itself, for ever.
    ///
    /// Context: waits for every section that began before.
    pub fn wait(&self) {
        debug_assert!(self.rcu.barrier.may_wait(), "a grace period is waited for where that is forbidden");
        let mut turn = 0u32;
        while !self.is_over() {
            self.rcu.barrier.wait(turn);
            turn = turn.saturating_add(1);
        }
    }
}

/// One RCU domain: its readers, its epoch, its deferred callbacks.
pub struct Rcu<B> {
    barrier: B,
    epoch: CachePadded<AtomicU64>,
    blocks: AtomicPtr<Block>,
    deferred: AtomicPtr<Callback>,
}

// SAFETY: blocks are only ever added, and read through shared references to atomics; callbacks are `Send` and owned by
// the thread that swaps the list out.
unsafe impl<B: Barrier> Sync for Rcu<B> {}
// SAFETY: as above.
unsafe impl<B: Barrier> Send for Rcu<B> {}

impl<B: Barrier> Rcu<B> {
    /// A domain without readers.
    pub fn new(barrier: B) -> Self {
        Self {
            barrier,
            epoch: CachePadded(AtomicU64::new(EPOCH)),
            blocks: AtomicPtr::new(ptr::null_mut()),
            deferred: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn slots_from(&self, mut block: *mut Block) -> impl Iterator<Item = &ReaderSlot> {
        core::iter::from_fn(move || {
            // SAFETY: blocks in the list live until `self` is dropped, and `next` was set before publication.
            let current = unsafe { block.as_ref() }?;
            block = current.next;
            Some(current.slots.iter().map(|padded| &padded.0))
        })
        .flatten()
    }

    /// Starts a grace period for everything the caller has published so far, without waiting.
    ///
    /// Context: may interrupt other CPUs ([`Barrier::heavy`]); does not wait for readers.
    pub fn start(&self) -> Ticket<'_, B> {
        debug_assert!(
            self.barrier.may_wait(),
            "a grace period begins where other CPUs may not be interrupted"
        );
        self.barrier.heavy();
        // SeqCst: the raise may not move above the barrier, and tickets of several writers are ordered.
        let before = self.epoch.fetch_add(EPOCH, Ordering::SeqCst);
        Ticket { rcu: self, epoch: before.wrapping_add(EPOCH) }
    }

    /// A whole grace period: everything the caller published is seen by every section that is still running, or begins
    /// later, when this returns. Must not be called inside a section of this domain.
    ///
    /// Context: interrupts other CPUs and waits.
    pub fn synchronize(&self) {
        self.start().wait();
    }
}

impl<B> Drop for Rcu<B> {
    fn drop(&mut self) {
        // No reader can exist (each borrows `self`), so every grace period is over. The blocks go even if a callback
        // panics.
        let _blocks = Blocks(self.blocks.load(Ordering::Acquire));
        Callbacks(self.deferred.load(Ordering::Acquire)).run();
    }
}

/// The list of blocks, which ends with it.
struct Blocks(*mut Block);

impl Drop for Blocks {
    fn drop(&mut self) {
        while !self.0.is_null() {
            // SAFETY: blocks were made by `Box::into_raw`, are in the list once, and nothing else can reach it.
            let owned = unsafe { Box::from_raw(self.0) };
            self.0 = owned.next;
        }
    }
}

impl<B> core::fmt::Debug for Rcu<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rcu").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::barrier::Fences;
    use alloc::sync::Arc;
    use core::sync::atomic::AtomicUsize;

    /// A machine that is always where nothing may be waited for.
    #[cfg(debug_assertions)]
    struct Atomic;

    #[cfg(debug_assertions)]
    // SAFETY: both halves are those of `Fences`.
    unsafe impl Barrier for Atomic {
        fn light(&self) {
            Fences.light();
        }
        fn heavy(&self) {
            Fences.heavy();
        }
        fn may_wait(&self) -> bool {
            false
        }
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "may not be interrupted")]
    fn debug_builds_stop_where_nothing_may_be_waited_for() {
        Rcu::new(Atomic).synchronize();
    }

    #[test]
    fn an_idle_domain_has_instant_grace_periods() {
        let rcu = Rcu::new(Fences);
        rcu.synchronize();
        let reader = rcu.reader().unwrap();
        rcu.synchronize();
        drop(reader);
        rcu.synchronize();
    }

    #[test]
    fn a_section_holds_the_grace_period_and_nesting_counts() {
        let rcu = Rcu::new(Fences);
        let reader = rcu.reader().unwrap();
        let outer = reader.section();
        let ticket = rcu.start();
        let inner = reader.section();
        assert!(!ticket.is_over());
        drop(outer);
        assert!(reader.is_inside() && !ticket.is_over(), "the nested section is still inside");
        drop(inner);
        assert!(!reader.is_inside() && ticket.is_over());
    }

    #[test]
    fn a_section_that_begins_after_start_is_not_waited_for() {
        let rcu = Rcu::new(Fences);
        let reader = rcu.reader().unwrap();
        let ticket = rcu.start();
        let _section = reader.section();
        assert!(ticket.is_over());
    }

    #[test]
    fn slots_are_reused_and_blocks_grow() {
        let rcu = Rcu::new(Fences);
        let many: Vec<_> = (0..3 * SLOTS).map(|_| rcu.reader().unwrap()).collect();
        let first = ptr::from_ref(many[0].slot);
        let sections: Vec<_> = many.iter().map(Reader::section).collect();
        let ticket = rcu.start();
        assert!(!ticket.is_over());
        drop(sections);
        assert!(ticket.is_over());
        drop(many);
        let again: Vec<_> = (0..3 * SLOTS).map(|_| rcu.reader().unwrap()).collect();
        assert!(again.iter().any(|reader| ptr::eq(reader.slot, first)));
    }

    #[test]
    fn deferred_callbacks_wait_for_readers_and_run_once() {
        let rcu = Rcu::new(Fences);
        let ran = Arc::new(AtomicUsize::new(0));
        let count = |ran: &Arc<AtomicUsize>| -> Box<dyn FnOnce() + Send> {
            let ran = Arc::clone(ran);
            Box::new(move || {
                ran.fetch_add(1, Ordering::Relaxed);
            })
        };
        let reader = rcu.reader().unwrap();
        let section = reader.section();
        assert!(rcu.defer(count(&ran)).is_ok());
        assert!(rcu.defer(count(&ran)).is_ok());
        let pending = rcu.start_deferred().unwrap().try_run().unwrap_err();
        assert_eq!(ran.load(Ordering::Relaxed), 0);
        drop(section);
        assert_eq!(pending.try_run().unwrap(), 2);
        assert_eq!(rcu.run_deferred(), 0);
        assert!(rcu.defer(count(&ran)).is_ok());
        drop(reader);
        drop(rcu);
        assert_eq!(ran.load(Ordering::Relaxed), 3, "what is left runs when the domain ends");
    }
}
