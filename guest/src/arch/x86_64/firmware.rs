//! What PVH and ACPI say of the machine.

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;

use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::sdt::mcfg::Mcfg;
use acpi::sdt::srat::{Srat, SratEntry};
use acpi::{AcpiTables, Handler, PciAddress, PhysicalMapping};
use pvh::start_info::MemmapType;
use pvh::start_info::reader::StartInfoReader;

use crate::layout::direct;

/// Ranges of memory that are remembered.
const RANGES: usize = 32;
/// Bytes of command line that are kept.
const LINE: usize = 4096;

/// What the loader left: copied, since its memory is given to the engine.
pub struct Boot {
    memory: [Range<u64>; RANGES],
    ranges: usize,
    /// All but device registers ends here, below 4 GiB: what tables of the firmware's may lie in.
    low_end: u64,
    line: [u8; LINE],
    line_len: usize,
    /// Where ACPI's root pointer is.
    rsdp: u64,
}

impl Boot {
    /// Reads what the loader left. `None` if it is not PVH's.
    ///
    /// # Safety
    /// What `start_info` leads to is mapped at its physical address, and nobody changes it meanwhile.
    pub unsafe fn read(start_info: u64) -> Option<Boot> {
        // SAFETY: the caller's promise.
        let info = unsafe { StartInfoReader::from_paddr_identity(u32::try_from(start_info).ok()?) }?;
        let mut boot = Boot {
            memory: [const { 0..0 }; RANGES],
            ranges: 0,
            low_end: 0,
            line: [0; LINE],
            line_len: 0,
            rsdp: info.raw().rsdp_paddr,
        };
        for entry in info.memmap() {
            let Some(end) = entry.addr.checked_add(entry.size) else { continue };
            if entry.ty() == MemmapType::Ram {
                if let Some(range) = boot.memory.get_mut(boot.ranges) {
                    *range = entry.addr..end;
                    boot.ranges += 1;
                }
                if end <= 1 << 32 {
                    boot.low_end = boot.low_end.max(end.next_multiple_of(2 << 20));
                }
            }
        }
        if let Some(line) = info.cmdline() {
            let line = line.to_bytes();
            boot.line_len = line.len().min(LINE);
            boot.line.iter_mut().zip(line).for_each(|(to, &from)| *to = from);
        }
        Some(boot)
    }

    /// Where memory begins that boot counts as its own.
    pub fn begin(&self) -> u64 {
        0
    }

    /// Memory that the direct map needs besides that: the firmware's tables.
    pub fn also_mapped(&self) -> Range<u64> {
        0..self.low_end
    }

    /// Where memory is, in bytes, as the loader lists it.
    pub fn memory(&self) -> &[Range<u64>] {
        self.memory.get(..self.ranges).unwrap_or_default()
    }

    /// The command line, as far as it is text.
    pub fn command_line(&self) -> &str {
        let line = self.line.get(..self.line_len).unwrap_or_default();
        core::str::from_utf8(line).unwrap_or_default()
    }
}

/// What ACPI says.
pub struct Firmware {
    /// Local APICs of processors that may be started.
    pub processors: Vec<u32>,
    /// Physical address of all local APICs.
    pub local_apic: u64,
    /// The interrupt controllers of devices: physical address, and the first interrupt of each.
    pub io_apics: Vec<(u64, u32)>,
    /// Physical address of PCI configuration space, and its buses.
    pub pci: Option<(u64, Range<u8>)>,
    /// Memory and its node, where it says.
    pub nodes: Vec<(Range<u64>, u8)>,
}

impl Firmware {
    /// Reads ACPI's tables. `None` where there are none, or none that make sense.
    pub fn read(boot: &Boot) -> Option<Firmware> {
        let tables = Tables { end: boot.low_end };
        // SAFETY: PVH says that the root pointer is there.
        let acpi = unsafe { AcpiTables::from_rsdp(tables, boot.rsdp as usize) }.ok()?;
        let madt = acpi.find_table::<Madt>()?;
        let mut firmware = Firmware {
            processors: Vec::new(),
            io_apics: Vec::new(),
            local_apic: u64::from(madt.get().local_apic_address),
            pci: None,
            nodes: Vec::new(),
        };
        // Tables that lie about lengths must not keep us for ever.
        for entry in madt.get().entries().take(4096) {
            let (apic, flags) = match entry {
                MadtEntry::LocalApic(entry) => (u32::from(entry.apic_id), entry.flags),
                MadtEntry::LocalX2Apic(entry) => (entry.x2apic_id, entry.flags),
                MadtEntry::IoApic(entry) => {
                    firmware
                        .io_apics
                        .push((u64::from(entry.io_apic_address), entry.global_system_interrupt_base));
                    continue;
                }
                _ => continue,
            };
            if flags & 1 != 0 {
                firmware.processors.push(apic);
            }
        }
        if let Some(mcfg) = acpi.find_table::<Mcfg>() {
            let segment = mcfg.entries().iter().find(|entry| entry.pci_segment_group == 0);
            firmware.pci =
                segment.map(|entry| (entry.base_address, entry.bus_number_start..entry.bus_number_end));
        }
        if let Some(srat) = acpi.find_table::<Srat>() {
            for entry in srat.get().entries().take(4096) {
                let SratEntry::MemoryAffinity(entry) = entry else { continue };
                let (start, length) = (entry.base_address(), entry.length());
                if let (Some(end), Ok(node)) =
                    (start.checked_add(length), u8::try_from(entry.proximity_domain))
                    && length > 0
                {
                    firmware.nodes.push((start..end, node));
                }
            }
        }
        Some(firmware)
    }

    /// The node of a physical address.
    pub fn node(&self, address: u64) -> u8 {
        self.nodes.iter().find(|(range, _)| range.contains(&address)).map_or(0, |&(_, node)| node)
    }
}

/// How the `acpi` crate gets at tables: they lie in low memory, which the direct map has.
#[derive(Clone)]
struct Tables {
    end: u64,
}

/// What the `acpi` crate needs for AML, which is not compiled in: as where no device is.
macro_rules! nothing {
    ($read:ident, $write:ident, $($at:ty),+ => $t:ty) => {
        fn $read(&self, $(_: $at),+) -> $t {
            <$t>::MAX
        }
        fn $write(&self, $(_: $at),+, _: $t) {}
    };
}

impl Handler for Tables {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        // A table beyond low memory is not looked at: zeros have no valid signature and no length.
        static NOTHING: [u64; 512] = [0; 512];
        let is_low = (address as u64).checked_add(size as u64).is_some_and(|end| end <= self.end);
        let at = if is_low { direct::<T>(address as u64) } else { NOTHING.as_ptr() as *mut T };
        PhysicalMapping {
            physical_start: address,
            virtual_start: NonNull::new(at).unwrap_or(NonNull::dangling()),
            region_length: size,
            mapped_length: size,
            handler: self.clone(),
        }
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    nothing!(read_u8, write_u8, usize => u8);
    nothing!(read_u16, write_u16, usize => u16);
    nothing!(read_u32, write_u32, usize => u32);
    nothing!(read_u64, write_u64, usize => u64);
    nothing!(read_io_u8, write_io_u8, u16 => u8);
    nothing!(read_io_u16, write_io_u16, u16 => u16);
    nothing!(read_io_u32, write_io_u32, u16 => u32);
    nothing!(read_pci_u8, write_pci_u8, PciAddress, u16 => u8);
    nothing!(read_pci_u16, write_pci_u16, PciAddress, u16 => u16);
    nothing!(read_pci_u32, write_pci_u32, PciAddress, u16 => u32);

    fn nanos_since_boot(&self) -> u64 {
        crate::clock::now()
    }
    fn stall(&self, microseconds: u64) {
        crate::clock::wait(microseconds * 1000);
    }
    fn sleep(&self, milliseconds: u64) {
        crate::clock::wait(milliseconds * 1_000_000);
    }
}
