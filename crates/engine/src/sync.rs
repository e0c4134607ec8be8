//! The shim between the engine and the atomics it runs on: `core`'s, or loom's under `cfg(loom)`.
//!
//! The whole engine uses the names of this module, so that the code the checker explores is the code that ships. What
//! differs under loom is in the modules `remembering` and `checked`, and nowhere else: atomics that remember their
//! readers, state words that know whether they are folded, entries of tables that know whether they were made writable,
//! owners' data that knows who may touch it. Spinning yields to loom's scheduler.

#[cfg(loom)]
mod checked;
#[cfg(loom)]
mod remembering;

#[cfg(loom)]
pub(crate) use checked::{AtomicU8, AtomicU32, AtomicU64, MapWord, OwnerCell};
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};
#[cfg(loom)]
pub(crate) use remembering::{AtomicBool, AtomicPtr};

/// One turn of a wait that another CPU will end soon.
#[inline]
pub(crate) fn spin_loop() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// A value alone on its cache lines (two, since x86 fetches lines in pairs).
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct CachePadded<T>(pub(crate) T);

impl<T> core::ops::Deref for CachePadded<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The state word of a descriptor.
#[cfg(not(loom))]
#[repr(transparent)]
#[derive(Debug)]
pub struct MapWord(AtomicU64);

#[cfg(not(loom))]
impl MapWord {
    #[inline]
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    #[inline]
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order)
    }
    #[inline]
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }
    #[inline]
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }
    #[inline]
    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(value, order)
    }
    #[inline]
    pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_or(value, order)
    }
}

/// The owner's data of a descriptor.
///
/// Who may touch it follows from who holds the handles, and they change hands by the state word. The handles say when
/// ([`may_read`](Self::may_read), [`may_write`](Self::may_write)); that costs nothing and is for the checker.
#[cfg(not(loom))]
#[repr(transparent)]
pub struct OwnerCell<O>(core::cell::UnsafeCell<O>);

#[cfg(not(loom))]
impl<O> OwnerCell<O> {
    /// To read. The caller has a reference on the folio, or owns it.
    #[inline]
    pub(crate) fn get(&self) -> *const O {
        self.0.get()
    }
    /// To write. The caller owns the folio, or the page.
    #[inline]
    pub(crate) fn get_mut(&self) -> *mut O {
        self.0.get()
    }
    /// A holder of a reference may read here, or may have read until now.
    #[inline]
    pub(crate) fn may_read(&self) {}
    /// The one owner may write here, or may have written until now.
    #[inline]
    pub(crate) fn may_write(&self) {}
}
