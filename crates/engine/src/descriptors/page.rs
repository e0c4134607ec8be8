//! A descriptor of 64 bytes.

use super::head::{Head, Owner, fresh_owner};
use crate::map::MapEntry;
use crate::page::POISON;
use crate::sync::{MapWord, Ordering, OwnerCell};
use crate::table::TableEntry;

/// The descriptor of a page: 64 bytes, a cache line of its own.
#[repr(C, align(64))]
pub struct Page<O> {
    pub(super) state: MapWord,
    /// The owner's data: valid at the head of a folio, for as long as the folio lives.
    owner: OwnerCell<O>,
}

impl<O: Owner> Head<O> for Page<O> {
    #[inline]
    fn state(&self) -> &MapWord {
        &self.state
    }
    #[inline]
    fn owner(&self) -> &OwnerCell<O> {
        &self.owner
    }
}

impl<O: Owner> Page<O> {
    /// A descriptor must fill 64 bytes exactly, or 64 of them would not fill a map page.
    #[cfg(not(loom))]
    pub(super) const SIZE_CHECK: () =
        assert!(size_of::<Self>() == 64, "the owner's data must fit into 56 bytes");
}

// SAFETY: `state` is an atomic, and `owner` is reached only through a folio's handles: shared (`&O`, and `O: Sync`) or
// exclusive (`&mut O` of a frozen folio).
unsafe impl<O: Owner> Sync for Page<O> {}

// SAFETY: zero bytes are a valid state word and (FromZeros) a valid owner; 64 bytes, see SIZE_CHECK; for mutation see
// the Sync impl.
unsafe impl<O: Owner> TableEntry for Page<O> {
    #[cfg(loom)]
    fn zero(has_gap: bool) -> Self {
        Page { state: MapWord::folded(has_gap), owner: OwnerCell::new(O::new_zeroed()) }
    }
    #[cfg(loom)]
    fn fold(&self, has_gap: bool) {
        self.owner.may_write();
        self.state.fold(has_gap);
    }
    #[cfg(loom)]
    fn materialise(&self) {
        if self.state.materialise() {
            // SAFETY: no other thread has memory that just came into being.
            unsafe { self.owner.get_mut().write(O::new_zeroed()) };
        }
    }
}

impl<O: Owner> MapEntry for Page<O> {
    fn clear(&self, is_poisoned: bool) {
        // SAFETY: the caller owns the page, and no folio is alive there, so nobody else reaches its owner's data.
        unsafe {
            self.owner.get_mut().write(fresh_owner());
        }
        // Release: a CPU that sees the zero also sees that the folio is over.
        self.state.store(if is_poisoned { POISON } else { 0 }, Ordering::Release);
    }
    fn mark_poisoned(&self) {
        self.state.fetch_or(POISON, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_one_cache_line_whatever_the_owner_keeps() {
        assert_eq!((size_of::<Page<()>>(), align_of::<Page<()>>()), (64, 64));
        assert_eq!(size_of::<Page<[u64; 7]>>(), 64);
    }
}
