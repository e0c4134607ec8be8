//! Serial ports: the board's PL011 for people, a 16550 on PCI for the host.

use core::ptr::NonNull;

use uart_16550::backend::MmioBackend;
use uart_16550::{Config, Uart16550};
use virtio_drivers::transport::pci::bus::{Cam, Command, MmioCam, PciRoot};

use super::PL011;
use super::firmware::Firmware;
use crate::paging;

/// QEMU's `pci-serial`.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0002;
/// Where its ports go; below are those of nobody.
const PORTS: u32 = 0x1000;

/// A serial port.
pub enum Port {
    /// The board's, at this address.
    Pl011(u64),
    /// On PCI.
    Pci(Uart16550<MmioBackend>),
}

// SAFETY: a port is an address of registers; who holds the lock around it is the only one who uses it.
unsafe impl Send for Port {}

impl Port {
    /// The port for people. Its registers are mapped where they are, by the boot page tables and by the kernel's.
    pub fn for_people() -> Option<Port> {
        Some(Port::Pl011(PL011))
    }

    /// The port for the host.
    pub fn for_host(firmware: &Firmware) -> Option<Port> {
        let (space, _) = firmware.pci.clone()?;
        let space = paging::map_device(space, 1 << 20).ok()? as *mut u8;
        // SAFETY: configuration space of the first bus is mapped there; no other is ever asked for.
        let mut root = PciRoot::new(unsafe { MmioCam::new(space, Cam::Ecam) });
        let is_ours = |info: &virtio_drivers::transport::pci::bus::DeviceFunctionInfo| {
            info.vendor_id == VENDOR && info.device_id == DEVICE
        };
        let (function, _) = root.enumerate_bus(0).find(|(_, info)| is_ours(info))?;
        root.set_bar_32(function, 0, PORTS);
        root.set_command(function, Command::IO_SPACE);
        let at = paging::map_device(firmware.ports? + u64::from(PORTS), 8).ok()?;
        // SAFETY: the port's eight registers, mapped for it alone.
        let mut uart = unsafe { Uart16550::new_mmio(NonNull::new(at as *mut u8)?, 1) }.ok()?;
        uart.init(Config::default()).is_ok().then_some(Port::Pci(uart))
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) {
        match self {
            Port::Pl011(at) => bytes.iter().for_each(|&byte| send(*at, byte)),
            Port::Pci(uart) => uart.send_bytes_exact(bytes),
        }
    }

    /// A byte that has arrived.
    pub fn receive(&mut self) -> Option<u8> {
        match self {
            Port::Pl011(_) => None,
            Port::Pci(uart) => uart.try_receive_byte().ok(),
        }
    }
}

/// Sends a byte by a PL011 (Arm DDI 0183): UARTDR at 0, UARTFR at 0x18, bit 5 of which says that it is full.
fn send(at: u64, byte: u8) {
    let (data, flags) = (at as *mut u32, (at + 0x18) as *const u32);
    // SAFETY: its registers are mapped.
    unsafe {
        while flags.read_volatile() & 1 << 5 != 0 {
            core::hint::spin_loop();
        }
        data.write_volatile(byte.into());
    }
}
