//! Alone in its process, since it locks the memory of all of it.

use pagefold_virtio_mem_device::{Memfd, MemfdError, Pages};

#[test]
fn rd11_a_process_that_locks_its_memory_is_refused() {
    assert!(Memfd::new(1 << 30, Pages::Normal).is_ok());
    // SAFETY: it locks mappings that are made from now on; none is touched.
    assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
    let refused = Memfd::new(1 << 30, Pages::Normal);
    // SAFETY: it unlocks all memory.
    assert_eq!(unsafe { libc::munlockall() }, 0);
    assert!(matches!(refused, Err(MemfdError::Locked)));
    assert!(Memfd::new(1 << 30, Pages::Normal).is_ok());
}
