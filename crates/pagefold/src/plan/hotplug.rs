//! Can a guest add so much memory?
//!
//! Every memory block that is added needs its descriptors first: 2 MiB for 128 MiB, from memory that the kernel already
//! has in a kernel zone, besides page tables of the direct map and the block's own objects. What happens then to the
//! block decides what comes next: online in a kernel zone it can hold the next block's descriptors, in ZONE_MOVABLE it
//! cannot. (mm/memory_hotplug.c; facts measured in guests of Linux 6.1 to 7.3.)

use serde::Serialize;

use super::guest::PlannedGuest;
use super::kernel::KernelReport;
use super::ways::Way;
use crate::report::model::Figure;

/// Steps that are written down.
const MAX_STEPS: usize = 16;

/// What may go wrong although the memory can be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// Added blocks stay offline: nothing uses them.
    StaysOffline,
    /// ZONE_MOVABLE would be too large for the kernel zones there are.
    Ratio,
    /// Kernel zones have too little left for the page tables of what is added.
    PageTables,
    /// There are page extensions, and nothing tells how large.
    PageExtensions,
    /// The ratio must hold for the node too, so that less goes to ZONE_MOVABLE.
    NodeRatio,
    /// The ratio must hold for the node too, and nobody said which.
    NodeUnknown,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold plan --hotplug"))]
pub struct HotplugAnswer {
    pub schema: u32,
    /// Which guest.
    pub origin: String,
    /// The kernel that was asked for; absent if it is the guest's own.
    pub kernel: Option<KernelReport>,
    /// Bytes asked for, and bytes in whole blocks.
    pub asked: u64,
    pub added: u64,
    /// Bytes in a block, and blocks.
    pub block: u64,
    pub blocks: u64,
    /// Bytes of memory it has in kernel zones, and in ZONE_MOVABLE.
    pub memory: u64,
    pub movable: u64,
    /// Where added blocks go, from what that is known, and whether they stay offline until somebody brings them online.
    pub zone: &'static str,
    pub zone_from: String,
    pub stays_offline: bool,
    /// Bytes free in kernel zones, and what of it must stay.
    pub free: Figure,
    pub reserve: Figure,
    /// Bytes of descriptors (computed), and the rest (computed from measured costs of a block).
    pub descriptors: Figure,
    pub objects: Figure,
    /// Bytes of page extensions that these pages have besides; absent if nothing tells.
    pub page_ext: Option<Figure>,
    /// Bytes of page tables that come later, if all of what is added is mapped in small pages (computed).
    pub page_tables: Figure,
    /// What ZONE_MOVABLE would have, in percent of kernel zones; what it should have at most; from what that is known.
    pub ratio: u64,
    pub ratio_limit: u64,
    pub ratio_from: &'static str,
    /// What may go wrong all the same.
    pub warnings: Vec<Warning>,
    /// Whether Linux can, the way that was asked for.
    pub works: bool,
    /// Bytes more that would have to be free.
    pub missing: u64,
    /// Steps that work, each made online in a kernel zone before the next, in bytes; empty if no step does.
    pub steps: Vec<u64>,
    /// Whether these steps reach what was asked for.
    pub steps_reach: bool,
    /// Blocks whose descriptors find a free block of their size; absent if unknown.
    pub in_one_piece: Option<u64>,
    /// All ways.
    pub ways: Vec<Way>,
}

impl PlannedGuest {
    /// The answer to `asked` bytes.
    pub fn answer(&self, asked: u64) -> HotplugAnswer {
        let blocks = asked.div_ceil(self.block);
        let added = blocks.saturating_mul(self.block);
        let all = self.needs(blocks);
        // A block in a kernel zone holds what comes after it.
        let movable_blocks = self.to_movable(blocks);
        let first = self.needs(movable_blocks.saturating_add(1).min(blocks)).all();
        let spare = self.spare();
        let works = first <= spare;
        let steps = self.steps(added, self.needs(1).all());
        let movable = movable_blocks.saturating_mul(self.block);
        let ratio = percent(self.movable.saturating_add(movable), self.memory);
        // Eight bytes a page, wherever it is mapped: in page tables, which only kernel zones hold.
        let tables = (movable / self.shape.page.max(1)).saturating_mul(8);
        let warnings = [
            (self.target.stays_offline, Warning::StaysOffline),
            (movable > 0 && ratio > self.target.ratio, Warning::Ratio),
            (works && first.saturating_add(tables) > spare && tables > 0, Warning::PageTables),
            (self.page_ext.is_none(), Warning::PageExtensions),
            (self.is_node_less(blocks), Warning::NodeRatio),
            (self.is_node_open(), Warning::NodeUnknown),
        ];
        HotplugAnswer {
            schema: 1,
            origin: self.origin.clone(),
            kernel: self.planned.is_asked.then(|| KernelReport::of(&self.planned.kernel)),
            asked,
            added,
            block: self.block,
            blocks,
            memory: self.memory,
            movable: self.movable,
            zone: self.target.zone.name(),
            zone_from: self.target.from.clone(),
            stays_offline: self.target.stays_offline,
            free: self.free.clone(),
            reserve: self.reserve.clone(),
            descriptors: Figure::computed(
                all.descriptors,
                format!("{} bytes for each page of {} blocks", self.shape.descriptor, blocks),
            ),
            objects: Figure::computed(
                all.objects,
                "20 KiB for each 128 MiB, the most that was measured (virtio-mem, Linux 6.1 to 7.3)",
            ),
            page_ext: self.page_ext.map(|each| {
                Figure::computed(all.page_ext, format!("{each} bytes for each page, as pages have them now"))
            }),
            page_tables: Figure::computed(
                tables,
                "8 bytes for each page that goes to ZONE_MOVABLE, if it is mapped",
            ),
            ratio,
            ratio_limit: self.target.ratio,
            ratio_from: self.target.ratio_from,
            warnings: warnings.into_iter().filter(|warning| warning.0).map(|warning| warning.1).collect(),
            works,
            missing: if works {
                0
            } else {
                first.saturating_add(self.reserve.bytes).saturating_sub(self.free.bytes)
            },
            steps_reach: steps.iter().fold(0u64, |sum, step| sum.saturating_add(*step)) >= added,
            steps,
            in_one_piece: self
                .large_free
                .map(|free| free.min(blocks.saturating_mul((self.block >> 27).max(1)))),
            ways: self.ways(added, blocks),
        }
    }

    /// The largest steps, one after the other, each made online in a kernel zone.
    fn steps(&self, added: u64, one: u64) -> Vec<u64> {
        let mut steps = Vec::new();
        let mut spare = self.spare();
        let mut left = added;
        while left > 0 && steps.len() < MAX_STEPS {
            let step = self.largest(spare, one).min(left);
            if step == 0 {
                break;
            }
            steps.push(step);
            left -= step;
            let cost = step / self.block * one;
            spare = spare.saturating_sub(cost).saturating_add(step);
        }
        steps
    }
}

/// `part` in percent of `all`, in whole numbers.
fn percent(part: u64, all: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(all.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::args::OnlineArg;
    use crate::plan::guest::{BLOCK_OBJECTS, NodeZones};
    use crate::plan::online::{OnlineTarget, ZoneChoice};

    fn guest(memory: u64, free: u64) -> PlannedGuest {
        PlannedGuest::plain(memory, free)
    }

    /// The same, for a kernel zone.
    fn kernel(memory: u64, free: u64) -> PlannedGuest {
        PlannedGuest { target: OnlineTarget::of_sizes(Some(OnlineArg::Kernel)), ..guest(memory, free) }
    }

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_missing_is_need_and_reserve_less_what_is_free() {
        // 8 blocks: 16 MiB of descriptors, 160 KiB besides; 64 MiB must stay; 50 MiB are free.
        let answer = guest(GIB, 50 * MIB).answer(GIB);
        assert_eq!(answer.missing, 16 * MIB + 8 * BLOCK_OBJECTS + (64 - 50) * MIB);
        assert!(guest(GIB, 50 * MIB + answer.missing).answer(GIB).works);
        assert!(!guest(GIB, 50 * MIB + answer.missing - 1).answer(GIB).works);
        let answer = kernel(GIB, 50 * MIB).answer(GIB);
        assert_eq!(answer.missing, 2 * MIB + BLOCK_OBJECTS + (64 - 50) * MIB);
    }

    #[test]
    fn a_movable_zone_that_is_too_large_is_warned_of() {
        // 39 GiB for 1 GiB: descriptors fit, page tables do not.
        let answer = guest(GIB, 768 * MIB).answer(39 * GIB);
        assert!(answer.works);
        assert_eq!((answer.ratio, answer.ratio_limit), (3900, 301));
        assert_eq!(answer.page_tables.bytes, 78 * MIB);
        assert_eq!(answer.warnings, [Warning::Ratio, Warning::PageTables]);
        assert_eq!(guest(GIB, 768 * MIB).answer(3 * GIB).warnings, []);
        assert_eq!(kernel(GIB, 768 * MIB).answer(39 * GIB).warnings, []);
    }

    #[test]
    fn a_policy_stops_at_its_ratio() {
        let mut guest = guest(GIB, 150 * MIB);
        guest.target.zone = ZoneChoice::ByRatio;
        // 3.01 GiB go to ZONE_MOVABLE, with 24 blocks' descriptors; the rest holds its own.
        let answer = guest.answer(39 * GIB);
        assert!(answer.works, "{answer:?}");
        assert_eq!((answer.ratio, answer.warnings), (300, vec![]));
        guest.free.bytes = 64 * MIB + 25 * (2 * MIB + BLOCK_OBJECTS);
        assert!(guest.answer(39 * GIB).works);
        guest.free.bytes -= 1;
        assert_eq!(guest.answer(39 * GIB).missing, 1);
    }

    #[test]
    fn the_ratio_holds_for_the_node_too() {
        let mut guest = guest(GIB, 768 * MIB);
        guest.target.zone = ZoneChoice::ByRatio;
        guest.target.several_nodes = true;
        assert_eq!(guest.answer(GIB).warnings, [Warning::NodeUnknown]);
        // A node without kernel memory, as CXL's: nothing of it goes to ZONE_MOVABLE.
        guest.node = Some(NodeZones { node: 2, kernel: 0, movable: 0 });
        let answer = guest.answer(GIB);
        assert_eq!((answer.ratio, answer.warnings), (0, vec![Warning::NodeRatio]));
        guest.node = Some(NodeZones { node: 1, kernel: GIB / 2, movable: GIB });
        assert_eq!(guest.answer(GIB).ratio, 50);
        guest.target.numa_aware = false;
        assert_eq!((guest.answer(GIB).ratio, guest.answer(GIB).warnings), (100, vec![]));
    }

    #[test]
    fn page_extensions_come_on_top() {
        let mut guest = guest(GIB, 768 * MIB);
        guest.page_ext = Some(80);
        let answer = guest.answer(GIB);
        assert_eq!(answer.page_ext.unwrap().bytes, 20 * MIB);
        assert_eq!(answer.ways[0].needs, 36 * MIB + 8 * BLOCK_OBJECTS);
        guest.page_ext = None;
        assert_eq!(guest.answer(GIB).warnings, [Warning::PageExtensions]);
    }

    #[test]
    fn what_kata_ran_into() {
        // "12 GiB require around 188 MiB of free memory": 96 blocks of 2 MiB are 192 MiB, and a bit.
        let answer = guest(256 * MIB, 188 * MIB).answer(12 * GIB);
        assert_eq!((answer.blocks, answer.descriptors.bytes), (96, 192 * MIB));
        assert!(!answer.works);
        assert_eq!(answer.missing, 192 * MIB + 96 * BLOCK_OBJECTS - (188 - 16) * MIB);
        // 85 blocks fit into 172 MiB, and with them in a kernel zone the rest does.
        assert_eq!(answer.steps, [85 * 128 * MIB, 11 * 128 * MIB]);
        assert!(answer.steps_reach);
        let works = |name: &str| answer.ways.iter().find(|way| way.name.starts_with(name)).unwrap().works;
        assert!(!works("at once") && !works("virtio-mem, online_movable"));
        assert!(works("virtio-mem, online_kernel") && works("memmap_on_memory") && works("folding"));
        assert!(kernel(256 * MIB, 188 * MIB).answer(12 * GIB).works);
    }

    #[test]
    fn the_largest_step_works_and_one_more_block_does_not() {
        let guest = guest(2 * GIB, 1500 * MIB);
        let largest = guest.answer(GIB).ways[0].largest.unwrap();
        assert!(guest.answer(largest).works);
        assert!(!guest.answer(largest + 1).works);
    }

    #[test]
    fn nothing_free_is_no_step() {
        let answer = kernel(256 * MIB, MIB).answer(GIB);
        assert!(!answer.works && answer.steps.is_empty() && !answer.steps_reach);
        assert!(answer.ways.iter().filter(|way| way.in_linux).all(|way| !way.works));
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let answer = guest(u64::MAX, u64::MAX).answer(1 << 52);
        assert!(answer.works);
        let mut odd = guest(GIB, GIB);
        odd.block = 1 << 40;
        assert!(!odd.answer(1 << 52).works);
    }
}
