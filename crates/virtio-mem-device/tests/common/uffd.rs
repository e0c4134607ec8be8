//! Memory that is filled page by page as it is touched, by the kernel's `userfaultfd` (Linux, `userfaultfd(2)`,
//! `ioctl_userfaultfd(2)`, `include/uapi/linux/userfaultfd.h`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pagefold_virtio_mem_device::Loader;
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

pub const PAGE: u64 = 4096;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

/// What is to arrive, and what has.
#[derive(Default)]
pub struct Coming {
    /// Offsets of pages that have not arrived.
    pages: BTreeSet<u64>,
    /// What the last `forget` has taken from them.
    forgotten: Vec<u64>,
    /// How many have arrived.
    pub arrived: u64,
}

/// A loader that knows which pages are to come.
#[derive(Clone, Default)]
pub struct Pages(pub Arc<Mutex<Coming>>);

impl Loader for Pages {
    fn expect(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().pages.extend((offset..offset + len).step_by(PAGE as usize));
        Ok(())
    }

    fn forget(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // A page that is on its way holds the lock.
        let coming = &mut *self.0.lock().unwrap();
        coming.forgotten = coming.pages.range(offset..offset + len).copied().collect();
        coming.forgotten.iter().for_each(|page| assert!(coming.pages.remove(page)));
        Ok(())
    }

    fn remember(&mut self, _: u64, _: u64) {
        let coming = &mut *self.0.lock().unwrap();
        coming.pages.extend(coming.forgotten.drain(..));
    }
}

/// A thread that fills a region.
pub struct Filler {
    thread: Option<JoinHandle<()>>,
    stop: Option<PipeWriter>,
    pub pages: Pages,
}

/// `ioctl` with words as its structure.
fn ioctl<const N: usize>(file: &File, what: u64, words: &mut [u64; N]) -> io::Result<()> {
    // SAFETY: each request that is used here reads and writes so many words, and what these name is memory of the caller's.
    match unsafe { libc::ioctl(file.as_raw_fd(), what, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Filler {
    /// Fills a region's missing pages: from `saved`, by offset, those that are to come, and others with zeros.
    ///
    /// # Errors
    /// The kernel has no `userfaultfd` for this process.
    pub fn new(region: &GuestRegionMmap, saved: Vec<u8>) -> io::Result<Self> {
        // The kernel lets nobody wait for one that blocks.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: the system call has one argument, flags.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let uffd = unsafe { File::from_raw_fd(fd as i32) };
        ioctl(&uffd, UFFDIO_API, &mut [UFFD_API, 0, 0])?;
        let (start, len) = (region.as_ptr() as u64, region.len());
        ioctl(&uffd, UFFDIO_REGISTER, &mut [start, len, MODE_MISSING, 0])?;
        let (stopped, stop) = io::pipe()?;
        let pages = Pages::default();
        let coming = Arc::clone(&pages.0);
        let thread = std::thread::spawn(move || fill(uffd, start, &saved, &coming, &stopped));
        Ok(Self { thread: Some(thread), stop: Some(stop), pages })
    }

    pub fn arrived(&self) -> u64 {
        self.pages.0.lock().unwrap().arrived
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn fill(mut uffd: File, start: u64, saved: &[u8], coming: &Mutex<Coming>, stopped: &PipeReader) {
    loop {
        let mut wait = [PollFd::new(&uffd, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        poll(&mut wait, None).unwrap();
        if !wait[1].revents().is_empty() {
            return;
        }
        let mut message = [0; 32];
        match uffd.read_exact(&mut message) {
            // Another thread's fault on the same page is answered already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read.unwrap(),
        }
        assert_eq!(message[0], EVENT_PAGEFAULT);
        let at = u64::from_ne_bytes(message[16..24].try_into().unwrap()) & !(PAGE - 1);
        let mut coming = coming.lock().unwrap();
        let offset = at - start;
        let filled = if coming.pages.remove(&offset) {
            coming.arrived += 1;
            let from = saved[offset as usize..].as_ptr() as u64;
            ioctl(&uffd, UFFDIO_COPY, &mut [at, from, PAGE, 0, 0])
        } else {
            ioctl(&uffd, UFFDIO_ZEROPAGE, &mut [at, PAGE, 0, 0])
        };
        filled.unwrap();
    }
}
