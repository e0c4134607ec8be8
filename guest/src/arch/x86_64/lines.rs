//! Interrupts of PCI devices, by the I/O APIC.

use spin::Mutex;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use x2apic::ioapic::{IoApic, IrqFlags, IrqMode, RedirectionTableEntry};

use super::firmware::Firmware;
use super::interrupts::{DEVICES, LINES};
use crate::cpu;
use crate::paging;

/// The interrupts of PCI devices begin above those of the PC's old devices.
const FIRST_LINE: u32 = 16;

/// The interrupt controller, and the number of its first line that is used.
static CONTROLLER: Mutex<Option<(IoApic, u8)>> = Mutex::new(None);

/// Gives a device the addresses of its registers: the firmware has done that.
pub fn place<C: ConfigurationAccess>(_: &Firmware, _: &mut PciRoot<C>, _: DeviceFunction) -> Option<()> {
    Some(())
}

/// Leads the lines of PCI devices to this processor. None where there is no controller for them.
pub fn open(firmware: &Firmware) -> Option<()> {
    let &(address, base) = firmware.io_apics.iter().find(|(_, base)| *base <= FIRST_LINE)?;
    let first = u8::try_from(FIRST_LINE - base).ok()?;
    let at = paging::map_device(address, 4096).ok()?;
    // SAFETY: the controller's registers, mapped for this alone.
    let mut io_apic = unsafe { IoApic::new(at) };
    // SAFETY: as above.
    let last = unsafe { io_apic.max_table_entry() };
    for line in first..=last.min(first.saturating_add(LINES - 1)) {
        let mut entry = RedirectionTableEntry::default();
        entry.set_mode(IrqMode::Fixed);
        // As PCI has it: level-triggered, active low.
        entry.set_flags(IrqFlags::LEVEL_TRIGGERED | IrqFlags::LOW_ACTIVE);
        entry.set_vector(DEVICES + (line - first));
        entry.set_dest(cpu::this().own.id() as u8);
        // SAFETY: the vector has a handler, which takes the interrupt back where it came from.
        unsafe {
            io_apic.set_table_entry(line, entry);
            io_apic.enable_irq(line);
        }
    }
    *CONTROLLER.lock() = Some((io_apic, first));
    Some(())
}

/// Masks a line: a device without a driver would interrupt for ever.
pub fn mask(line: u8) {
    if let Some((io_apic, first)) = CONTROLLER.try_lock().as_mut().and_then(|lines| lines.as_mut()) {
        // SAFETY: masks one line.
        unsafe { io_apic.disable_irq(*first + line) };
    }
}
