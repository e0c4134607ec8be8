//! Memory of this process alone: a private mapping, of nothing or of a file that a guest was saved in.
//!
//! | mapped | what unplugging does | why not otherwise |
//! |---|---|---|
//! | nothing (`MAP_ANONYMOUS`) | `MADV_DONTNEED`: the pages go, and zeros come | |
//! | a file (`MAP_PRIVATE`) | anonymous memory takes the range's place (`MAP_FIXED`) | `MADV_DONTNEED` would bring the file's bytes back to the guest; a hole in the file would damage what other guests are restored from |
//!
//! No other process sees this memory: for vhost-user backends take a [`Memfd`](crate::Memfd).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::device::Device;
use crate::host::{Backing, GuestAccess};
use crate::memfd::{MemfdError, locks_memory};
use crate::settings::{MIN_BLOCK_SIZE, thp_size};

/// Entries of `/proc/self/pagemap` that are read at a time.
const ENTRIES: usize = 64 << 10;
/// Bits of an entry (Linux, `Documentation/admin-guide/mm/pagemap.rst`): a page is there, or swapped out; it is a file's.
const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const FILE: u64 = 1 << 61;

/// Private memory, mapped once: the VMM and the device share the mapping.
#[derive(Debug)]
pub struct Private {
    mapping: Arc<MmapRegion>,
    prealloc: bool,
}

impl Private {
    /// `size` bytes of anonymous memory, of which none is used yet.
    ///
    /// # Errors
    /// There is no address space for it, or this process locks its memory.
    pub fn anonymous(size: u64) -> Result<Self, MemfdError> {
        Self::map(None, size)
    }

    /// A private view of `size` bytes of a file, from its offset on: what a guest was saved in. The file stays as it is, whatever
    /// the guest does. It must keep its size. For [`Device::restore`]: what the file has where blocks were plugged is the
    /// guest's, and the rest is zeros.
    ///
    /// # Errors
    /// The file is too small or cannot be mapped, or this process locks its memory.
    pub fn of_file(file: FileOffset, size: u64) -> Result<Self, MemfdError> {
        let has = file.file().metadata().map_err(|error| MemfdError::Map(error.to_string()))?.len();
        if file.start().checked_add(size).is_none_or(|end| end > has) {
            let why = format!("{size} bytes from {:#x} of a file that has {has}", file.start());
            return Err(MemfdError::Map(why));
        }
        Self::map(Some(file), size)
    }

    fn map(file: Option<FileOffset>, size: u64) -> Result<Self, MemfdError> {
        let map = |error: &dyn std::fmt::Display| MemfdError::Map(error.to_string());
        if locks_memory().map_err(|error| map(&error))? {
            return Err(MemfdError::Locked);
        }
        let anonymous = if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous;
        let mapping = MmapRegion::build(file, size as usize, libc::PROT_READ | libc::PROT_WRITE, flags);
        Ok(Self { mapping: Arc::new(mapping.map_err(|error| map(&error))?), prealloc: false })
    }

    /// Fills blocks with memory when they are plugged (`MADV_POPULATE_WRITE`, Linux 5.14): a host without any answers BUSY.
    pub fn with_prealloc(mut self, prealloc: bool) -> Self {
        self.prealloc = prealloc;
        self
    }

    /// The memory as guest memory that begins at `addr`: the same mapping, however often it is asked for.
    ///
    /// # Errors
    /// `addr` is too high.
    pub fn guest_region(&self, addr: u64) -> Result<GuestRegionMmap, MemfdError> {
        GuestRegionMmap::with_arc(Arc::clone(&self.mapping), GuestAddress(addr))
            .ok_or_else(|| MemfdError::Map(format!("{addr:#x} is too high for {} bytes", self.size())))
    }

    /// Where a range is in this process. It is whole pages of the mapping.
    fn range(&self, offset: u64, len: u64) -> io::Result<(*mut libc::c_void, usize)> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size());
        let is_whole = offset.is_multiple_of(self.page_size()) && len.is_multiple_of(self.page_size());
        if end.is_none() || !is_whole {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no range of whole pages of this memory",
            ));
        }
        Ok((self.mapping.as_ptr().wrapping_add(offset as usize).cast(), len as usize))
    }
}

impl<G: GuestAccess> Device<Private, G> {
    /// The region as guest memory, where the guest has it: [`Private::guest_region`] at
    /// [`Settings::addr`](crate::Settings::addr).
    ///
    /// # Errors
    /// None that a device's settings have not been refused for.
    pub fn guest_region(&self) -> Result<GuestRegionMmap, MemfdError> {
        self.host.backing.guest_region(self.core.addr)
    }
}

impl Backing for Private {
    fn size(&self) -> u64 {
        self.mapping.size() as u64
    }

    fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn default_block_size(&self) -> u64 {
        thp_size().max(MIN_BLOCK_SIZE)
    }

    /// Pages of this process's own, swapped out or not, and what the file has. A page that was read only counts.
    fn resident(&self) -> io::Result<u64> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let first = self.mapping.as_ptr() as u64 / self.page_size();
        let (mut left, mut at) = ((self.size() / self.page_size()) as usize, first * 8);
        let (mut entries, mut pages) = (vec![0; 8 * ENTRIES.min(left)], 0u64);
        while left > 0 {
            let part = &mut entries[..8 * ENTRIES.min(left)];
            pagemap.read_exact_at(part, at)?;
            let is_own = |entry: &[u8]| {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                entry & PRESENT_OR_SWAPPED != 0 && entry & FILE == 0
            };
            pages += part.chunks_exact(8).filter(|entry| is_own(entry)).count() as u64;
            (left, at) = (left - part.len() / 8, at + part.len() as u64);
        }
        let file =
            self.mapping.file_offset().map_or(Ok(0), |file| Ok(file.file().metadata()?.blocks() * 512));
        file.map(|bytes: u64| pages * self.page_size() + bytes)
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let (start, len) = self.range(offset, len)?;
        if self.prealloc {
            // SAFETY: the range lies in a mapping that lives as long as `self`, and no byte of it changes.
            unsafe { madvise(start, len, Advice::LinuxPopulateWrite)? };
        }
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let (start, len) = self.range(offset, len)?;
        if self.mapping.file_offset().is_none() {
            // SAFETY: the range lies in a mapping that lives as long as `self`. Its bytes become zeros; who reads them takes any,
            // because a guest may write them at any time.
            unsafe { madvise(start, len, Advice::LinuxDontNeed)? };
        } else {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the range lies in a mapping that lives as long as `self`, which unmaps the new one with the rest. Its bytes
            // become zeros there too; who reads them takes any.
            let put = unsafe { mmap_anonymous(start, len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
            debug_assert_eq!(put, start);
        }
        Ok(())
    }
}
