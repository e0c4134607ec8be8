//! What a page has by itself where descriptors are objects: a word of 8 bytes, which names one.

use crate::map::MapEntry;
use crate::sync::{MapWord, Ordering};
use crate::table::TableEntry;

/// What a page has by itself: zero, or a kind of object in the low 4 bits and its number above.
#[repr(transparent)]
pub struct Word(pub(super) MapWord);

/// The one kind there is: a folio.
const FOLIO: u64 = 1;
pub(super) const KIND_BITS: u32 = 4;

impl Word {
    #[inline]
    pub(super) fn object(&self, order: Ordering) -> Option<u64> {
        let word = self.0.load(order);
        (word != 0).then_some(word >> KIND_BITS)
    }
    pub(super) fn name(&self, object: u64) {
        // Release: the object before the way to it.
        self.0.store(object << KIND_BITS | FOLIO, Ordering::Release);
    }
}

// SAFETY: an atomic integer: zero is valid, it is a power of two long and mutated atomically.
unsafe impl TableEntry for Word {
    #[cfg(loom)]
    fn zero(has_gap: bool) -> Self {
        Word(MapWord::folded(has_gap))
    }
    #[cfg(loom)]
    fn fold(&self, has_gap: bool) {
        self.0.fold(has_gap);
    }
    #[cfg(loom)]
    fn materialise(&self) {
        self.0.materialise();
    }
}

impl MapEntry for Word {
    fn clear(&self, _: bool) {
        // Release: before the object that it named is freed.
        self.0.store(0, Ordering::Release);
    }
    fn mark_poisoned(&self) {
        // Walkers do not write words. The mark beside the map is the truth.
    }
}
