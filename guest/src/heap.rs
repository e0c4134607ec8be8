//! The kernel's heap.

use talc::TalcLock;
use talc::source::Manual;

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Gives memory to the heap, for ever.
///
/// # Safety
/// The range is mapped, writable, and nobody else's.
pub unsafe fn claim(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { HEAP.lock().claim(start, bytes) };
}
