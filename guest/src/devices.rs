//! virtio-mem devices on PCI: finding them, their registers and their interrupts.
//!
//! QEMU's virtio-mem has message-signalled interrupts from machines of version 10.0 on, and only PCI's four lines before. Which
//! line of the interrupt controller a device is on is written in ACPI's byte code, or in the device tree. It need not be known:
//! lines are shared on PCI, so a handler asks its devices anyway; here, one asks them all, whichever line it was.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pagefold_boot_protocol::GuestExit;
use pagefold_virtio_mem::{ConfigInterrupt, Intx, VirtioChannel};
use spin::Once;
use thiserror::Error;
use virtio_drivers::transport::pci::bus::{Cam, Command, DeviceFunction, MmioCam, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, InterruptStatus};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::arch::firmware::Firmware;
use crate::arch::{lines, messages};
use crate::layout::{DIRECT, MAX_PHYSICAL};
use crate::messages::{Messaged, Vector, enable};
use crate::{fault, paging};

/// Interrupts in a row without a device before a line is masked.
const STRAYS: u32 = 1000;
/// Buses whose devices are looked for: only the first, where QEMU puts them.
const CONFIGURATION_SPACE: u64 = 1 << 20;
/// Devices that are driven, at most.
const MOST: usize = 8;
/// Looks at the ring before a request counts as unanswered: well below a second, since nothing else is done meanwhile.
const PATIENCE: u64 = 1 << 22;

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
            fault::end(
                GuestExit::Unsupported,
                None,
                format_args!("no frames to map a device's registers at {address:#x}"),
            )
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
pub type Channel = VirtioChannel<GuestHal, Messaged>;

/// PCI, with what was found on it.
pub struct Devices {
    root: PciRoot<MmioCam<'static>>,
    /// Configuration space once more, for what the root does not read.
    space: MmioCam<'static>,
    /// Where virtio-mem devices are.
    pub places: Vec<DeviceFunction>,
}

/// Each device's ISR status, by number.
static INTX: [Once<Intx>; MOST] = [const { Once::new() }; MOST];
/// Devices that send messages, by number, and who is told of those.
static MESSAGED: [Once<(Vector, ConfigInterrupt)>; MOST] = [const { Once::new() }; MOST];
/// Config interrupts by device: whether one came, and how many.
static CHANGED: [AtomicBool; MOST] = [const { AtomicBool::new(false) }; MOST];
static COUNTS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// Interrupts in a row without a device.
static STRAY: AtomicU32 = AtomicU32::new(0);

/// The handler of the devices' lines; `line` counts from the first.
pub fn interrupted(line: u8) {
    let mut is_ours = false;
    for (number, intx) in INTX.iter().enumerate() {
        let Some(intx) = intx.get().filter(|_| !sends_messages(number)) else { continue };
        let status = intx.handle();
        is_ours |= !status.is_empty();
        if status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            note_change(number);
        }
    }
    if is_ours {
        STRAY.store(0, Ordering::Relaxed);
    } else if STRAY.fetch_add(1, Ordering::Relaxed) >= STRAYS {
        lines::mask(line);
    }
}

/// The handler of a device's message, which says that its configuration has changed.
pub fn messaged(number: u8) {
    let number = usize::from(number);
    if let Some((_, interrupt)) = MESSAGED.get(number).and_then(Once::get) {
        interrupt.raise();
        note_change(number);
    }
}

fn note_change(number: usize) {
    if let (Some(changed), Some(count)) = (CHANGED.get(number), COUNTS.get(number)) {
        count.fetch_add(1, Ordering::Relaxed);
        changed.store(true, Ordering::Release);
    }
}

/// Whether a device sends messages, and is on no line.
pub fn sends_messages(number: usize) -> bool {
    MESSAGED.get(number).is_some_and(Once::is_completed)
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
        messages::init(firmware);
        let found: Vec<DeviceFunction> = devices
            .root
            .enumerate_bus(0)
            .filter(|(_, info)| virtio_device_type(info) == Some(DeviceType::Memory))
            .map(|(function, _)| function)
            .collect();
        for function in found {
            if lines::place(firmware, &mut devices.root, function).is_none() {
                say!("virtio-mem at {function}: left alone: there are no addresses left for its registers");
                continue;
            }
            devices.root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
            let intx = Intx::find::<GuestHal, _>(&devices.space, &mut devices.root, function);
            match (INTX.get(devices.places.len()), intx) {
                (Some(place), Ok(intx)) => {
                    let number = devices.places.len();
                    let vector = enable(&mut devices.space, &mut devices.root, function, number as u8);
                    if let (Some(vector), Some(place)) = (vector, MESSAGED.get(number)) {
                        place.call_once(|| (vector, intx.config_interrupt()));
                    }
                    place.call_once(|| intx);
                    devices.places.push(function);
                }
                (_, Err(error)) => say!("virtio-mem at {function}: left alone: {error}"),
                (None, _) => say!("virtio-mem at {function}: left alone: {MOST} devices are driven at most"),
            }
        }
        if !devices.places.is_empty() && lines::open(firmware).is_none() {
            say!("no interrupts from devices: the interrupt controller cannot be used");
        }
        Some(devices)
    }

    /// Sets a device up.
    pub fn connect(&mut self, place: usize) -> Result<Channel, ConnectError> {
        let function = *self.places.get(place).ok_or(ConnectError::NoDevice)?;
        let transport =
            PciTransport::new::<GuestHal, _>(&mut self.root, function).map_err(ConnectError::Pci)?;
        let vector = MESSAGED.get(place).and_then(Once::get).map(|(vector, _)| *vector);
        let transport = Messaged::new(transport, vector);
        let channel = VirtioChannel::new(transport, PATIENCE).map_err(ConnectError::Channel)?;
        let intx = INTX.get(place).and_then(Once::get).ok_or(ConnectError::NoDevice)?;
        Ok(channel.with_config_interrupt(intx.config_interrupt()))
    }
}

/// Why a device cannot be used.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// There is no such device.
    #[error("there is no such device")]
    NoDevice,
    /// Its registers are not where they should be.
    #[error("{0}")]
    Pci(virtio_drivers::transport::pci::VirtioPciError),
    /// It does not agree to be set up.
    #[error("{0}")]
    Channel(pagefold_virtio_mem::ChannelError),
}
