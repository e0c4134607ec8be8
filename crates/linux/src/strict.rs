//! Trapping stray writes: folded map pages are write-protected with userfaultfd, and whoever writes is named.
//!
//! The hosted platform's folded pages read as zero, but a write would silently bring them back. In strict mode it is
//! caught first: the kernel stops the writer and tells the watching thread which address and which thread it was; the
//! watcher notes it and lets the write go on (so the stray page is also seen by the measurements). It costs a few
//! microseconds a fold, so it is a mode for tests.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_THREAD_ID,
    UFFD_FEATURE_WP_UNPOPULATED, uffd_msg, uffdio_api, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_WRITEPROTECT};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::error::LinuxError;

/// `UFFDIO_REGISTER_MODE_WP`, `UFFDIO_WRITEPROTECT_MODE_WP` and `UFFD_USER_MODE_ONLY` of
/// include/uapi/linux/userfaultfd.h, which are shifts in macros and therefore not in the bindings.
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const USER_MODE_ONLY: u32 = 1;

/// The largest memory map that is armed page by page at once: that of 64 GiB.
const LARGEST: u64 = 1 << 30;

/// A write that reached a folded map page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrayWrite {
    /// Where, as a byte offset into the memory map: page number times 64, rounded down to the map page.
    pub offset: u64,
    /// The thread that wrote (`gettid`).
    pub thread: i32,
}

/// The watcher.
#[derive(Debug)]
pub struct StrictMode {
    uffd: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    seen: Arc<Mutex<Seen>>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    base: u64,
    writes: Vec<StrayWrite>,
    /// All of them; the list ends at some point.
    total: u64,
}

/// Stray writes kept in the list.
const KEPT: usize = 4096;

impl StrictMode {
    pub(crate) fn new() -> Result<Self, LinuxError> {
        Self::start().map_err(LinuxError::NoStrict)
    }

    fn start() -> io::Result<Self> {
        // Only writes from user mode: the kernel's own (populating) are ours, and come after `allow`.
        let flags = UserfaultfdFlags::CLOEXEC
            | UserfaultfdFlags::NONBLOCK
            | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
        // SAFETY: the descriptor is used with the ioctls of its documented interface only, and no range registered with
        // it is relied upon to behave as plain memory by anyone but the regions, which know about it.
        let uffd = unsafe { userfaultfd(flags)? };
        let wanted = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_THREAD_ID;
        let mut api = uffdio_api { api: u64::from(UFFD_API), features: u64::from(wanted), ioctls: 0 };
        ioctl(&uffd, UFFDIO_API, &mut api)?;
        let uffd = Arc::new(uffd);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watcher = {
            let (uffd, stop, seen) = (Arc::clone(&uffd), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::Builder::new().name("strict".into()).spawn(move || watch(&uffd, &stop, &seen))?
        };
        Ok(Self { uffd, stop, seen, watcher: Some(watcher) })
    }

    /// Arms a fresh memory map: all of it is folded.
    pub(crate) fn watch(&self, base: u64, len: u64) -> Result<(), LinuxError> {
        if len > LARGEST {
            return Err(LinuxError::StrictTooLarge { bytes: len, limit: LARGEST });
        }
        let range = uffdio_range { start: base, len };
        let mut register = uffdio_register { range, mode: REGISTER_MODE_WP, ioctls: 0 };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).base = base;
        ioctl(&self.uffd, UFFDIO_REGISTER, &mut register)
            .and_then(|()| protect(&self.uffd, base, len, true))
            .map_err(LinuxError::NoStrict)
    }

    /// Lets the owner write: the range is about to be materialised.
    pub(crate) fn allow(&self, address: u64, len: u64) -> Result<(), Errno> {
        protect(&self.uffd, address, len, false)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Arms a range that was just folded.
    pub(crate) fn forbid(&self, address: u64, len: u64) {
        // It fails only for lack of page tables; then a stray write there goes unnamed, but not unmeasured.
        let _ = protect(&self.uffd, address, len, true);
    }

    /// Stray writes so far: how many, and the first few thousand of them.
    pub fn stray_writes(&self) -> (u64, Vec<StrayWrite>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.total, seen.writes.clone())
    }
}

impl Drop for StrictMode {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn watch(uffd: &OwnedFd, stop: &OwnedFd, seen: &Mutex<Seen>) {
    loop {
        let mut fds = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        while let Some((address, thread)) = next_fault(uffd) {
            let page = address & !4095;
            {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.total += 1;
                let offset = page.wrapping_sub(seen.base);
                if seen.writes.len() < KEPT {
                    seen.writes.push(StrayWrite { offset, thread });
                }
            }
            // Un-protecting wakes the writer, which tries again and succeeds.
            let _ = protect(uffd, page, 4096, false);
        }
    }
}

fn next_fault(uffd: &OwnedFd) -> Option<(u64, i32)> {
    let mut bytes = [0u8; size_of::<uffd_msg>()];
    loop {
        let read = rustix::io::read(uffd.as_fd(), &mut bytes).ok()?;
        if read != bytes.len() {
            return None;
        }
        // SAFETY: the kernel filled all of it with one message, and the struct is plain data of that size.
        let message: uffd_msg = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        if u32::from(message.event) == UFFD_EVENT_PAGEFAULT {
            // SAFETY: the union holds what the event says, and with FEATURE_THREAD_ID the second one holds the thread.
            let (address, thread) =
                unsafe { (message.arg.pagefault.address, message.arg.pagefault.feat.ptid) };
            return Some((address, thread as i32));
        }
    }
}

fn protect(uffd: &OwnedFd, start: u64, len: u64, on: bool) -> io::Result<()> {
    let mode = if on { WRITEPROTECT_MODE_WP } else { 0 };
    let mut arg = uffdio_writeprotect { range: uffdio_range { start, len }, mode };
    loop {
        match ioctl(uffd, UFFDIO_WRITEPROTECT, &mut arg) {
            // The address space is changing (another thread maps something).
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
}

fn ioctl<T>(fd: &OwnedFd, request: u32, arg: &mut T) -> io::Result<()> {
    // SAFETY: each request is passed the struct that its number encodes the size of.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request), std::ptr::from_mut(arg)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
