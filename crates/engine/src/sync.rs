//! The shim between the engine and the atomics it runs on: `core`'s, or loom's under `cfg(loom)`.
//!
//! The whole engine uses the names of this module, so that the code the checker explores is the code that ships.
//! Two things differ under loom, both here and nowhere else:
//!
//! * [`MapWord`], the state word of a descriptor, knows whether its map page is folded. *Any* write to a folded word, a
//!   failing compare-and-swap included, ends the model with a report. That is what the hardware does (a fault, or a
//!   re-materialised page), and what every protocol must avoid. On a platform without a gap a folded word reads as zero.
//!   On one with a gap any *read* ends the model too: in the gap it would fault, and a protocol that may run there has
//!   no business with folded words at any other time either.
//! * Spinning yields to loom's scheduler.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

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

/// The state word of a descriptor. See the module's text for what loom adds.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct MapWord(AtomicU64);

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

#[cfg(loom)]
impl MapWord {
    /// What stands in a word whose map page is folded. No state word can have this value.
    const FOLDED: u64 = u64::MAX;
    /// The same, where folding has a gap.
    const GONE: u64 = u64::MAX - 1;

    pub(crate) fn folded(has_gap: bool) -> Self {
        Self(AtomicU64::new(if has_gap { Self::GONE } else { Self::FOLDED }))
    }
    /// The platform takes the memory away. One atomic swap stands for "clear the entry, flush": no access can be
    /// half before and half after it.
    pub(crate) fn fold(&self, has_gap: bool) {
        self.0.swap(if has_gap { Self::GONE } else { Self::FOLDED }, Ordering::AcqRel);
    }
    /// The platform puts zeroed memory behind the word. Memory that is there already keeps its content.
    pub(crate) fn materialise(&self) {
        for folded in [Self::FOLDED, Self::GONE] {
            let _ = self.0.compare_exchange(folded, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }
    fn written(old: u64) -> u64 {
        assert!(old != Self::FOLDED && old != Self::GONE, "stray write: a write reached a folded descriptor");
        old
    }
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        let word = self.0.load(order);
        assert!(
            word != Self::GONE,
            "stray read: a read reached a folded descriptor on a platform with a gap"
        );
        if word == Self::FOLDED { 0 } else { word }
    }
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        // A swap, so that the model sees what the store landed on.
        Self::written(self.0.swap(value, order));
    }
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        match self.0.compare_exchange(current, new, success, failure) {
            Ok(old) => Ok(old),
            Err(old) => Err(Self::written(old)),
        }
    }
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.0.fetch_add(value, order))
    }
    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.0.fetch_sub(value, order))
    }
    pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        Self::written(self.0.fetch_or(value, order))
    }
}
