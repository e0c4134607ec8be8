//! Memory of a device (CXL, persistent memory, a GPU): where its descriptors would lie, and whether there is room.
//!
//! A driver that maps device memory gives it descriptors (`memremap_pages`), in RAM or, with an altmap, at the device's own
//! beginning. The driver `kmem` brings it online as ordinary memory instead, block by block; then `memmap_on_memory` of the
//! device and of the kernel decide (Documentation/ABI/testing/sysfs-bus-dax, drivers/dax/kmem.c). Descriptors of device DAX in
//! RAM are shared between huge pages' tails (Documentation/mm/vmemmap_dedup.rst): two pages of descriptors stay of each.

use anyhow::Result;
use pagefold_machine::cost::Shape;
use pagefold_machine::host::Dax;
use pagefold_machine::kernel::Has;
use serde::Serialize;

use super::args::{DeviceArg, PlanArgs};
use super::guest::PlannedGuest;
use super::hotplug::{HotplugAnswer, Warning};
use super::kernel::KernelReport;
use crate::exit::usage;
use crate::report::model::{Figure, Interval};

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold plan --device"))]
pub struct DeviceAnswer {
    /// Version of this form.
    pub schema: u32,
    /// Which machine.
    pub origin: String,
    /// The kernel that was asked for; absent if it is the machine's own.
    pub kernel: Option<KernelReport>,
    /// Its name; absent of a device that is not there.
    pub device: Option<String>,
    /// Bytes of memory it has.
    pub size: u64,
    /// Bytes in a memory block.
    pub block: u64,
    /// The node that it would make, or be part of; absent if nothing tells.
    pub node: Option<u32>,
    /// Bytes free in kernel zones, and what of it must stay.
    pub free: Figure,
    /// Bytes of it that must stay.
    pub reserve: Figure,
    /// The zone that it would go to, brought online.
    pub zone: String,
    /// From what that is known.
    pub zone_from: String,
    /// Bytes of page tables that come later, if all that goes to ZONE_MOVABLE is mapped in small pages (computed).
    pub page_tables: Figure,
    /// Where its descriptors would lie as machine and device are set.
    pub lies: Lies,
    /// From what that is known.
    pub lies_from: String,
    /// Whether that works.
    pub works: bool,
    /// What may go wrong, brought online.
    pub warnings: Vec<Warning>,
    /// All ways.
    pub ways: Vec<DeviceWay>,
    /// What the machine looks like after it is brought online.
    #[serde(skip)]
    pub online: HotplugAnswer,
}

/// Where descriptors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Lies {
    /// In RAM: they take memory that the machine has already.
    Ram,
    /// On the device: it has that much less.
    Device,
}

impl Lies {
    /// Words for it.
    pub const fn name(self) -> &'static str {
        match self {
            Lies::Ram => "RAM",
            Lies::Device => "the device",
        }
    }

    /// The way to bring memory online that puts descriptors there.
    pub const fn online(self) -> &'static str {
        match self {
            Lies::Ram => KMEM_RAM,
            Lies::Device => KMEM_DEVICE,
        }
    }
}

/// A way to use a device's memory.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceWay {
    /// A name.
    pub name: &'static str,
    /// Where descriptors lie.
    pub lies: Lies,
    /// Bytes of RAM that it takes.
    pub ram: Interval,
    /// Bytes that are left of the device.
    pub usable: u64,
    /// Whether this kernel, as it was booted, has it.
    pub has: Has,
    /// Whether it has it, or may have it, and there is enough RAM in any case.
    pub works: bool,
    /// What there is to know.
    pub note: String,
}

/// A device, there or not.
struct Device {
    name: Option<String>,
    size: u64,
    align: Option<u64>,
    node: Option<u32>,
    on_memory: Option<bool>,
}

impl Device {
    fn of(arg: &DeviceArg, devices: &[Dax]) -> Result<Self> {
        let name = match arg {
            DeviceArg::Size(size) => {
                return Ok(Self { name: None, size: *size, align: None, node: None, on_memory: None });
            }
            DeviceArg::Name(name) => name,
        };
        let Some(found) = devices.iter().find(|device| device.name == *name) else {
            let known: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
            let known =
                if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
            return Err(usage(format!(
                "the machine has no DAX device {name} (--device): {known}; a size will do"
            )));
        };
        Ok(Self {
            name: Some(name.clone()),
            size: found.size,
            align: found.align,
            node: found.node,
            on_memory: found.memmap_on_memory,
        })
    }

    /// Bytes of descriptors in RAM if tails of huge pages share them: two pages for each; of a device whose alignment nothing
    /// tells, from pages of 1 GiB to none at all.
    fn shared(&self, shape: Shape, block: u64) -> (u64, u64) {
        let full = shape.descriptors(self.size);
        let each = |huge: u64| {
            let kept = shape.descriptors(huge).min(2 * shape.page);
            (self.size / huge.max(1)).saturating_mul(kept)
        };
        match self.align {
            Some(align) if align >= block && align <= self.size => (each(align), each(align)),
            Some(_) => (full, full),
            None => (each(1 << 30).min(full), full),
        }
    }
}

/// The answer for a device.
///
/// # Errors
/// The machine cannot be looked at, has no such device, or no such kernel can be.
pub fn answer(args: &PlanArgs, arg: &DeviceArg) -> Result<(DeviceAnswer, bool)> {
    let (guest, device, set) = match args.memory {
        Some(memory) => (PlannedGuest::of_sizes(args, memory)?, Device::of(arg, &[])?, None),
        None => {
            let survey = args.survey.survey_quickly()?;
            let device = Device::of(arg, &survey.host.dax)?;
            let node = args.node.or(device.node);
            (PlannedGuest::of_host(args, &survey, node)?, device, survey.host.memmap_on_memory)
        }
    };
    let answer = of(&guest, device, set, args.node);
    Ok((answer, guest.partial))
}

/// `set` is the kernel's `memmap_on_memory`.
fn of(guest: &PlannedGuest, device: Device, set: Option<bool>, node: Option<u32>) -> DeviceAnswer {
    let kernel = &guest.planned.kernel;
    let online = guest.answer(device.size / guest.block.max(1) * guest.block);
    let full = guest.shape.descriptors(device.size);
    let on_memory = on_memory(guest, set);
    let (lies, lies_from) = match (device.on_memory, on_memory.0) {
        (Some(true), Has::Yes) => (Lies::Device, "memmap_on_memory of the device and of the kernel are on"),
        (Some(true), _) => (Lies::Ram, "memmap_on_memory of the device is on, the kernel's is not"),
        (Some(false), _) => (Lies::Ram, "memmap_on_memory of the device is off"),
        (None, Has::Yes) if kernel.is_before((6, 8)) => {
            (Lies::Ram, "the driver kmem uses memmap_on_memory since Linux 6.8 only")
        }
        (None, Has::Yes) => {
            (Lies::Ram, "persistent memory and others; CXL devices have memmap_on_memory on by default")
        }
        (None, _) => (Lies::Ram, "memmap_on_memory of the kernel is not on"),
    };
    let ways = ways(guest, &device, full, &online, on_memory);
    DeviceAnswer {
        schema: 1,
        origin: guest.origin.clone(),
        kernel: online.kernel.clone(),
        node: node.or(device.node),
        device: device.name,
        size: device.size,
        block: guest.block,
        free: guest.free.clone(),
        reserve: guest.reserve.clone(),
        zone: online.zone.into(),
        zone_from: online.zone_from.clone(),
        page_tables: online.page_tables.clone(),
        lies,
        lies_from: lies_from.into(),
        works: ways.iter().any(|way| way.name == lies.online() && way.works),
        warnings: online.warnings.clone(),
        ways,
        online,
    }
}

const KMEM_RAM: &str = "online (kmem), descriptors in RAM";
const KMEM_DEVICE: &str = "online (kmem), memmap_on_memory";

/// Whether descriptors of blocks of a device can lie on themselves, and why not.
fn on_memory(guest: &PlannedGuest, set: Option<bool>) -> (Has, &'static str) {
    let kernel = &guest.planned.kernel;
    let fills = guest.shape.descriptors(guest.block).is_multiple_of(kernel.page_block());
    match set {
        _ if kernel.is_before((6, 8)) => (Has::No, "not in this kernel: it came with Linux 6.8"),
        _ if !fills => (Has::No, "not with blocks of this size: their descriptors fill no whole huge page"),
        Some(false) => (Has::No, "off: it takes memory_hotplug.memmap_on_memory=1 at boot"),
        Some(true) => {
            (Has::Yes, "each block holds its own; set memmap_on_memory of the device before kmem has it")
        }
        None => {
            (Has::Unknown, "each block holds its own; it takes memory_hotplug.memmap_on_memory=1 at boot")
        }
    }
}

fn ways(
    guest: &PlannedGuest,
    device: &Device,
    full: u64,
    online: &HotplugAnswer,
    on_memory: (Has, &str),
) -> Vec<DeviceWay> {
    let kernel = &guest.planned.kernel;
    let spare = guest.spare();
    let way = |name, lies, (min, max): (u64, u64), usable, has, note: &str| DeviceWay {
        name,
        lies,
        ram: Interval::computed(min, max, format!("{} bytes for each page", guest.shape.descriptor)),
        usable,
        has,
        works: has != Has::No && max <= spare,
        note: note.into(),
    };
    let shares = kernel.arch == "x86_64" && !kernel.is_before((5, 17));
    let shared = if shares { device.shared(guest.shape, kernel.page_block()) } else { (full, full) };
    let online_extra =
        online.page_ext.as_ref().map_or(0, |figure| figure.bytes).saturating_add(online.objects.bytes);
    let all = online.descriptors.bytes.saturating_add(online_extra);
    vec![
        way(
            "device DAX, map=mem",
            Lies::Ram,
            shared,
            device.size,
            Has::Yes,
            "not online: programs map it. Aligned to huge pages, their tails share descriptors (x86-64, since 5.17)",
        ),
        way(
            "file system DAX, map=mem",
            Lies::Ram,
            (full, full),
            device.size,
            Has::Yes,
            "a file system on persistent memory",
        ),
        way(
            "DAX, map=dev",
            Lies::Device,
            (0, 0),
            device.size.saturating_sub(full),
            Has::Yes,
            "descriptors at the beginning of a persistent-memory namespace; slower to read than RAM",
        ),
        way(
            KMEM_RAM,
            Lies::Ram,
            (all, all),
            online.added,
            Has::Yes,
            "memory as any other, in whole blocks; descriptors from a kernel zone, nearby if there is one",
        ),
        way(
            KMEM_DEVICE,
            Lies::Device,
            (online_extra, online_extra),
            online.added.saturating_sub(online.descriptors.bytes),
            on_memory.0,
            on_memory.1,
        ),
        way(
            "a GPU's driver (device-private, coherent)",
            Lies::Ram,
            (full, full),
            device.size,
            Has::Yes,
            "memory that a driver migrates to: it has descriptors in RAM, without an altmap",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::kernel::KernelArgs;
    use crate::plan::online::ZoneChoice;

    const GIB: u64 = 1 << 30;

    fn guest(free: u64, release: &str) -> PlannedGuest {
        let args = KernelArgs { kernel: Some(release.into()), ..KernelArgs::default() };
        PlannedGuest {
            planned: args.planned(None).unwrap(),
            reserve: Figure::computed(GIB / 2, ""),
            ..PlannedGuest::plain(64 * GIB, free)
        }
    }

    fn dax(on_memory: Option<bool>) -> Device {
        let align = Some(2 << 20);
        Device { name: Some("dax0.0".into()), size: 256 * GIB, align, node: Some(2), on_memory }
    }

    fn way<'a>(answer: &'a DeviceAnswer, name: &str) -> &'a DeviceWay {
        answer.ways.iter().find(|way| way.name.starts_with(name)).unwrap()
    }

    #[test]
    fn descriptors_lie_where_device_and_kernel_say() {
        let lies = |release, device, set| of(&guest(32 * GIB, release), dax(device), set, None).lies;
        assert_eq!(lies("6.12", Some(true), Some(true)), Lies::Device);
        assert_eq!(lies("6.12", Some(true), Some(false)), Lies::Ram);
        assert_eq!(lies("6.12", Some(false), Some(true)), Lies::Ram);
        assert_eq!(lies("6.12", None, Some(true)), Lies::Ram);
        assert_eq!(lies("6.1", Some(true), Some(true)), Lies::Ram);
    }

    #[test]
    fn what_does_not_fit_into_ram_fits_onto_the_device() {
        // 256 GiB have 4 GiB of descriptors; 3 GiB are free.
        let answer = of(&guest(3 * GIB, "6.12"), dax(Some(false)), Some(true), None);
        assert!(!answer.works);
        assert_eq!(way(&answer, KMEM_RAM).ram.max, 4 * GIB + 2048 * (20 << 10));
        let on_device = way(&answer, KMEM_DEVICE);
        assert_eq!((on_device.works, on_device.usable), (true, 252 * GIB));
        assert_eq!(
            (way(&answer, "DAX, map=dev").usable, way(&answer, "DAX, map=dev").ram.max),
            (252 * GIB, 0)
        );
        assert!(of(&guest(3 * GIB, "6.12"), dax(Some(true)), Some(true), None).works);
        assert!(of(&guest(5 * GIB, "6.12"), dax(Some(false)), Some(true), None).works);
    }

    #[test]
    fn huge_pages_of_device_dax_share_descriptors() {
        let ram = |release: &str, align| {
            let device = Device { align, ..dax(None) };
            let ram = way(&of(&guest(32 * GIB, release), device, None, None), "device DAX").ram.clone();
            (ram.min, ram.max)
        };
        // Two of eight pages, and two of 4096.
        assert_eq!(ram("6.12", Some(2 << 20)), (GIB, GIB));
        assert_eq!(ram("6.12", Some(GIB)), (256 * 8192, 256 * 8192));
        assert_eq!(ram("6.12", Some(4096)), (4 * GIB, 4 * GIB));
        assert_eq!(ram("6.12", None), (256 * 8192, 4 * GIB));
        assert_eq!(ram("5.16", Some(GIB)), (4 * GIB, 4 * GIB));
    }

    #[test]
    fn a_node_without_kernel_memory_is_warned_of() {
        let mut guest = guest(32 * GIB, "6.12");
        guest.target.zone = ZoneChoice::ByRatio;
        guest.node = Some(super::super::guest::NodeZones { node: 2, kernel: 0, movable: 0 });
        let answer = of(&guest, dax(Some(false)), Some(false), None);
        assert_eq!((answer.node, answer.warnings), (Some(2), vec![Warning::NodeRatio]));
    }

    #[test]
    fn larger_pages_fill_no_huge_page_with_descriptors() {
        let args = KernelArgs { page_size: Some(65536), arch: None, kernel: Some("6.12".into()) };
        let mut guest = guest(32 * GIB, "6.12");
        guest.planned = args.planned(None).unwrap();
        guest.shape = guest.planned.shape();
        guest.block = 512 << 20;
        let answer = of(&guest, dax(Some(true)), Some(true), None);
        assert_eq!((answer.lies, way(&answer, KMEM_DEVICE).has), (Lies::Ram, Has::No));
        assert_eq!(way(&answer, "file system").ram.max, GIB / 4);
    }
}
