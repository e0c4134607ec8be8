//! A list of callbacks that wait for a grace period.

use alloc::boxed::Box;
use core::ptr;

pub(super) struct Callback {
    pub(super) next: *mut Callback,
    pub(super) run: Box<dyn FnOnce() + Send>,
}

/// A list of callbacks that has one owner. What was not run when it is dropped, since a callback panicked, is run then:
/// it may give back what nobody else knows of.
pub(super) struct Callbacks(pub(super) *mut Callback);

impl Callbacks {
    pub(super) fn take(&mut self) -> Self {
        Self(core::mem::replace(&mut self.0, ptr::null_mut()))
    }

    /// Runs all of them, and says how many there were.
    pub(super) fn run(&mut self) -> usize {
        let mut ran = 0;
        while !self.0.is_null() {
            // SAFETY: nodes were made by `Box::into_raw`, and a list has one owner.
            let owned = unsafe { Box::from_raw(self.0) };
            // Out of the list before it runs: a panic must not find it there again.
            self.0 = owned.next;
            (owned.run)();
            ran += 1;
        }
        ran
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        self.run();
    }
}
