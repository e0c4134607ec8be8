//! Line interrupts on PCI: where the ISR status is found, and what its handler makes of it.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is a line of a bus that the test itself is"
)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use pagefold_virtio_mem::Intx;
use virtio_drivers::transport::InterruptStatus;
use virtio_drivers::transport::pci::VirtioPciError;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

const FUNCTION: DeviceFunction = DeviceFunction { bus: 0, device: 3, function: 0 };
/// Registers of configuration space: status, the first BAR, the pointer to the first capability.
const STATUS: usize = 0x04;
const BAR0: usize = 0x10;
const POINTER: usize = 0x34;
/// Bytes of a BAR here.
const SIZE: u64 = 4096;

/// Physical addresses are those of the process.
enum SameAddress {}

unsafe impl Hal for SameAddress {
    fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        (0, NonNull::dangling())
    }
    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }
    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap()
    }
    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        0
    }
    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The registers behind a BAR, aligned as the BAR's size.
#[repr(C, align(4096))]
struct Registers([u8; SIZE as usize]);

/// Configuration space of one function, with BARs that can be sized.
#[derive(Clone)]
struct Space(Rc<RefCell<[u8; 256]>>);

impl Space {
    /// A function with one 64-bit memory BAR, number 4, at `address`, and these capabilities.
    fn new(address: u64, capabilities: &[(u8, [u8; 16])]) -> Self {
        let space = Space(Rc::new(RefCell::new([0; 256])));
        space.put(STATUS, 1 << 20);
        space.put(BAR0 + 16, address as u32 | 0b100);
        space.put(BAR0 + 20, (address >> 32) as u32);
        let mut link = POINTER;
        for &(at, capability) in capabilities {
            let mut bytes = space.0.borrow_mut();
            bytes[link] = at;
            bytes[usize::from(at)..usize::from(at) + 16].copy_from_slice(&capability);
            link = usize::from(at) + 1;
        }
        space
    }

    fn put(&self, at: usize, word: u32) {
        self.0.borrow_mut()[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }

    fn find(&self) -> Result<Intx, VirtioPciError> {
        Intx::find::<SameAddress, _>(self, &mut PciRoot::new(self.clone()), FUNCTION)
    }
}

impl ConfigurationAccess for Space {
    fn read_word(&self, function: DeviceFunction, at: u8) -> u32 {
        assert_eq!(function, FUNCTION);
        let at = usize::from(at);
        u32::from_le_bytes(self.0.borrow()[at..at + 4].try_into().unwrap())
    }
    fn write_word(&mut self, _: DeviceFunction, at: u8, word: u32) {
        let at = usize::from(at);
        // A BAR keeps the bits below its size.
        let word = match (at, word) {
            (0x20, u32::MAX) => !(SIZE as u32 - 1) | 0b100,
            _ => word,
        };
        self.put(at, word);
    }
    unsafe fn unsafe_clone(&self) -> Self {
        self.clone()
    }
}

/// A `virtio_pci_cap` (virtio 1.2, 4.1.4), its link left to the space.
fn capability(kind: u8, bar: u8, offset: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    (bytes[0], bytes[2], bytes[3], bytes[4]) = (0x09, 16, kind, bar);
    bytes[8..12].copy_from_slice(&offset.to_le_bytes());
    bytes[12] = 1;
    bytes
}

#[test]
fn the_handler_reads_the_isr_status_and_tells_of_config_changes() {
    let registers = Box::leak(Box::new(Registers([0; SIZE as usize])));
    let address = std::ptr::from_mut(registers);
    let common = capability(1, 4, 0);
    // A number of a BAR that is reserved, before the right one: to be ignored.
    let space = Space::new(
        address as u64,
        &[(0x40, common), (0x60, capability(3, 6, 0)), (0x80, capability(3, 4, 0x123))],
    );
    let before = *space.0.borrow();
    let intx = space.find().unwrap();
    assert_eq!(*space.0.borrow(), before, "BAR and command are as they were");

    let isr = address.cast::<u8>().wrapping_add(0x123);
    for (byte, expected) in [
        (0, InterruptStatus::empty()),
        (1, InterruptStatus::QUEUE_INTERRUPT),
        (2, InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT),
        (3, InterruptStatus::all()),
    ] {
        unsafe { isr.write_volatile(byte) };
        assert!(intx.handle() == expected, "{byte}");
    }
}

#[test]
fn a_device_without_a_usable_register_is_refused() {
    let isr = |bar, offset| [(0x40, capability(3, bar, offset))];
    let refused = |space: Space| space.find().unwrap_err();
    assert_eq!(refused(Space::new(SIZE, &[])), VirtioPciError::MissingIsrConfig);
    assert_eq!(refused(Space::new(SIZE, &isr(255, 0))), VirtioPciError::MissingIsrConfig);
    assert_eq!(refused(Space::new(SIZE, &isr(4, SIZE as u32))), VirtioPciError::BarOffsetOutOfRange);
    assert_eq!(refused(Space::new(SIZE, &isr(4, u32::MAX))), VirtioPciError::BarOffsetOutOfRange);
    assert_eq!(refused(Space::new(0, &isr(4, 0))), VirtioPciError::BarNotAllocated(4));
    assert_eq!(refused(Space::new(SIZE, &isr(0, 0))), VirtioPciError::BarNotAllocated(0));
    let io = Space::new(SIZE, &isr(0, 0));
    io.put(BAR0, 0xc001);
    assert_eq!(refused(io), VirtioPciError::UnexpectedIoBar);
    // A list of capabilities that leads in a circle.
    let circle = Space::new(SIZE, &[(0x40, capability(1, 4, 0)), (0x60, capability(4, 4, 0))]);
    circle.0.borrow_mut()[0x61] = 0x40;
    assert_eq!(refused(circle), VirtioPciError::MissingIsrConfig);
}
