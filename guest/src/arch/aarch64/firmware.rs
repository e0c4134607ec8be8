//! What the device tree says of the machine.

use alloc::vec::Vec;
use core::ops::Range;

use fdt::Fdt;
use fdt::node::FdtNode;

use super::gic::Place;
use crate::layout::direct;

/// Ranges of memory that are remembered.
const RANGES: usize = 32;
/// Bytes of command line that are kept.
const LINE: usize = 4096;
/// Lines of PCI devices, at most.
pub const LINES: usize = 4;
/// Where memory begins in QEMU's "virt", and the device tree where the loader names none.
const MEMORY: u64 = 0x4000_0000;

/// What the loader left: copied, since its memory is given to the engine.
pub struct Boot {
    memory: [Range<u64>; RANGES],
    nodes: [u8; RANGES],
    ranges: usize,
    line: [u8; LINE],
    line_len: usize,
    tree: u64,
}

impl Boot {
    /// Reads the device tree. `None` if there is none.
    ///
    /// # Safety
    /// What is at that address, or at the base of memory if it is 0, is mapped where it is, and nobody changes it meanwhile.
    pub unsafe fn read(tree: u64) -> Option<Boot> {
        let tree = if tree == 0 { MEMORY } else { tree };
        // SAFETY: the caller's promise; what is no device tree has another first word.
        let fdt = unsafe { Fdt::from_ptr(tree as *const u8) }.ok()?;
        let mut boot = Boot {
            memory: [const { 0..0 }; RANGES],
            nodes: [0; RANGES],
            ranges: 0,
            line: [0; LINE],
            line_len: 0,
            tree,
        };
        for node in fdt.find_all_nodes("/memory") {
            let number = node.property("numa-node-id").and_then(|node| node.as_usize()).unwrap_or(0);
            for region in node.reg().into_iter().flatten() {
                let start = region.starting_address as u64;
                let end = start.checked_add(region.size? as u64)?;
                if let (Some(range), Some(node)) =
                    (boot.memory.get_mut(boot.ranges), boot.nodes.get_mut(boot.ranges))
                {
                    (*range, *node) = (start..end, number as u8);
                    boot.ranges += 1;
                }
            }
        }
        let line = fdt.chosen().bootargs().unwrap_or_default().as_bytes();
        boot.line_len = line.len().min(LINE);
        boot.line.iter_mut().zip(line).for_each(|(to, &from)| *to = from);
        Some(boot)
    }

    /// Where memory begins that boot counts as its own.
    pub fn begin(&self) -> u64 {
        self.memory().iter().map(|range| range.start).min().unwrap_or(0)
    }

    /// Memory that the direct map needs besides that: none.
    pub fn also_mapped(&self) -> Range<u64> {
        0..0
    }

    /// Where memory is, in bytes.
    pub fn memory(&self) -> &[Range<u64>] {
        self.memory.get(..self.ranges).unwrap_or_default()
    }

    /// The command line, as far as it is text.
    pub fn command_line(&self) -> &str {
        let line = self.line.get(..self.line_len).unwrap_or_default();
        core::str::from_utf8(line).unwrap_or_default()
    }
}

/// What else the device tree says.
pub struct Firmware {
    /// Affinities of processors.
    pub processors: Vec<u64>,
    /// Physical address of PCI configuration space, and its buses.
    pub pci: Option<(u64, Range<u8>)>,
    /// Addresses for registers of PCI devices, below 4 GiB.
    pub registers: Range<u64>,
    /// Where I/O ports of PCI devices are in memory.
    pub ports: Option<u64>,
    /// The interrupts that PCI's four lines are led to.
    pub lines: Vec<u32>,
    /// The interrupt controller.
    pub gic: Place,
    /// GICv2's frame for messages: physical address and bytes.
    pub frame: Option<(u64, u64)>,
    /// GICv3's translation service, likewise.
    pub its: Option<(u64, u64)>,
    /// The virtual timer's interrupt.
    pub timer: u32,
    /// Whether PSCI is called by SMC.
    pub is_smc: bool,
    nodes: Vec<(Range<u64>, u8)>,
}

/// Interrupts of devices begin at this number, those private to a processor at that.
const SPI: u32 = 32;
const PPI: u32 = 16;

fn cells(node: FdtNode<'_, '_>, property: &str) -> Vec<u32> {
    let value = node.property(property).map(|property| property.value).unwrap_or_default();
    value.chunks_exact(4).map(|cell| u32::from_be_bytes([cell[0], cell[1], cell[2], cell[3]])).collect()
}

/// A node's registers.
fn region(node: FdtNode<'_, '_>) -> Option<(u64, u64)> {
    let region = node.reg()?.next()?;
    Some((region.starting_address as u64, region.size? as u64))
}

fn place(node: FdtNode<'_, '_>, version: u8) -> Option<Place> {
    let mut regions = node.reg()?;
    let mut next = || {
        let region = regions.next()?;
        Some((region.starting_address as u64, region.size? as u64))
    };
    Some(Place { version, distributor: next()?, other: next()? })
}

impl Firmware {
    /// Reads the rest of the device tree, once the direct map has it. `None` where it lacks what a kernel needs.
    pub fn read(boot: &Boot) -> Option<Firmware> {
        // SAFETY: it was read before, lies in memory that boot keeps, and the direct map has all memory.
        let fdt = unsafe { Fdt::from_ptr(direct::<u8>(boot.tree)) }.ok()?;
        let v3 = fdt.find_compatible(&["arm,gic-v3"]).and_then(|node| place(node, 3));
        let v2 =
            || fdt.find_compatible(&["arm,cortex-a15-gic", "arm,gic-400"]).and_then(|node| place(node, 2));
        let mut firmware = Firmware {
            processors: fdt.cpus().map(|cpu| cpu.ids().first() as u64).collect(),
            pci: None,
            registers: 0..0,
            ports: None,
            lines: Vec::new(),
            gic: v3.or_else(v2)?,
            frame: fdt.find_compatible(&["arm,gic-v2m-frame"]).and_then(region),
            its: fdt.find_compatible(&["arm,gic-v3-its"]).and_then(region),
            timer: 27,
            is_smc: false,
            nodes: boot.memory().iter().cloned().zip(boot.nodes).collect(),
        };
        if let Some(psci) = fdt.find_node("/psci") {
            let method = psci.property("method").and_then(|method| method.as_str());
            firmware.is_smc = method == Some("smc");
        }
        if let Some(timer) = fdt.find_compatible(&["arm,armv8-timer"]) {
            // Type, number, flags of each: secure, physical, virtual, hypervisor.
            if let Some(&number) = cells(timer, "interrupts").get(7) {
                firmware.timer = PPI + number;
            }
        }
        if let Some(pci) = fdt.find_compatible(&["pci-host-ecam-generic"]) {
            firmware.read_pci(pci);
        }
        Some(firmware)
    }

    fn read_pci(&mut self, pci: FdtNode<'_, '_>) -> Option<()> {
        let space = pci.reg()?.next()?.starting_address as u64;
        let buses = cells(pci, "bus-range");
        self.pci = Some((space, *buses.first().unwrap_or(&0) as u8..*buses.get(1).unwrap_or(&255) as u8));
        // Kind and address on the bus, in three cells; address in memory; bytes.
        for range in cells(pci, "ranges").chunks_exact(7) {
            let &[kind, _, _, high, low, size_high, size_low] = range else { continue };
            let (address, size) = (wide(high, low), wide(size_high, size_low));
            match kind >> 24 & 3 {
                1 => self.ports = Some(address),
                2 => self.registers = address..address.checked_add(size)?,
                _ => {}
            }
        }
        // Address, pin; controller, its address in two cells, type, number, flags.
        for entry in cells(pci, "interrupt-map").chunks_exact(10) {
            let line = SPI + entry.get(8)?;
            if !self.lines.contains(&line) && self.lines.len() < LINES {
                self.lines.push(line);
            }
        }
        Some(())
    }

    /// The node of a physical address.
    pub fn node(&self, address: u64) -> u8 {
        self.nodes.iter().find(|(range, _)| range.contains(&address)).map_or(0, |&(_, node)| node)
    }
}

fn wide(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
