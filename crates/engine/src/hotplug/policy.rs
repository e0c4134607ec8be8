//! What lies in which zone, and which zone a block goes into.
//!
//! The automatic policy is Linux's `auto-movable` (`mm/memory_hotplug.c`, `auto_movable_zone_for_pfn`): memory goes into
//! the movable zone for as long as there is enough kernel memory for it, so that as much as possible can leave again and
//! the kernel does not starve beside plenty. What counts as kernel memory is the boot memory in the normal zone, less
//! what other groups need for the movable memory they brought, plus what the block's own group put into the normal zone.

use alloc::vec::Vec;
use core::ops::Range;

use super::notify::BlockChange;
use crate::heap::OutOfMemory;
use crate::zone::{Record, Zone};

/// Linux's `auto_movable_ratio`: movable memory may be 301 % of kernel memory.
pub const DEFAULT_RATIO: u32 = 301;

/// Which zone a block goes into when none is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnlinePolicy {
    /// Always this one.
    Zone(Zone),
    /// Movable while the ratio allows it.
    AutoMovable {
        /// Movable memory in per cent of kernel memory.
        ratio: u32,
        /// The ratio must hold in the block's node as well.
        numa_aware: bool,
    },
}

impl Default for OnlinePolicy {
    fn default() -> Self {
        OnlinePolicy::AutoMovable { ratio: DEFAULT_RATIO, numa_aware: false }
    }
}

/// Blocks that belong together, such as those of one device. [`Group::NONE`] for blocks that are on their own. It is a
/// number for the policy's counts: one of another engine names another group here, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u16);

impl Group {
    /// No group.
    pub const NONE: Group = Group(0);

    pub(crate) const fn from_number(number: u16) -> Self {
        Group(number)
    }
    pub(crate) const fn number(self) -> u16 {
        self.0
    }
}

/// What lies in a zone, in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneInfo {
    /// From its first to its last page; there may be anything in between.
    pub span: Range<u64>,
    /// Pages of its online blocks and boot memory, with memory behind them or not.
    pub present: u64,
    /// Pages that its allocator has: present, and not fake-offline.
    pub managed: u64,
}

/// Hotplugged pages in both zones.
#[derive(Clone, Copy, Debug, Default)]
struct Plugged {
    normal: u64,
    movable: u64,
}

impl Plugged {
    fn of(&mut self, zone: Zone) -> &mut u64 {
        match zone {
            Zone::Normal => &mut self.normal,
            Zone::Movable => &mut self.movable,
        }
    }
}

/// A group's pages, all of one node.
#[derive(Clone, Copy, Debug, Default)]
struct GroupCount {
    node: u8,
    plugged: Plugged,
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeCount {
    boot: u64,
    plugged: Plugged,
}

/// All counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    normal: ZoneInfo,
    movable: ZoneInfo,
    nodes: Vec<NodeCount>,
    /// Group `n` is entry `n - 1`.
    groups: Vec<GroupCount>,
    /// Boot memory lies below here.
    boot_end: u64,
}

impl Counts {
    pub(crate) fn zone(&self, zone: Zone) -> ZoneInfo {
        match zone {
            Zone::Normal => self.normal.clone(),
            Zone::Movable => self.movable.clone(),
        }
    }

    fn zone_mut(&mut self, zone: Zone) -> &mut ZoneInfo {
        match zone {
            Zone::Normal => &mut self.normal,
            Zone::Movable => &mut self.movable,
        }
    }

    pub(crate) fn group(&mut self) -> Result<Group, OutOfMemory> {
        let number = u16::try_from(self.groups.len() + 1).map_err(|_| OutOfMemory)?;
        self.groups.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.groups.push(GroupCount::default());
        Ok(Group(number))
    }

    pub(crate) fn ensure_node(&mut self, node: u8) -> Result<(), OutOfMemory> {
        let missing = (usize::from(node) + 1).saturating_sub(self.nodes.len());
        self.nodes.try_reserve(missing).map_err(|_| OutOfMemory)?;
        self.nodes.extend(core::iter::repeat_n(NodeCount::default(), missing));
        Ok(())
    }

    pub(crate) fn boot(&mut self, pages: &Range<u64>, node: u8) {
        let count = pages.end - pages.start;
        if let Some(node) = self.nodes.get_mut(usize::from(node)) {
            node.boot += count;
        }
        extend(&mut self.normal.span, pages);
        self.normal.present += count;
        self.normal.managed += count;
        self.boot_end = self.boot_end.max(pages.end);
    }

    /// Whether `pfn` may be boot memory.
    pub(crate) fn is_boot(&self, zone: Zone, pfn: u64) -> bool {
        zone == Zone::Normal && pfn < self.boot_end
    }

    pub(crate) fn managed(&mut self, zone: Zone, pages: i64) {
        let zone = self.zone_mut(zone);
        zone.managed = zone.managed.saturating_add_signed(pages);
    }

    pub(crate) fn online(&mut self, change: &BlockChange, group: u16) {
        let pages = change.pages.end - change.pages.start;
        let zone = self.zone_mut(change.zone);
        extend(&mut zone.span, &change.pages);
        zone.present += pages;
        self.count(change, group, |count| *count += pages);
    }

    /// Returns the zone's span, which may be too wide now.
    pub(crate) fn offline(&mut self, change: &BlockChange, group: u16) -> Range<u64> {
        let pages = change.pages.end - change.pages.start;
        self.count(change, group, |count| *count = count.saturating_sub(pages));
        let zone = self.zone_mut(change.zone);
        zone.present = zone.present.saturating_sub(pages);
        zone.span.clone()
    }

    pub(crate) fn set_span(&mut self, zone: Zone, span: Range<u64>) {
        self.zone_mut(zone).span = if span.start < span.end { span } else { 0..0 };
    }

    fn count(&mut self, change: &BlockChange, group: u16, mut by: impl FnMut(&mut u64)) {
        if let Some(node) = self.nodes.get_mut(usize::from(change.node)) {
            by(node.plugged.of(change.zone));
        }
        let group = usize::from(group).checked_sub(1).and_then(|index| self.groups.get_mut(index));
        if let Some(group) = group {
            group.node = change.node;
            by(group.plugged.of(change.zone));
        }
    }

    /// The zone of a block of `pages` pages.
    pub(crate) fn choose(&self, policy: OnlinePolicy, pages: u64, block: Record) -> Zone {
        let (ratio, numa_aware) = match policy {
            OnlinePolicy::Zone(zone) => return zone,
            OnlinePolicy::AutoMovable { ratio, numa_aware } => (ratio, numa_aware),
        };
        let fits = |node: Option<u8>| self.has_kernel_memory_for(pages, ratio, node, block.group());
        if fits(None) && (!numa_aware || fits(Some(block.node()))) { Zone::Movable } else { Zone::Normal }
    }

    /// Whether `pages` more movable pages keep the ratio, in one node or in all.
    fn has_kernel_memory_for(&self, pages: u64, ratio: u32, node: Option<u8>, group: u16) -> bool {
        let ratio = u64::from(ratio.max(1));
        let nodes = || {
            (0u8..=u8::MAX)
                .zip(&self.nodes)
                .filter(|(number, _)| node.is_none_or(|node| node == *number))
                .map(|(_, n)| n)
        };
        let mut kernel: u64 = nodes().map(|node| node.boot).sum();
        let mut movable: u64 = nodes().map(|node| node.plugged.movable).sum();
        for (number, other) in (1u16..=u16::MAX).zip(&self.groups) {
            if node.is_some_and(|node| node != other.node) {
                continue;
            }
            let Plugged { normal, movable: brought } = other.plugged;
            if number == group {
                kernel += normal;
            } else {
                // What it brought stands on its own kernel memory first, then on the boot memory.
                let needed = (brought.saturating_mul(100) / ratio).saturating_sub(normal);
                kernel = kernel.saturating_sub(needed);
                movable = movable.saturating_sub(brought);
            }
        }
        movable.saturating_add(pages).saturating_mul(100) <= kernel.saturating_mul(ratio)
    }
}

fn extend(span: &mut Range<u64>, by: &Range<u64>) {
    *span = if span.start < span.end { span.start.min(by.start)..span.end.max(by.end) } else { by.clone() };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const BLOCK: u64 = 32_768;

    fn online(counts: &mut Counts, policy: OnlinePolicy, at: &mut u64, record: Record) -> Zone {
        let zone = counts.choose(policy, BLOCK, record);
        let change = BlockChange { pages: *at * BLOCK..(*at + 1) * BLOCK, zone, node: record.node() };
        *at += 1;
        counts.online(&change, record.group());
        zone
    }

    #[test]
    fn movable_memory_stays_within_the_ratio() {
        let mut counts = Counts::default();
        counts.ensure_node(0).unwrap();
        counts.boot(&(0..4 * BLOCK), 0);
        let group = counts.group().unwrap();
        let record = Record::offline(0, group.number());
        let mut at = 4;
        // Four blocks of boot memory carry twelve movable ones. The next one is the kernel's, and carries three more.
        let zones: Vec<Zone> =
            (0..17).map(|_| online(&mut counts, OnlinePolicy::default(), &mut at, record)).collect();
        let movable = |range: Range<usize>| zones[range].iter().all(|&zone| zone == Zone::Movable);
        assert!(movable(0..12) && movable(13..16));
        assert_eq!((zones[12], zones[16]), (Zone::Normal, Zone::Normal));
    }

    #[test]
    fn a_groups_kernel_memory_is_its_own() {
        let mut counts = Counts::default();
        counts.ensure_node(0).unwrap();
        counts.boot(&(0..BLOCK), 0);
        let [first, second] = [counts.group().unwrap(), counts.group().unwrap()];
        let mut at = 1;
        let kernel = OnlinePolicy::Zone(Zone::Normal);
        online(&mut counts, kernel, &mut at, Record::offline(0, first.number()));
        // The boot block carries three; the first group's kernel block does not help the second group.
        let record = Record::offline(0, second.number());
        for _ in 0..3 {
            assert_eq!(online(&mut counts, OnlinePolicy::default(), &mut at, record), Zone::Movable);
        }
        assert_eq!(online(&mut counts, OnlinePolicy::default(), &mut at, record), Zone::Normal);
    }

    #[test]
    fn a_node_without_kernel_memory_gets_none_that_moves() {
        let mut counts = Counts::default();
        counts.ensure_node(1).unwrap();
        counts.boot(&(0..4 * BLOCK), 0);
        let record = Record::offline(1, counts.group().unwrap().number());
        let aware = OnlinePolicy::AutoMovable { ratio: DEFAULT_RATIO, numa_aware: true };
        assert_eq!(counts.choose(aware, BLOCK, record), Zone::Normal);
        assert_eq!(counts.choose(OnlinePolicy::default(), BLOCK, record), Zone::Movable);
    }
}
