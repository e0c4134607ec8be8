//! Memory that may run out without ending the program, and the one error for that.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// There is no memory for this: no heap memory, or no frames or page tables of the machine to back a table with. Nothing was
/// changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory: free some or raise the limit, then retry")
    }
}
impl core::error::Error for OutOfMemory {}

/// Room for `capacity` items.
pub(crate) fn try_vec<T>(capacity: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut items = Vec::new();
    items.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
    Ok(items)
}

/// `Box::new` that gives the value back when there is no memory.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>, T> {
    const { assert!(size_of::<T>() != 0) };
    let layout = core::alloc::Layout::new::<T>();
    // SAFETY: the layout has a size above zero.
    let place = unsafe { alloc::alloc::alloc(layout) }.cast::<T>();
    if place.is_null() {
        return Err(value);
    }
    // SAFETY: freshly allocated with T's layout by the global allocator, which is what `Box` frees with; written
    // before the box is made.
    unsafe {
        place.write(value);
        Ok(Box::from_raw(place))
    }
}
