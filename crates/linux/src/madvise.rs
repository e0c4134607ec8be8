//! `madvise(2)` that is asked again where it was interrupted, and `process_madvise(2)`, which rustix does not wrap for the process
//! itself.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use pagefold_engine::platform::FoldRange;
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

/// `MADV_POPULATE_WRITE`: memory behind a range, or an error where there is none.
///
/// # Safety
/// The range is a mapping of the caller's own. (Populating changes no content.)
pub(crate) unsafe fn populate(start: *mut libc::c_void, len: usize) -> Result<(), Errno> {
    loop {
        // SAFETY: the caller's promise.
        match unsafe { madvise(start, len, Advice::LinuxPopulateWrite) } {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// `MADV_DONTNEED` for many ranges of this process, each `base` plus its offsets. Returns the bytes done.
pub(crate) fn process_madvise_dontneed(
    pidfd: &OwnedFd,
    base: *mut u8,
    ranges: &[FoldRange],
) -> io::Result<u64> {
    /// `UIO_MAXIOV`.
    const MOST: usize = 1024;
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST];
    let mut done = 0;
    for lot in ranges.chunks(MOST) {
        for (vector, range) in vectors.iter_mut().zip(lot) {
            vector.iov_base = base.wrapping_add(range.bytes.start as usize).cast();
            vector.iov_len = (range.bytes.end - range.bytes.start) as usize;
        }
        let wanted: u64 = lot.iter().map(|range| range.bytes.end - range.bytes.start).sum();
        // SAFETY: the vectors describe ranges of our own mappings whose content nobody needs (the callers' promise),
        // and the array outlives the call.
        let bytes = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_raw_fd(),
                vectors.as_ptr(),
                lot.len(),
                libc::MADV_DONTNEED,
                0,
            )
        };
        match u64::try_from(bytes) {
            Ok(bytes) => {
                done += bytes;
                if bytes < wanted {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(done)
}
