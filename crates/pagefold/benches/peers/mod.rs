//! What the engine is compared with: memory without an engine, and allocators that do as little as they can.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: usize = 4096;
/// The descriptors of a folio of 2 MiB.
const GROUP: usize = 8 * PAGE;

/// The same memory, populated and discarded without an engine.
pub struct RawMemory {
    groups: usize,
    base: *mut u8,
    pidfd: rustix::fd::OwnedFd,
}

impl RawMemory {
    fn len(&self) -> usize {
        self.groups * GROUP
    }

    /// Groups of eight pages.
    pub fn new(groups: usize) -> Self {
        // SAFETY: a new mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                groups * GROUP,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: the mapping above.
        unsafe { libc::madvise(base, groups * GROUP, libc::MADV_NOHUGEPAGE) };
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        Self { groups, base: base.cast(), pidfd: pidfd.expect("a pidfd") }
    }

    /// Memory behind everything, and every descriptor touched, as unfolding does.
    pub fn populate(&self) {
        for at in (0..self.len()).step_by(64) {
            // SAFETY: inside the mapping.
            unsafe { self.base.add(at).cast::<u64>().write_volatile(1) };
        }
    }

    /// Seven of eight pages of each group, in one call.
    pub fn discard(&self) {
        let vectors: Vec<libc::iovec> = (0..self.groups)
            .map(|n| libc::iovec {
                iov_base: self.base.wrapping_add(n * GROUP + PAGE).cast(),
                iov_len: GROUP - PAGE,
            })
            .collect();
        // SAFETY: ranges of our own mapping whose content is not needed.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.pidfd.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                libc::MADV_DONTNEED,
                0,
            )
        };
        assert_eq!(done, (self.groups * (GROUP - PAGE)) as i64);
    }
}

/// A bare bitmap: find a clear bit, set it; clear it.
pub struct Bitmap(pub Vec<AtomicU64>);

impl Bitmap {
    pub fn alloc(&self, from: usize) -> Option<u64> {
        (from..self.0.len()).find_map(|at| {
            let word = &self.0[at];
            let mut now = word.load(Ordering::Relaxed);
            while now != u64::MAX {
                let bit = now.trailing_ones();
                match word.compare_exchange(now, now | 1 << bit, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return Some(at as u64 * 64 + u64::from(bit)),
                    Err(other) => now = other,
                }
            }
            None
        })
    }

    pub fn free(&self, page: u64) {
        let before = self.0[page as usize / 64].fetch_and(!(1 << (page % 64)), Ordering::Release);
        assert!(before >> (page % 64) & 1 == 1);
    }
}

/// The atomics of LLFree's order 0: a get lowers the CPU's local counter, lowers the area's counter, and sets a bit; a
/// put undoes the three. (Its crate is not in the registry; this is the shape its paper and source describe.)
pub struct ThreeLevels {
    pub local: AtomicU64,
    pub area: AtomicU64,
    pub bits: Bitmap,
}

impl ThreeLevels {
    fn lower(word: &AtomicU64) {
        let lowered =
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1)).is_ok();
        assert!(lowered);
    }

    fn raise(word: &AtomicU64) {
        let raised = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_add(1));
        assert!(raised.is_ok());
    }

    pub fn alloc(&self) -> Option<u64> {
        Self::lower(&self.local);
        Self::lower(&self.area);
        self.bits.alloc(0)
    }

    pub fn free(&self, page: u64) {
        self.bits.free(page);
        Self::raise(&self.area);
        Self::raise(&self.local);
    }
}
