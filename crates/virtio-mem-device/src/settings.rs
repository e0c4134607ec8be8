//! What a device is built from, and what is wrong with it.

use std::fs;

use crate::host::Backing;

/// The smallest device block, as in QEMU (`VIRTIO_MEM_MIN_BLOCK_SIZE`, `hw/virtio/virtio-mem.c`).
pub const MIN_BLOCK_SIZE: u64 = 1 << 20;

/// The memory block of a Linux guest on x86-64 in most configurations, and the least that Linux hot-adds there.
pub const DEFAULT_GUEST_BLOCK_SIZE: u64 = 128 << 20;

/// Physical addresses end here: 52 bits, the most of x86-64 and of arm64.
const ADDRESS_END: u64 = 1 << 52;

/// What the guest may do with unplugged memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unplugged {
    /// `UNPLUGGED_INACCESSIBLE` is not offered: the CPU may read unplugged blocks of the usable region. Dump kernels of
    /// old guests do.
    Readable,
    /// `UNPLUGGED_INACCESSIBLE` is offered; a driver that declines may still read.
    Offered,
    /// `UNPLUGGED_INACCESSIBLE` is offered, and the device refuses a driver that declines. Only then does it take
    /// unplugged memory out of the guest's reach.
    #[default]
    Inaccessible,
}

/// What a device is built from. All sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the region begins in guest physical address space; aligned to the guest's memory block.
    pub addr: u64,
    /// The region: the most that can be plugged. A multiple of the guest's memory block.
    pub region_size: u64,
    /// The device block: a power of two, at least [`MIN_BLOCK_SIZE`]. `None` takes what suits the backing
    /// ([`crate::Backing::default_block_size`]).
    pub block_size: Option<u64>,
    /// What the host wants plugged at first. A restored device has what was saved instead.
    pub requested_size: u64,
    /// The proximity domain; `None` does not offer `ACPI_PXM`.
    pub node: Option<u16>,
    /// The guest's memory block: the unit in which the guest adds memory. The usable region is two of them larger than the
    /// requested size, so that a guest can reach its target with partly used blocks at both ends. 512 MiB and 2 GiB exist.
    pub guest_block_size: u64,
    /// What the guest may do with unplugged memory.
    pub unplugged: Unplugged,
    /// Offer `PERSISTENT_SUSPEND`: the platform can suspend to RAM, and wakes with plugged blocks as they were.
    pub persistent_suspend: bool,
    /// Take a new requested size although no driver is there to follow it. Otherwise a control client would wait for ever
    /// (cloud-hypervisor issue 4001).
    pub resize_without_driver: bool,
}

impl Settings {
    /// A device at `addr` of `region_size` bytes with nothing requested and the defaults of the reference device.
    pub fn new(addr: u64, region_size: u64) -> Self {
        Self {
            addr,
            region_size,
            block_size: None,
            requested_size: 0,
            node: None,
            guest_block_size: DEFAULT_GUEST_BLOCK_SIZE,
            unplugged: Unplugged::default(),
            persistent_suspend: false,
            resize_without_driver: false,
        }
    }

    /// The block size, once everything was found sound.
    pub(crate) fn check(&self, backing: &impl Backing) -> Result<u64, SettingsError> {
        let block = self.block_size.unwrap_or_else(|| backing.default_block_size());
        let page_size = backing.page_size();
        if !block.is_power_of_two() || block < MIN_BLOCK_SIZE || !block.is_multiple_of(page_size) {
            return Err(SettingsError::BlockSize { size: block, least: MIN_BLOCK_SIZE.max(page_size) });
        }
        let guest_block = self.guest_block_size;
        if !guest_block.is_power_of_two() || guest_block >= ADDRESS_END {
            return Err(SettingsError::GuestBlockSize(guest_block));
        }
        if self.region_size == 0 {
            return Err(SettingsError::Empty);
        }
        if self.addr.checked_add(self.region_size).is_none_or(|end| end > ADDRESS_END) {
            return Err(SettingsError::BeyondAddressSpace { addr: self.addr, size: self.region_size });
        }
        let unit = block.max(guest_block);
        for (what, value) in [("address", self.addr), ("size", self.region_size)] {
            if !value.is_multiple_of(unit) {
                return Err(SettingsError::Unaligned { what, value, unit });
            }
        }
        if self.region_size > backing.size() {
            return Err(SettingsError::BackingTooSmall { region: self.region_size, backing: backing.size() });
        }
        check_requested(self.requested_size, block, self.region_size)?;
        Ok(block)
    }
}

/// Why no device can be built from these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The block is no power of two, or too small.
    #[error("a device block of {size} bytes: it must be a power of two of at least {least}")]
    BlockSize {
        /// Its bytes.
        size: u64,
        /// The least.
        least: u64,
    },
    /// The guest's memory block is no power of two.
    #[error(
        "a guest memory block of {0} bytes: it must be a power of two below 2^52 (Linux on x86-64: 134217728)"
    )]
    GuestBlockSize(u64),
    /// A region of nothing.
    #[error("the region is empty: give it at least one block of the guest's memory")]
    Empty,
    /// The region passes the end of physical address space.
    #[error("the region of {size} bytes at {addr:#x} passes the end of 52 bits of physical address")]
    BeyondAddressSpace {
        /// Where it begins.
        addr: u64,
        /// Its bytes.
        size: u64,
    },
    /// The region does not fit the blocks.
    #[error(
        "the region's {what} {value:#x} is not a multiple of {unit:#x}, the larger of device and guest memory block"
    )]
    Unaligned {
        /// Address or size.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// The backing is smaller than the region.
    #[error("the region needs {region} bytes, its backing has {backing}")]
    BackingTooSmall {
        /// Bytes of the region.
        region: u64,
        /// Bytes of the backing.
        backing: u64,
    },
    /// The requested size does not fit.
    #[error(transparent)]
    Requested(#[from] RequestedSizeError),
    /// The memory is not empty.
    #[error(
        "the memory behind the region holds {0} bytes already: hand over a sparse one, or restore the device it was saved with"
    )]
    Filled(u64),
    /// The host would not say what the memory holds, or give the guest access to the region.
    #[error("the region could not be set up: {0}")]
    Host(String),
}

/// What is wrong with a requested size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestedSizeError {
    /// No multiple of the block size.
    #[error("a requested size of {size} bytes is not a multiple of the device block, {block} bytes")]
    Unaligned {
        /// What was requested.
        size: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// More than the region.
    #[error("a requested size of {size} bytes is more than the device's region, {region} bytes")]
    TooLarge {
        /// What was requested.
        size: u64,
        /// Bytes of the region.
        region: u64,
    },
}

pub(crate) fn check_requested(size: u64, block: u64, region: u64) -> Result<(), RequestedSizeError> {
    if !size.is_multiple_of(block) {
        Err(RequestedSizeError::Unaligned { size, block })
    } else if size > region {
        Err(RequestedSizeError::TooLarge { size, region })
    } else {
        Ok(())
    }
}

/// The host's transparent huge page, in bytes, as the kernel tells it; 2 MiB where it has none.
///
/// A block of this size never splits a huge page when it is unplugged, and no huge page of a plugged block reaches into an
/// unplugged one.
pub fn thp_size() -> u64 {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|size: &u64| size.is_power_of_two())
        .unwrap_or(2 << 20)
}
