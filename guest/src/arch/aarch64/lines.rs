//! PCI without firmware: addresses for the registers of devices, and their interrupts.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_drivers::transport::pci::bus::{
    BarInfo, ConfigurationAccess, DeviceFunction, MemoryBarType, PciRoot,
};

use super::firmware::{Firmware, LINES};
use super::gic::{self, Trigger};
use crate::cpu;

/// The next address that is free; 0 before the first.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// The interrupts that lines are led to. Relaxed: noted before the interrupts are opened.
static INTERRUPTS: [AtomicU32; LINES] = [const { AtomicU32::new(0) }; LINES];

/// Gives a device the addresses of its registers. `None` where there are none left.
pub fn place<C: ConfigurationAccess>(
    firmware: &Firmware,
    root: &mut PciRoot<C>,
    function: DeviceFunction,
) -> Option<()> {
    let mut bar = 0;
    while bar < 6 {
        let info = root.bar_info(function, bar).ok()?;
        if let Some(BarInfo::Memory { address_type, size, .. }) = &info {
            let start = NEXT.load(Ordering::Relaxed).max(firmware.registers.start);
            let at = start.checked_next_multiple_of(*size)?;
            let end = at.checked_add(*size).filter(|&end| end <= firmware.registers.end)?;
            NEXT.store(end, Ordering::Relaxed);
            match address_type {
                MemoryBarType::Width64 => root.set_bar_64(function, bar, at),
                MemoryBarType::Width32 | MemoryBarType::Below1MiB => {
                    root.set_bar_32(function, bar, u32::try_from(at).ok()?);
                }
            }
        }
        bar += if info.is_some_and(|info| info.takes_two_entries()) { 2 } else { 1 };
    }
    Some(())
}

/// Leads the lines of PCI devices to this processor. None where there are none.
pub fn open(firmware: &Firmware) -> Option<()> {
    for (slot, &interrupt) in INTERRUPTS.iter().zip(&firmware.lines) {
        slot.store(interrupt, Ordering::Relaxed);
        gic::open(interrupt, Trigger::Level, cpu::this().number);
    }
    (!firmware.lines.is_empty()).then_some(())
}

/// The line that an interrupt is.
pub fn line_of(interrupt: u32) -> Option<u8> {
    let at = INTERRUPTS.iter().position(|slot| slot.load(Ordering::Relaxed) == interrupt)?;
    u8::try_from(at).ok()
}

/// Masks a line: a device without a driver would interrupt for ever.
pub fn mask(line: u8) {
    if let Some(slot) = INTERRUPTS.get(usize::from(line)) {
        gic::mask(slot.load(Ordering::Relaxed));
    }
}
