//! Deferred callbacks: run after a grace period, when asked to.

use alloc::boxed::Box;
use core::ptr;

use super::callbacks::{Callback, Callbacks};
use super::{Rcu, Ticket};
use crate::barrier::Barrier;
use crate::heap::try_box;
use crate::sync::Ordering;

impl<B: Barrier> Rcu<B> {
    /// Runs `callback` after a grace period, in a later [`run_deferred`](Self::run_deferred).
    ///
    /// A callback that panics does not keep the others of its batch from running. A second one that does, while the panic of
    /// the first unwinds, ends the program, as every panic in a destructor does.
    ///
    /// Context: takes heap memory.
    ///
    /// # Errors
    /// The callback, unrun, when there is no memory to note it: [`synchronize`](Self::synchronize), then run it.
    #[allow(clippy::type_complexity)]
    pub fn defer(&self, callback: Box<dyn FnOnce() + Send>) -> Result<(), Box<dyn FnOnce() + Send>> {
        let node = try_box(Callback { next: ptr::null_mut(), run: callback }).map_err(|node| node.run)?;
        let node = Box::into_raw(node);
        let mut head = self.deferred.load(Ordering::Relaxed);
        loop {
            // SAFETY: `node` is ours until the exchange below publishes it.
            unsafe { (*node).next = head };
            // Release: the callback before its address, and all that the caller did before deferring it.
            match self.deferred.compare_exchange(head, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    /// Takes the callbacks deferred so far and starts their grace period; `None` if there are none.
    ///
    /// Context: as of [`start`](Self::start).
    pub fn start_deferred(&self) -> Option<Deferred<'_, B>> {
        // Acquire: pairs with the Release of `defer`.
        let list = self.deferred.swap(ptr::null_mut(), Ordering::Acquire);
        (!list.is_null()).then(|| Deferred { ticket: self.start(), list: Callbacks(list) })
    }

    /// Waits one grace period for all callbacks deferred so far and runs them, newest first. Returns how many. Must not
    /// be called inside a section.
    ///
    /// Context: as of [`synchronize`](Self::synchronize), and as the callbacks need.
    pub fn run_deferred(&self) -> usize {
        self.start_deferred().map_or(0, Deferred::wait)
    }
}

/// Callbacks whose grace period has been started. Dropping it waits.
pub struct Deferred<'r, B: Barrier> {
    ticket: Ticket<'r, B>,
    list: Callbacks,
}

impl<B: Barrier> Deferred<'_, B> {
    /// Runs the callbacks if their grace period is over, and gives itself back if not.
    ///
    /// Context: as the callbacks need.
    ///
    /// # Errors
    /// Itself: call again later.
    pub fn try_run(mut self) -> Result<usize, Self> {
        if self.ticket.is_over() { Ok(self.list.take().run()) } else { Err(self) }
    }

    /// Waits for the grace period and runs the callbacks. Must not be called inside a section.
    ///
    /// Context: waits, and as the callbacks need.
    pub fn wait(mut self) -> usize {
        self.ticket.wait();
        self.list.take().run()
    }
}

impl<B: Barrier> core::fmt::Debug for Deferred<'_, B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Deferred").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl<B: Barrier> Drop for Deferred<'_, B> {
    fn drop(&mut self) {
        if !self.list.0.is_null() {
            // The callbacks run when the list is dropped.
            self.ticket.wait();
        }
    }
}
