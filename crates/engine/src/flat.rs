//! Tables whose memory is always there.

use core::ops::Range;
use core::ptr::NonNull;

use crate::geometry::PAGE_SIZE;
use crate::heap::OutOfMemory;
use crate::mapping::{FoldRange, Mapping};

/// A [`Mapping`] over memory that is there for good: nothing is ever backed on demand, and nothing folds.
///
/// For tables that do not fold, such as all tables of a [`FrameAllocator`](crate::FrameAllocator). An engine whose memory map is
/// flat works as well, and gives nothing back.
#[derive(Debug)]
pub struct Flat {
    base: NonNull<u8>,
    len: u64,
}

impl Flat {
    /// Over memory that the program gives up for good. `None` if it holds no 4 KiB-aligned page. It is zeroed, and made as
    /// short as whole pages are: give one page more than [`table_bytes`](crate::FrameAllocator::table_bytes) says, or
    /// aligned memory.
    pub fn from_zeroed(memory: &'static mut [u64]) -> Option<Flat> {
        memory.fill(0);
        let start = memory.as_mut_ptr() as usize;
        let skip = start.next_multiple_of(PAGE_SIZE as usize) - start;
        let len = (size_of_val(memory).checked_sub(skip)? as u64) / PAGE_SIZE * PAGE_SIZE;
        let words = memory.get_mut(skip / size_of::<u64>()..)?;
        (len > 0).then_some(Flat { base: NonNull::new(words.as_mut_ptr())?.cast(), len })
    }

    /// Over `len` bytes at `base`, for memory that has no lifetime in the program: what a boot loader left free.
    ///
    /// # Safety
    /// `base .. base + len` is mapped, readable and writable by every CPU, zero, and used by nothing else, for as long as the
    /// value lives. `base` is a multiple of 4 KiB.
    pub const unsafe fn new(base: NonNull<u8>, len: u64) -> Flat {
        Flat { base, len }
    }
}

// SAFETY: the value stands for memory that is its own.
unsafe impl Send for Flat {}
// SAFETY: as above; who reads and writes it does so by the rules of `Mapping`.
unsafe impl Sync for Flat {}

// SAFETY: by `from_zeroed` (a `&'static mut` is nobody else's, and was filled with zeros) or the promise of `new`, the range is
// the value's alone, zero at first, readable and writable at all times, and aligned. What is materialised stays so.
unsafe impl Mapping for Flat {
    const HAS_GAP: bool = false;

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> u64 {
        self.len
    }

    unsafe fn materialise(&self, _: Range<u64>) -> Result<(), OutOfMemory> {
        Ok(())
    }

    unsafe fn fold(&self, _: &[FoldRange]) -> usize {
        // Nothing is given back, and the ranges keep what they hold.
        0
    }
}
