//! Frames that are set aside.
//!
//! A process cannot keep a page of memory for an address that it will have later. What it can do is to have as many pages as it
//! will need, and to give one back for each that it then asks for: its own limits (a cgroup's, `RLIMIT_AS`) have room for that
//! one at any time. Where the whole machine has no memory, the kernel waits for some.

use std::sync::{Mutex, PoisonError};

use pagefold_engine::OutOfMemory;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::madvise::populate;

const PAGE: u64 = 4096;

/// Pages that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Chunk>>);

/// Pages that were set aside together, and that are there.
#[derive(Debug)]
struct Chunk {
    base: *mut libc::c_void,
    pages: u64,
}

// SAFETY: the chunk's memory is reached by nobody; its address is only given back to the kernel.
unsafe impl Send for Chunk {}

impl Kept {
    /// Adds pages.
    pub(crate) fn add(&self, pages: u64) -> Result<(), OutOfMemory> {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.try_reserve(1).map_err(|_| OutOfMemory)?;
        chunks.push(Chunk::new(pages)?);
        Ok(())
    }

    /// Gives pages back to the kernel.
    pub(crate) fn give_back(&self, pages: u64) {
        let mut left = pages;
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while left > 0
            && let Some(chunk) = chunks.last_mut()
        {
            left -= chunk.shrink(left);
            if chunk.pages == 0 {
                chunks.pop();
            }
        }
    }
}

impl Chunk {
    fn new(pages: u64) -> Result<Self, OutOfMemory> {
        let len = pages.checked_mul(PAGE).and_then(|len| usize::try_from(len).ok()).ok_or(OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }
                .map_err(|_| OutOfMemory)?;
        let chunk = Self { base, pages };
        // Whole huge pages would have to be split later, which takes memory. EINVAL where the kernel has none.
        // SAFETY: our own fresh mapping.
        let _ = unsafe { madvise(base, len, Advice::LinuxNoHugepage) };
        // SAFETY: our own fresh mapping.
        unsafe { populate(base, len) }.map_err(|_| OutOfMemory)?;
        Ok(chunk)
    }

    /// Gives up to `pages` of its pages back, from its end. Returns how many.
    fn shrink(&mut self, pages: u64) -> u64 {
        let pages = pages.min(self.pages);
        self.pages -= pages;
        // A mapping that loses its end is not split, so this takes no memory and does not fail.
        // SAFETY: the end of our own mapping, which nobody uses.
        let _ = unsafe { munmap(self.base.byte_add((self.pages * PAGE) as usize), (pages * PAGE) as usize) };
        pages
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.pages > 0 {
            self.shrink(self.pages);
        }
    }
}
