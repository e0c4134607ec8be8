//! Memory that a VMM takes away while it is mapped. A file that is cut short after it was mapped ends a process at its next
//! access (SIGBUS), and so does one that the host has no memory for: no check before can help. This handler puts a page of zeros there instead, so that only the VMM which
//! did it has lost something: its guest's rings.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::signal::register_signal_handler;

/// Sizes of pages that a mapping may be made of, in bytes: of hugetlbfs only whole huge pages can be replaced (Linux,
/// `hugetlb_vm_op_split`). The system's own page comes before them.
const HUGE: [u64; 6] = [64 << 10, 1 << 20, 2 << 20, 32 << 20, 512 << 20, 1 << 30];

/// Pages that were put in place.
static PAGES: AtomicU64 = AtomicU64::new(0);
/// Bytes of a page, for the handler.
static PAGE_SIZE: AtomicU64 = AtomicU64::new(0);

/// From here on this process outlives VMMs that cut the files of their memory short: what is gone reads as zeros. It is the
/// whole process's handler of SIGBUS, and meant for one that maps no files but guests' memory.
///
/// # Errors
/// The system takes no handler.
pub fn outlive_cut_memory() -> io::Result<()> {
    // Relaxed, as below: numbers that stand for themselves; the handler is registered after the first.
    PAGE_SIZE.store(rustix::param::page_size() as u64, Ordering::Relaxed);
    register_signal_handler(libc::SIGBUS, on_bus_error).map_err(Into::into)
}

/// How many pages were gone so far.
pub(crate) fn pages_gone() -> u64 {
    PAGES.load(Ordering::Relaxed)
}

/// Runs in a signal handler: system calls and atomics, nothing else.
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler that was registered with SA_SIGINFO, and for SIGBUS it has an
    // address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    let size = PAGE_SIZE.load(Ordering::Relaxed);
    if code == libc::BUS_ADRERR {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // The smallest that the kernel takes is the mapping's page: a part of one it refuses.
        for size in std::iter::once(size).chain(HUGE) {
            let page = (address & !(size - 1)) as *mut libc::c_void;
            // SAFETY: the page that is replaced is one of a mapped file that has no byte there, or of which the host has none,
            // so that nobody can have read or written it; every reader of it takes any bytes, because a guest may write them
            // at any time. A larger page is tried only where a smaller one is a part of a huge page.
            let put = unsafe { libc::mmap(page, size as usize, access, flags, -1, 0) };
            if put == page {
                PAGES.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
    // SAFETY: setting a signal back to its default is allowed in a handler. The access is tried again when this returns, and
    // ends the process as it would have without a handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
