//! Heap memory that may run out without ending the program.

use alloc::boxed::Box;

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
