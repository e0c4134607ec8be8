//! virtio-mem devices on PCI: finding them, their registers and their interrupts.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagefold_boot_protocol::Exit;
use pagefold_virtio_mem::VirtioChannel;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    Cam, Command, ConfigurationAccess, DeviceFunction, MmioCam, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::firmware::Firmware;
use crate::layout::{DIRECT, MAX_PHYSICAL};
use crate::{cpu, fault, interrupts, paging};

/// Capability of a PCI device: MSI-X (PCI 3.0, 6.8.2), and the vendor's own.
const CAP_MSIX: u8 = 0x11;
const CAP_VENDOR: u8 = 0x09;
/// Bits of the word that the MSI-X capability begins with.
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
/// Where the local APICs take messages (Intel SDM 3, 11.11).
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
/// `msix_config` in a virtio device's common configuration (virtio 1.2, 4.1.4.3).
const COMMON_MSIX_CONFIG: u64 = 0x10;
/// Buses whose devices are looked for: only the first, where QEMU puts them.
const CONFIGURATION_SPACE: u64 = 1 << 20;
/// Looks at the ring before a request counts as unanswered.
const PATIENCE: u64 = 1 << 34;

/// What virtio needs of this kernel.
pub struct GuestHal;

// SAFETY: memory comes from the global allocator, zeroed and aligned to pages; it lies in the direct map, so that its
// physical address is its own less an offset. Registers are mapped afresh, for nobody else.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = layout(pages).and_then(|layout| {
            // SAFETY: the layout's size is above zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })
        });
        match memory {
            Some(memory) => (memory.as_ptr() as u64 - DIRECT, memory),
            // What the caller takes for: no memory.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        if let Some(layout) = layout(pages) {
            // SAFETY: from `dma_alloc`, with the same number of pages.
            unsafe { dealloc(memory.as_ptr(), layout) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        let at = paging::map_device(address, size as u64).ok().and_then(|at| NonNull::new(at as *mut u8));
        // There is no way to say no here.
        at.unwrap_or_else(|| {
            fault::end(Exit::Unsupported, None, format_args!("no frames to map a device's registers at {address:#x}"))
        })
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let at = buffer.cast::<u8>().as_ptr() as u64;
        debug_assert!((DIRECT..DIRECT + MAX_PHYSICAL).contains(&at), "buffers are on the heap");
        at - DIRECT
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.max(1) * PAGE_SIZE, PAGE_SIZE).ok()
}

/// The way to a device.
pub type Channel = VirtioChannel<GuestHal, PciTransport>;

/// A virtio-mem device that was found.
pub struct Place {
    function: DeviceFunction,
    /// Which of them, from 0; its interrupts have that much above [`interrupts::CONFIG`].
    pub number: u8,
    /// Where its MSI-X table and `msix_config` are mapped.
    table: u64,
    msix_config: u64,
}

/// PCI, with what was found on it.
pub struct Devices {
    root: PciRoot<MmioCam<'static>>,
    /// Configuration space once more, for what the root does not do.
    space: MmioCam<'static>,
    /// virtio-mem devices.
    pub places: Vec<Place>,
}

/// Config interrupts by device: whether one came, and how many.
static CHANGED: [AtomicBool; interrupts::DEVICES as usize] =
    [const { AtomicBool::new(false) }; interrupts::DEVICES as usize];
static COUNTS: [AtomicU64; interrupts::DEVICES as usize] =
    [const { AtomicU64::new(0) }; interrupts::DEVICES as usize];

/// The handler of config interrupts.
pub fn interrupted(number: u8) {
    if let (Some(changed), Some(count)) = (CHANGED.get(usize::from(number)), COUNTS.get(usize::from(number))) {
        count.fetch_add(1, Ordering::Relaxed);
        changed.store(true, Ordering::Release);
    }
}

/// Whether the device's configuration has changed since this was asked last.
pub fn take_changed(number: u8) -> bool {
    CHANGED.get(usize::from(number)).is_some_and(|changed| changed.swap(false, Ordering::Acquire))
}

/// Config interrupts so far.
pub fn count(number: u8) -> u64 {
    COUNTS.get(usize::from(number)).map_or(0, |count| count.load(Ordering::Relaxed))
}

impl Devices {
    /// Looks for virtio-mem devices. None where PCI's configuration space is not in memory.
    pub fn find(firmware: &Firmware) -> Option<Devices> {
        let (base, buses) = firmware.pci.clone()?;
        if buses.start != 0 {
            return None;
        }
        let base = paging::map_device(base, CONFIGURATION_SPACE).ok()? as *mut u8;
        // SAFETY: configuration space of the first bus is mapped there; no other is ever asked for.
        let (space, other) = unsafe { (MmioCam::new(base, Cam::Ecam), MmioCam::new(base, Cam::Ecam)) };
        let mut devices = Devices { root: PciRoot::new(space), space: other, places: Vec::new() };
        let found: Vec<DeviceFunction> = devices
            .root
            .enumerate_bus(0)
            .filter(|(_, info)| virtio_device_type(info) == Some(DeviceType::Memory))
            .map(|(function, _)| function)
            .collect();
        for function in found {
            let number = devices.places.len() as u8;
            match devices.place(function, number) {
                Some(place) if number < interrupts::DEVICES => devices.places.push(place),
                _ => say!("virtio-mem at {function}: no registers or no MSI-X where they should be; left alone"),
            }
        }
        Some(devices)
    }

    /// Maps what is needed for interrupts.
    fn place(&mut self, function: DeviceFunction, number: u8) -> Option<Place> {
        self.root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
        let capabilities: Vec<_> = self.root.capabilities(function).take(64).collect();
        let msix = capabilities.iter().find(|capability| capability.id == CAP_MSIX)?;
        let common = capabilities.iter().find(|capability| {
            capability.id == CAP_VENDOR && (capability.private_header >> 8) as u8 == VIRTIO_PCI_CAP_COMMON_CFG
        })?;
        let table = self.space.read_word(function, msix.offset.checked_add(4)?);
        let table = self.register(function, table as u8 & 7, u64::from(table & !7), 16)?;
        let bar = self.space.read_word(function, common.offset.checked_add(4)?) as u8;
        let offset = u64::from(self.space.read_word(function, common.offset.checked_add(8)?));
        let msix_config = self.register(function, bar, offset.checked_add(COMMON_MSIX_CONFIG)?, 2)?;
        Some(Place { function, number, table, msix_config })
    }

    /// Maps registers of a device.
    fn register(&mut self, function: DeviceFunction, bar: u8, offset: u64, bytes: u64) -> Option<u64> {
        let info = self.root.bar_info(function, bar).ok()??;
        let (address, size) = info.memory_address_size()?;
        if address == 0 || offset.checked_add(bytes)? > size {
            return None;
        }
        paging::map_device(address + offset, bytes).ok()
    }

    /// Sets a device up, its config interrupts included.
    pub fn connect(&mut self, place: usize) -> Result<Channel, ConnectError> {
        let Devices { root, space, places } = self;
        let place = places.get(place).ok_or(ConnectError::NoDevice)?;
        let transport = PciTransport::new::<GuestHal, _>(root, place.function).map_err(ConnectError::Pci)?;
        let channel = VirtioChannel::new(transport, PATIENCE).map_err(ConnectError::Channel)?;
        let vector = interrupts::CONFIG + place.number;
        let entry = place.table as *mut u32;
        // SAFETY: the first entry of the device's MSI-X table, and its virtio registers, both mapped for this. To the
        // processor that runs this, edge-triggered; the last word unmasks it.
        unsafe {
            entry.write_volatile(MESSAGE_ADDRESS | cpu::this().apic_id << 12);
            entry.add(1).write_volatile(0);
            entry.add(2).write_volatile(u32::from(vector));
            entry.add(3).write_volatile(0);
            (place.msix_config as *mut u16).write_volatile(0);
            if (place.msix_config as *const u16).read_volatile() != 0 {
                return Err(ConnectError::NoVector);
            }
        }
        let msix = root.capabilities(place.function).take(64).find(|capability| capability.id == CAP_MSIX);
        if let Some(msix) = msix {
            let word = space.read_word(place.function, msix.offset);
            space.write_word(place.function, msix.offset, (word | MSIX_ENABLE) & !MSIX_MASK_ALL);
        }
        Ok(channel)
    }
}

/// Why a device cannot be used.
#[derive(Debug)]
pub enum ConnectError {
    /// There is no such device.
    NoDevice,
    /// Its registers are not where they should be.
    Pci(virtio_drivers::transport::pci::VirtioPciError),
    /// It does not agree to be set up.
    Channel(pagefold_virtio_mem::ChannelError),
    /// It has no vector for config interrupts.
    NoVector,
}

impl core::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ConnectError::NoDevice => f.write_str("there is no such device"),
            ConnectError::Pci(error) => write!(f, "{error}"),
            ConnectError::Channel(error) => write!(f, "{error}"),
            ConnectError::NoVector => f.write_str("no vector for its config interrupts"),
        }
    }
}
