//! A lazily backed array: reads zero where nothing was written, and knows how to be written safely.
//!
//! On a real machine it is a typed view of one [`Mapping`]. Under loom it is a vector, because loom's atomics are
//! objects and not memory; the interface is the same.

#[cfg(not(loom))]
use core::marker::PhantomData;
use core::ops::Range;

#[cfg(not(loom))]
use crate::geometry::PAGE_SIZE;
use crate::heap::OutOfMemory;
use crate::mapping::{FoldRange, Mapping};
use crate::stock::Source;

#[cfg(not(loom))]
use crate::sync::{AtomicU8, AtomicU32, AtomicU64};

/// An entry of a [`Table`].
///
/// # Safety
/// All zero bytes are a valid value, the size is at most 4096 and a power of two or a multiple of 16, and every mutation goes through
/// atomics.
pub unsafe trait TableEntry: Sync {
    /// What loom needs instead of zeroed memory; on a platform with a gap, if so.
    #[cfg(loom)]
    fn zero(has_gap: bool) -> Self;
    #[cfg(loom)]
    fn fold(&self, has_gap: bool);
    #[cfg(loom)]
    fn materialise(&self);
}

macro_rules! atomic_entry {
    ($($t:ident),*) => {$(
        // SAFETY: an atomic integer: zero is valid, it is a power of two long and mutated atomically.
        #[cfg(not(loom))]
        unsafe impl TableEntry for $t {}
        // SAFETY: as above; loom's atomics are never made from zeroed memory.
        #[cfg(loom)]
        unsafe impl TableEntry for crate::sync::$t {
            fn zero(_: bool) -> Self {
                crate::sync::$t::unbacked()
            }
            fn fold(&self, _: bool) {
                unreachable!("only the memory map folds");
            }
            fn materialise(&self) {
                crate::sync::$t::materialise(self);
            }
        }
    )*};
}
atomic_entry!(AtomicU8, AtomicU32, AtomicU64);

/// `len` entries of `T` over one mapping.
pub struct Table<T, M> {
    mapping: M,
    len: u64,
    #[cfg(loom)]
    items: alloc::vec::Vec<T>,
    #[cfg(not(loom))]
    base: core::ptr::NonNull<T>,
}

// SAFETY: the table is a shared view of entries that are `Sync`; the raw pointer is derived from the mapping it owns.
#[cfg(not(loom))]
unsafe impl<T: TableEntry, M: Mapping> Sync for Table<T, M> {}
// SAFETY: as above; moving the table does not move the memory.
#[cfg(not(loom))]
unsafe impl<T: TableEntry, M: Mapping> Send for Table<T, M> {}

impl<T: TableEntry, M: Mapping> Table<T, M> {
    /// A view of `mapping` as `len` entries; `None` if the mapping is too short for them.
    #[cfg(not(loom))]
    pub(crate) fn new(mapping: M, len: u64) -> Option<Self> {
        const { assert!(size_of::<T>().is_power_of_two() || size_of::<T>().is_multiple_of(16)) };
        const { assert!(size_of::<T>() <= PAGE_SIZE as usize) };
        if len.checked_mul(size_of::<T>() as u64)?.checked_next_multiple_of(crate::geometry::PAGE_SIZE)?
            > mapping.len()
        {
            return None;
        }
        Some(Self { base: mapping.base().cast(), mapping, len })
    }
    #[cfg(loom)]
    pub(crate) fn new(mapping: M, len: u64) -> Option<Self> {
        Some(Self { mapping, len, items: (0..len).map(|_| T::zero(M::HAS_GAP)).collect() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn mapping(&self) -> &M {
        &self.mapping
    }

    /// Entry `index`; `None` beyond the end. It may be folded: read it freely (a descriptor only when its class allows it,
    /// see [`crate::protocol`]), write it only when it is known to be backed.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        self.view().get(index)
    }

    /// Adjacent entries at once; those beyond the end are left out.
    #[inline]
    pub(crate) fn slice(&self, entries: Range<u64>) -> &[T] {
        let end = entries.end.min(self.len);
        let start = entries.start.min(end);
        #[cfg(loom)]
        return self.items.get(start as usize..end as usize).unwrap_or_default();
        // SAFETY: in bounds of the mapping; the rest as in `View::get_unchecked`.
        #[cfg(not(loom))]
        unsafe {
            core::slice::from_raw_parts(self.base.add(start as usize).as_ptr(), (end - start) as usize)
        }
    }

    /// The entries without the table around them.
    #[inline]
    pub(crate) fn view(&self) -> View<'_, T> {
        #[cfg(loom)]
        return View { items: &self.items };
        #[cfg(not(loom))]
        View { base: self.base, len: self.len, _entries: PhantomData }
    }

    /// Which entry of this table `entry` is.
    #[inline]
    pub(crate) fn index_of(&self, entry: &T) -> u64 {
        #[cfg(loom)]
        let base = self.items.as_ptr();
        #[cfg(not(loom))]
        let base = self.base.as_ptr();
        let offset = core::ptr::from_ref(entry).addr().wrapping_sub(base.addr());
        (offset / size_of::<T>()) as u64
    }

    /// Where `entries` lie in the mapping, in bytes: what [`fold`](Self::fold) takes.
    pub(crate) fn bytes_of(&self, entries: Range<u64>) -> Range<u64> {
        let size = size_of::<T>() as u64;
        entries.start * size..entries.end.min(self.len) * size
    }

    /// Makes `entries` writable. Those that are backed keep their values, the others are zero.
    ///
    /// Of the table of descriptors, the caller owns the map pages of `entries`, and they are folded. Of other tables anyone
    /// may ask.
    pub(crate) fn materialise(&self, entries: Range<u64>) -> Result<(), OutOfMemory> {
        self.materialise_from(entries, &mut Source::Machine)
    }

    /// The same, with memory from that source.
    pub(crate) fn materialise_from(
        &self,
        entries: Range<u64>,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        if entries.start >= entries.end {
            return Ok(());
        }
        // SAFETY: the mapping is reached through this table alone. That of descriptors is materialised in one place
        // (`MemoryMap::materialise`), for owners of folded map pages only: no walker is led there, and no other code asks.
        unsafe { source.materialise(&self.mapping, self.bytes_of(entries.clone())) }?;
        #[cfg(loom)]
        for index in entries {
            if let Some(item) = self.get(index) {
                item.materialise();
            }
        }
        Ok(())
    }

    /// Folds each of `ranges` (bytes from [`bytes_of`](Self::bytes_of), covering whole 4 KiB pages), in order; returns
    /// how many it folded.
    ///
    /// # Safety
    /// As [`Mapping::fold`].
    pub(crate) unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        // SAFETY: the caller's promise is the mapping's.
        let done = unsafe { self.mapping.fold(ranges) };
        #[cfg(loom)]
        {
            let size = size_of::<T>() as u64;
            for range in ranges.iter().take(done) {
                for index in range.bytes.start / size..range.bytes.end / size {
                    if let Some(item) = self.get(index) {
                        item.fold(M::HAS_GAP);
                    }
                }
            }
        }
        done
    }
}

/// The entries of a table: a pointer and a length, to be kept where they are used often. (A walker that keeps them in
/// itself lets the compiler keep them in registers; through the engine it has to load them again after every atomic.)
pub struct View<'a, T> {
    #[cfg(loom)]
    items: &'a [T],
    #[cfg(not(loom))]
    base: core::ptr::NonNull<T>,
    #[cfg(not(loom))]
    len: u64,
    #[cfg(not(loom))]
    _entries: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

// SAFETY: a view is a shared slice of entries that are `Sync`.
unsafe impl<T: TableEntry> Sync for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: TableEntry> Send for View<'_, T> {}

impl<'a, T: TableEntry> View<'a, T> {
    /// As [`Table::get`].
    #[inline]
    pub(crate) fn get(self, index: u64) -> Option<&'a T> {
        #[cfg(loom)]
        return self.items.get(index as usize);
        // SAFETY: below the length.
        #[cfg(not(loom))]
        (index < self.len).then(|| unsafe { self.get_unchecked(index) })
    }

    /// Entry `index`, unchecked, for the paths where a check would be felt.
    ///
    /// # Safety
    /// `index` is below the table's length.
    #[inline]
    #[cfg_attr(loom, allow(clippy::indexing_slicing))]
    pub(crate) unsafe fn get_unchecked(self, index: u64) -> &'a T {
        #[cfg(loom)]
        return &self.items[index as usize];
        // SAFETY: in bounds of the mapping by the caller's promise; the mapping is readable for as long as the table,
        // which outlives the view; zero bytes are a valid `T` (TableEntry), and all mutation is atomic.
        #[cfg(not(loom))]
        unsafe {
            self.base.add(index as usize).as_ref()
        }
    }
}
