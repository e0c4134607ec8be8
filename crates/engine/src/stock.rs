//! Where tables get memory from: the machine, which may have none, or what was set aside.

use alloc::vec::Vec;
use core::ops::Range;

use crate::heap::OutOfMemory;
use crate::mapping::Mapping;

/// What was set aside, and is not used.
#[derive(Debug, Default)]
pub struct Stock {
    /// Frames, by the platform's account.
    pub(crate) frames: u64,
    /// Where descriptors are objects: the numbers of allocated ones that no folio has.
    pub(crate) objects: Vec<u64>,
}

/// Where memory comes from.
pub enum Source<'s> {
    /// The machine.
    Machine,
    /// What was set aside.
    Stock(&'s mut Stock),
}

impl Source<'_> {
    /// Puts memory behind `bytes` of a mapping, as [`Mapping::materialise`] does.
    ///
    /// # Safety
    /// As [`Mapping::materialise`].
    pub(crate) unsafe fn materialise<M: Mapping>(
        &mut self,
        mapping: &M,
        bytes: Range<u64>,
    ) -> Result<(), OutOfMemory> {
        match self {
            // SAFETY: the caller's promise.
            Source::Machine => unsafe { mapping.materialise(bytes) },
            Source::Stock(stock) => {
                // SAFETY: the caller's promise. `SetAside` has looked that all it takes is set aside.
                let used = unsafe { mapping.materialise_set_aside(bytes) };
                stock.frames = stock.frames.saturating_sub(used);
                Ok(())
            }
        }
    }
}

/// Frames that `bytes` of a mapping take at most.
pub(crate) fn frames_for<M: Mapping>(mapping: &M, bytes: &Range<u64>) -> u64 {
    use crate::geometry::PAGE_SIZE;
    let pages = bytes.end.div_ceil(PAGE_SIZE).saturating_sub(bytes.start / PAGE_SIZE);
    mapping.frames_for(pages)
}
