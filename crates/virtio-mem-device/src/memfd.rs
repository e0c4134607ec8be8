//! Memory from the host, and back to it: a sparse memfd whose plugged blocks may be filled and whose unplugged blocks are
//! holes.

use std::fs::File;
use std::io;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, fstatfs, ftruncate,
    memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::device::Device;
use crate::host::{Backing, GuestAccess};
use crate::settings::{MIN_BLOCK_SIZE, thp_size};

/// `HUGETLBFS_MAGIC`, `linux/magic.h`.
const HUGETLBFS: rustix::fs::FsWord = 0x958458f6;

/// A hole in a file, whose size stays.
const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Pages of a [`Memfd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// The system's, and transparent huge pages where the host gives them.
    #[default]
    Normal,
    /// Huge pages of the pool: 2 MiB.
    Huge2MiB,
    /// Huge pages of the pool: 1 GiB.
    Huge1GiB,
}

/// Why there is no memory to be had.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    /// The kernel has no such file for us.
    #[error("no memory file of {size} bytes: {source}")]
    Create {
        /// Bytes wanted.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process locks its memory: a sparse file cannot stay sparse.
    #[error(
        "this process locks all memory it maps (mlockall): every block would be filled at once; unlock memory, \
         and let the device fill each block as it is plugged"
    )]
    Locked,
    /// What is unplugged could not be given back.
    #[error(
        "no holes can be made in the memory file ({0}): take one on tmpfs or hugetlbfs that is open to be written"
    )]
    NoHoles(io::Error),
    /// It could not be mapped.
    #[error("the memory could not be mapped: {0}")]
    Map(String),
}

/// A memory file (`memfd_create`), shared: all that is mapped from it sees the same bytes, vhost-user processes included.
#[derive(Debug)]
pub struct Memfd {
    file: FileOffset,
    size: u64,
    page_size: u64,
    huge: bool,
    prealloc: bool,
}

impl Memfd {
    /// A sparse file of `size` bytes. Its size is sealed: whatever else gets the file cannot truncate it, which would end
    /// this process at its next access.
    ///
    /// # Errors
    /// Where the kernel gives none, or this process locks its memory.
    pub fn new(size: u64, pages: Pages) -> Result<Self, MemfdError> {
        let pages = match pages {
            Pages::Normal => MemfdFlags::empty(),
            Pages::Huge2MiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Pages::Huge1GiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let create = |source: rustix::io::Errno| MemfdError::Create { size, source: source.into() };
        let file = memfd_create("virtio-mem", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages)
            .map_err(create)?;
        ftruncate(&file, size).map_err(create)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(create)?;
        Self::from_file(file.into(), size)
    }

    /// The first `size` bytes of a file of the VMM's own: a memfd, or one on tmpfs or hugetlbfs. For a new device it must
    /// be sparse; for [`Device::restore`](crate::Device::restore) it may hold the memory of a guest that was saved. The
    /// file must keep its size, and be no other device's.
    ///
    /// # Errors
    /// Where the file cannot be examined or have holes, or this process locks its memory.
    pub fn from_file(file: File, size: u64) -> Result<Self, MemfdError> {
        let create = |source: rustix::io::Errno| MemfdError::Create { size, source: source.into() };
        if locks_memory().map_err(create)? {
            return Err(MemfdError::Locked);
        }
        let (stat, system) = (fstat(&file).map_err(create)?, fstatfs(&file).map_err(create)?);
        let huge = system.f_type == HUGETLBFS;
        // On hugetlbfs this is the huge page. On tmpfs it may say so too, but any page can be discarded.
        let page_size = if huge { system.f_bsize as u64 } else { rustix::param::page_size() as u64 };
        // Beyond its end, where nothing is.
        let end = (stat.st_size as u64).next_multiple_of(page_size);
        fallocate(&file, HOLE, end, page_size).map_err(|error| MemfdError::NoHoles(error.into()))?;
        let size = size.min(stat.st_size as u64);
        Ok(Self { file: FileOffset::new(file, 0), size, page_size, huge, prealloc: false })
    }

    /// The same memory once more, for the device that takes this one's place: two devices must not have it.
    ///
    /// # Errors
    /// Where this process can open no more files.
    pub fn try_clone(&self) -> Result<Self, MemfdError> {
        let &Self { size, page_size, huge, prealloc, .. } = self;
        let file = self.file().try_clone().map_err(|source| MemfdError::Create { size, source })?;
        Ok(Self { file: FileOffset::new(file, 0), size, page_size, huge, prealloc })
    }

    /// Fills blocks with memory when they are plugged (`fallocate`), so that the guest never meets a host without any: a
    /// plug is then answered BUSY instead.
    pub fn with_prealloc(mut self, prealloc: bool) -> Self {
        self.prealloc = prealloc;
        self
    }

    /// The file.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// The file, mapped as guest memory that begins at `addr`: the device's, as [`Settings::addr`](crate::Settings::addr) has
    /// it. It shares the device's bytes and costs no memory by itself, but reading it where nothing is plugged does.
    ///
    /// # Errors
    /// Where there is no address space for it.
    pub fn guest_region(&self, addr: u64) -> Result<GuestRegionMmap, MemfdError> {
        let mapped = MmapRegion::from_file(self.file.clone(), self.size as usize)
            .map_err(|error| MemfdError::Map(error.to_string()))?;
        GuestRegionMmap::new(mapped, GuestAddress(addr))
            .ok_or_else(|| MemfdError::Map(format!("{addr:#x} is too high for {} bytes", self.size)))
    }

    /// Bytes of memory the file holds now, as the kernel counts them: what is swapped out too.
    ///
    /// # Errors
    /// Where the file cannot be examined.
    pub fn resident(&self) -> io::Result<u64> {
        Ok(fstat(self.file())?.st_blocks as u64 * 512)
    }
}

impl<G: GuestAccess> Device<Memfd, G> {
    /// The region as guest memory, where the guest has it: [`Memfd::guest_region`] at [`Settings::addr`](crate::Settings).
    ///
    /// # Errors
    /// Where there is no address space for it.
    pub fn guest_region(&self) -> Result<GuestRegionMmap, MemfdError> {
        self.host.backing.guest_region(self.core.addr)
    }
}

impl Backing for Memfd {
    fn size(&self) -> u64 {
        self.size
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn default_block_size(&self) -> u64 {
        if self.huge { self.page_size.max(MIN_BLOCK_SIZE) } else { thp_size().max(MIN_BLOCK_SIZE) }
    }

    fn resident(&self) -> io::Result<u64> {
        Memfd::resident(self)
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.prealloc {
            // Bytes that are there stay. Where memory runs out, tmpfs takes back what it had filled; hugetlbfs keeps it.
            fallocate(self.file(), FallocateFlags::empty(), offset, len)?;
        }
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(self.file(), HOLE, offset, len)?)
    }
}

/// Whether this process locks and so fills whatever it maps (`mlockall` with `MCL_FUTURE`): a fresh page is resident then.
pub(crate) fn locks_memory() -> rustix::io::Result<bool> {
    let len = rustix::param::page_size();
    // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )?
    };
    let mut resident = 0u8;
    // SAFETY: `page` is a mapping of one page; `mincore` writes one byte for it.
    let looked = unsafe { libc::mincore(page, len, &mut resident) };
    let error = io::Error::last_os_error();
    // SAFETY: the mapping was made here, and no other code has its address.
    unsafe { rustix::mm::munmap(page, len)? };
    if looked != 0 {
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::NOMEM));
    }
    Ok(resident & 1 == 1)
}
