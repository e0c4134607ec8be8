//! What the kernel offers, tried once on a scrap of memory.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use pagefold_engine::platform::FoldRange;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::error::LinuxError;
use crate::madvise::process_madvise_dontneed;
use crate::measure::{Pages, scan_pagemap};

/// What works here.
#[derive(Debug)]
pub struct Support {
    /// `process_madvise(MADV_DONTNEED)` on ourselves (Linux 6.13): one call and one flush for a batch of folds.
    pub(crate) pidfd: Option<OwnedFd>,
    /// `PAGEMAP_SCAN` (Linux 6.7).
    pub(crate) pagemap_scan: bool,
}

/// Something the kernel does not have, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// One call and one flush a range instead of one a batch.
    ProcessMadvise,
    /// Measuring reads `/proc/self/pagemap`, more slowly.
    PagemapScan,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::ProcessMadvise => {
                "no process_madvise(MADV_DONTNEED) here (Linux 6.13): folding makes one call a range"
            }
            Missing::PagemapScan => {
                "no PAGEMAP_SCAN here (Linux 6.7): measuring reads /proc/self/pagemap instead"
            }
        })
    }
}

impl Support {
    pub(crate) fn probe() -> Result<Self, LinuxError> {
        let page_size = rustix::param::page_size();
        if page_size != 4096 {
            return Err(LinuxError::PageSize(page_size));
        }
        let scrap = Scrap::new().map_err(LinuxError::NoPopulate)?;
        scrap.populate().map_err(LinuxError::NoPopulate)?;
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok().filter(|pidfd| {
            let range = FoldRange { bytes: 0..4096, backed: 1 };
            process_madvise_dontneed(pidfd, scrap.0.as_ptr(), std::slice::from_ref(&range))
                .is_ok_and(|bytes| bytes == 4096)
        });
        let address = scrap.address() as u64;
        let pagemap_scan = scan_pagemap(address..address + 4096, Pages::Private, &mut |_| {}).is_ok();
        Ok(Self { pidfd, pagemap_scan })
    }

    /// What is missing and has a slower substitute.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        if self.pidfd.is_none() {
            missing.push(Missing::ProcessMadvise);
        }
        if !self.pagemap_scan {
            missing.push(Missing::PagemapScan);
        }
        missing
    }
}

/// One page to try things on.
struct Scrap(NonNull<u8>);

impl Scrap {
    fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // Where everything new is locked, this page would behave unlike the tables, which are unlocked.
        // SAFETY: the page is ours.
        let _ = unsafe { rustix::mm::munlock(address, 4096) };
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at 0"))
    }

    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    fn populate(&self) -> io::Result<()> {
        // SAFETY: the page is ours and holds nothing.
        unsafe { madvise(self.0.as_ptr().cast(), 4096, Advice::LinuxPopulateWrite)? };
        Ok(())
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, used by nobody else.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), 4096) };
    }
}
