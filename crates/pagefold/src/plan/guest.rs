//! The guest that is to grow: a machine that was looked at, or sizes.

use anyhow::{Result, bail};
use pagefold_machine::Host;
use pagefold_machine::cost::Shape;

use super::args::PlanArgs;
use super::kernel::PlannedKernel;
use super::online::{OnlineTarget, ZoneChoice};
use crate::exit::usage;
use crate::report::Accounts;
use crate::report::model::{Figure, How};
use crate::survey::Survey;

/// What a block costs besides its descriptors, at most: measured 6 to 20 KiB a block of 128 MiB with virtio-mem in guests
/// of Linux 6.1 to 7.3.
pub(super) const BLOCK_OBJECTS: u64 = 20 << 10;
/// What a guest needs to live on: one part in so many of its kernel zones. Linux takes descriptors down to the last page: a
/// guest of 256 MiB that was asked for more than fits (Linux 6.12, virtio-mem, online_movable) stopped with 9 MiB left one
/// time, and another time went on and died ("System is deadlocked on memory").
pub(super) const LIVING: u64 = 16;
/// And no more than this: what large machines live on does not grow with them.
const LIVING_MOST: u64 = 512 << 20;
const LIVING_FROM: &str = "a sixteenth of kernel zones, at most 512 MiB";
/// What a guest has free if nobody says, in percent of its memory: the rule that Kata's limit of 48 times rests on.
const ASSUMED_FREE_PERCENT: u64 = 75;
/// The guest, as far as adding memory needs it.
#[derive(Clone)]
pub struct PlannedGuest {
    pub origin: String,
    pub shape: Shape,
    /// Bytes of memory it has in kernel zones, and in ZONE_MOVABLE.
    pub memory: u64,
    pub movable: u64,
    /// Bytes that page extensions take for each page besides its descriptor; `None` if there are some, and nothing tells.
    pub page_ext: Option<u64>,
    /// Where added blocks go.
    pub target: OnlineTarget,
    /// The node that they belong to, where it matters and somebody said.
    pub node: Option<NodeZones>,
    /// The kernel that it runs.
    pub planned: PlannedKernel,
    /// Bytes that are free in kernel zones.
    pub free: Figure,
    /// Bytes of them that must stay.
    pub reserve: Figure,
    /// Bytes in a memory block.
    pub block: u64,
    /// Free blocks of 2 MiB and more in kernel zones: each takes a block's descriptors in one piece. `None` if unknown.
    pub large_free: Option<u64>,
    /// Whether something could not be read.
    pub partial: bool,
}

#[cfg(test)]
impl PlannedGuest {
    /// One with so much memory in kernel zones, and so much of it free.
    pub fn plain(memory: u64, free: u64) -> Self {
        Self {
            origin: String::new(),
            shape: Shape::USUAL,
            memory,
            movable: 0,
            page_ext: Some(0),
            target: OnlineTarget::of_sizes(None),
            node: None,
            planned: super::kernel::KernelArgs::default().planned(None).unwrap(),
            free: Figure::counted(free, ""),
            reserve: Figure::computed(memory / LIVING, ""),
            block: 128 << 20,
            large_free: None,
            partial: false,
        }
    }
}

/// Pages of a node's zones, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeZones {
    pub node: u32,
    /// In kernel zones.
    pub kernel: u64,
    /// In ZONE_MOVABLE.
    pub movable: u64,
}

impl NodeZones {
    /// A node's; nothing of one that has no memory yet.
    fn of(host: &Host, node: u32) -> Self {
        let zones = || host.zones.iter().filter(|zone| zone.node == node && !zone.is_device());
        let bytes = |is_movable: bool| {
            let zones = zones().filter(|zone| (zone.name == "Movable") == is_movable);
            zones
                .fold(0u64, |sum, zone| sum.saturating_add(zone.present))
                .saturating_mul(host.page_size.bytes)
        };
        Self { node, kernel: bytes(false), movable: bytes(true) }
    }
}

impl PlannedGuest {
    /// From a machine that was looked at, or from sizes.
    pub fn of(args: &PlanArgs) -> Result<Self> {
        match args.memory {
            Some(memory) => Self::of_sizes(args, memory),
            None => Self::of_host(args, &args.survey.survey_quickly()?, args.node),
        }
    }

    /// From sizes alone.
    ///
    /// # Errors
    /// They contradict each other, or no such kernel can be.
    pub fn of_sizes(args: &PlanArgs, memory: u64) -> Result<Self> {
        let free = match args.free {
            Some(free) if free > memory => {
                return Err(usage("more is free (--free) than there is (--guest-memory)"));
            }
            Some(free) => Figure { bytes: free, how: How::Given, from: "--free".into() },
            None => {
                let free = memory / 100 * ASSUMED_FREE_PERCENT;
                Figure::computed(free, "75 % of --guest-memory, as --free is not given")
            }
        };
        let reserve = reserve(args, memory, None);
        let planned = args.kernel.planned(None)?;
        Ok(Self {
            origin: "sizes alone".into(),
            shape: planned.shape(),
            memory,
            movable: 0,
            page_ext: Some(0),
            target: OnlineTarget::of_sizes(args.online),
            node: None,
            free,
            reserve,
            block: block(args, None, planned.kernel.section())?,
            planned,
            large_free: None,
            partial: false,
        })
    }

    /// From a machine that was looked at; `node` is the one that added memory belongs to.
    ///
    /// # Errors
    /// Nothing tells of zones, or no such kernel can be.
    pub fn of_host(args: &PlanArgs, survey: &Survey, node: Option<u32>) -> Result<Self> {
        let accounts = Accounts::of(survey);
        let host = &survey.host;
        let planned = args.kernel.planned(Some(host))?;
        let (own, shape) = (accounts.shape, if planned.is_asked { planned.shape() } else { accounts.shape });
        let is_kernel = |zone: &str| zone != "Movable" && zone != "Device";
        let sum = |is_wanted: &dyn Fn(&str) -> bool, field: fn(&pagefold_machine::ZoneRecord) -> u64| {
            let zones = host.zones.iter().filter(|zone| is_wanted(&zone.name));
            zones.fold(0u64, |sum, zone| sum.saturating_add(field(zone))).saturating_mul(own.page)
        };
        if host.zones.is_empty() {
            bail!("nothing tells what is free in which zone; give --guest-memory and --free");
        }
        let memory = sum(&is_kernel, |zone| zone.present);
        let reserve = reserve(args, memory, host.min_free);
        // Another kernel's blocks are what its sections are.
        let own_block = host.blocks.as_ref().map(|blocks| blocks.size).filter(|_| !planned.is_asked);
        let block = block(args, own_block, planned.kernel.section())?;
        // One piece: a block's descriptors, 2 MiB for 128 MiB, as far as the buddy allocator has such blocks.
        let pieces = (shape.descriptors(block.min(128 << 20)) / shape.page.max(1)).max(1).ilog2();
        let large_free = host.free_blocks.iter().filter(|zone| is_kernel(&zone.zone));
        let large_free =
            large_free.fold(0u64, |sum, zone| sum.saturating_add(zone.pages_from(pieces) >> pieces));
        // What there is of them now, for each page that has a descriptor.
        let pages = accounts.described.min / own.page.max(1);
        let page_ext = match accounts.excess.page_ext.max {
            0 if host.boot.page_ext.is_empty() => Some(0),
            0 => None,
            bytes => Some(bytes.div_ceil(pages.max(1))),
        };
        Ok(Self {
            shape,
            memory,
            movable: sum(&|zone| zone == "Movable", |zone| zone.present),
            page_ext,
            target: OnlineTarget::of_host(args.online, host, &planned),
            node: node.map(|node| NodeZones::of(host, node)),
            planned,
            free: Figure::counted(sum(&is_kernel, |zone| zone.free), "/proc/zoneinfo, kernel zones"),
            reserve,
            block,
            // Free blocks of other pages say nothing.
            large_free: (!host.free_blocks.is_empty() && shape == own).then_some(large_free),
            partial: host.is_partial(),
            origin: survey.origin.clone(),
        })
    }

    /// Bytes that can be taken.
    pub(super) fn spare(&self) -> u64 {
        self.free.bytes.saturating_sub(self.reserve.bytes)
    }

    /// What adding `blocks` takes beforehand: descriptors, page extensions, and all.
    pub(super) fn needs(&self, blocks: u64) -> Needs {
        let descriptors = self.shape.descriptors(self.block).saturating_mul(blocks);
        let pages = (self.block / self.shape.page.max(1)).saturating_mul(blocks);
        let page_ext = pages.saturating_mul(self.page_ext.unwrap_or(0));
        let objects = self.objects().saturating_mul(blocks);
        Needs { descriptors, page_ext, objects }
    }

    pub(super) fn objects(&self) -> u64 {
        // A block of another size has as much more or less of page tables.
        BLOCK_OBJECTS.max(BLOCK_OBJECTS / 2 * (self.block >> 27))
    }

    /// Blocks that `bytes` suffice for, each at `cost`.
    pub(super) fn largest(&self, bytes: u64, cost: u64) -> u64 {
        (bytes / cost.max(1)).saturating_mul(self.block)
    }

    /// Blocks of `blocks` that go to ZONE_MOVABLE.
    pub(super) fn to_movable(&self, blocks: u64) -> u64 {
        match self.target.zone {
            ZoneChoice::Movable => blocks,
            ZoneChoice::Kernel => 0,
            ZoneChoice::ByRatio => blocks.min(self.room_in_movable()),
        }
    }

    /// Blocks that ZONE_MOVABLE may still take by the ratio: in all, and on the node if that is looked at
    /// (`auto_movable_zone_for_pfn` in mm/memory_hotplug.c).
    fn room_in_movable(&self) -> u64 {
        let room = |kernel: u64, movable: u64| {
            (kernel / 100 * self.target.ratio).saturating_sub(movable) / self.block.max(1)
        };
        let all = room(self.memory, self.movable);
        let node = self.node.filter(|_| self.target.numa_aware);
        node.map_or(all, |node| all.min(room(node.kernel, node.movable)))
    }

    /// Whether the node matters, and was not named.
    pub(super) fn is_node_open(&self) -> bool {
        self.target.zone == ZoneChoice::ByRatio
            && self.target.numa_aware
            && self.node.is_none()
            && self.target.several_nodes
    }

    /// Whether the node takes less to ZONE_MOVABLE than there would be.
    pub(super) fn is_node_less(&self, blocks: u64) -> bool {
        let all = PlannedGuest { node: None, ..self.clone() };
        self.target.zone == ZoneChoice::ByRatio && self.to_movable(blocks) < all.to_movable(blocks)
    }
}

/// Bytes in a memory block: what was asked for, the machine's own, or a section.
fn block(args: &PlanArgs, own: Option<u64>, section: u64) -> Result<u64> {
    match args.block {
        // Sections may be smaller than a name tells, if the machine has smaller blocks.
        Some(block) if block < own.map_or(section, |own| own.min(section)) => {
            Err(usage(format!("a memory block is at least a section (--block): {} MiB there", section >> 20)))
        }
        Some(block) => Ok(block),
        None => Ok(own.unwrap_or(section)),
    }
}

/// What blocks take beforehand, in bytes.
pub(super) struct Needs {
    pub(super) descriptors: u64,
    pub(super) page_ext: u64,
    pub(super) objects: u64,
}

impl Needs {
    pub(super) fn all(&self) -> u64 {
        self.descriptors.saturating_add(self.page_ext).saturating_add(self.objects)
    }
}

/// What must stay free.
fn reserve(args: &PlanArgs, memory: u64, min_free: Option<u64>) -> Figure {
    if let Some(bytes) = args.reserve {
        return Figure { bytes, how: How::Given, from: "--reserve".into() };
    }
    let living = (memory / LIVING).min(LIVING_MOST);
    match min_free.filter(|&bytes| bytes > living) {
        Some(bytes) => Figure::counted(bytes, "/proc/sys/vm/min_free_kbytes"),
        None => Figure::computed(living, LIVING_FROM),
    }
}
