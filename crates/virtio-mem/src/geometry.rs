//! The units in which memory of a device is plugged, and their addresses.

use core::ops::Range;

use pagefold_engine::geometry::{PAGE_SHIFT, PAGES_PER_SECTION};
use pagefold_engine::hotplug::{BlockId, Hotplug};
use pagefold_engine::{Order, Platform};

use crate::config::{ConfigError, Region};

/// In which units memory is plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Parts of memory blocks (Linux: SBM).
    SubBlock {
        /// Bytes of a sub-block: the device's block, at least 2 MiB.
        size: u64,
    },
    /// Several whole memory blocks (Linux: BBM).
    BigBlock {
        /// Bytes of a big block.
        size: u64,
    },
}

impl Mode {
    /// Bytes of a unit, in a machine with memory blocks of `memory_block` bytes.
    fn unit(self, memory_block: u64) -> u64 {
        match self {
            Mode::SubBlock { .. } => memory_block,
            Mode::BigBlock { size } => size,
        }
    }
}

/// The units of one device in one machine. A *unit* is what is added to the machine and removed from it: a memory block in
/// sub-block mode, a big block in big-block mode. Sizes and addresses are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Mode and unit.
    pub mode: Mode,
    /// Bytes of a device block.
    pub device_block: u64,
    /// Bytes of a memory block.
    pub memory_block: u64,
    /// Address of the first unit (memory block, or big block).
    pub start: u64,
    /// Units that fit into the region and the machine, whole.
    pub units: u64,
    /// Address of the region.
    pub addr: u64,
    /// Bytes of the region.
    pub size: u64,
}

impl Geometry {
    /// The units for `region`, in a machine of `pages` pages with memory blocks of `block_pages`. Units at the ends that are
    /// not whole are never used.
    pub(crate) fn new(
        region: Region,
        pages: u64,
        block_pages: u64,
        force_big: bool,
        big_block: Option<u64>,
    ) -> Result<Self, ConfigError> {
        let memory_block = block_pages.max(PAGES_PER_SECTION) << PAGE_SHIFT;
        let sub_block = region.block_size.max(Order::AREA.pages() << PAGE_SHIFT);
        let mode = if sub_block < memory_block && !force_big {
            Mode::SubBlock { size: sub_block }
        } else {
            let size = region.block_size.max(memory_block).max(big_block.unwrap_or(0));
            if !size.is_power_of_two() {
                return Err(ConfigError::BlockSize(size));
            }
            Mode::BigBlock { size }
        };
        let unit = mode.unit(memory_block);
        let start = region.addr.checked_next_multiple_of(unit).ok_or(ConfigError::Overflow)?;
        let end = (region.addr + region.size).min(pages << PAGE_SHIFT);
        let units = end.saturating_sub(start) / unit;
        if units == 0 {
            return Err(ConfigError::TooSmall);
        }
        let Region { addr, size, block_size: device_block, .. } = region;
        Ok(Self { mode, device_block, memory_block, start, units, addr, size })
    }

    /// Bytes of a unit.
    pub fn unit(&self) -> u64 {
        self.mode.unit(self.memory_block)
    }

    /// Bytes of a sub-block; a whole unit in big-block mode.
    pub fn sub_block(&self) -> u64 {
        let (Mode::SubBlock { size } | Mode::BigBlock { size }) = self.mode;
        size
    }

    /// Sub-blocks in a unit.
    pub fn per_unit(&self) -> u64 {
        self.unit() / self.sub_block()
    }

    /// Units inside a usable region of `usable` bytes.
    pub(crate) fn usable_units(&self, usable: u64) -> u64 {
        let end = self.addr.saturating_add(usable);
        (end.saturating_sub(self.start) / self.unit()).min(self.units)
    }

    /// Address of sub-block `sub` of `unit`.
    fn address(&self, unit: u64, sub: u64) -> u64 {
        self.start + unit * self.unit() + sub * self.sub_block()
    }

    /// Addresses of the sub-blocks `subs` of `unit`.
    pub(crate) fn bytes(&self, unit: u64, subs: Range<u64>) -> Range<u64> {
        self.address(unit, subs.start)..self.address(unit, subs.end)
    }

    /// Addresses of whole units.
    pub(crate) fn unit_bytes(&self, units: Range<u64>) -> Range<u64> {
        self.address(units.start, 0)..self.address(units.end, 0)
    }

    /// Pages of the sub-blocks `subs` of `unit`.
    pub(crate) fn pages(&self, unit: u64, subs: Range<u64>) -> Range<u64> {
        let bytes = self.bytes(unit, subs);
        bytes.start >> PAGE_SHIFT..bytes.end >> PAGE_SHIFT
    }

    /// Pages of a sub-block.
    pub(crate) fn sub_pages(&self) -> u64 {
        self.sub_block() >> PAGE_SHIFT
    }

    /// The unit that `pfn` lies in, and the sub-block of it.
    pub(crate) fn sub_block_of(&self, pfn: u64) -> Option<(u64, u64)> {
        let offset = (pfn << PAGE_SHIFT).checked_sub(self.start)?;
        let unit = Some(offset / self.unit()).filter(|&unit| unit < self.units)?;
        Some((unit, offset % self.unit() / self.sub_block()))
    }

    /// The unit that all of `pages` lie in.
    pub(crate) fn unit_of(&self, pages: &Range<u64>) -> Option<u64> {
        let (unit, _) = self.sub_block_of(pages.start)?;
        (pages.end <= self.address(unit + 1, 0) >> PAGE_SHIFT).then_some(unit)
    }

    /// Page numbers of the region, plugged or not.
    pub(crate) fn region_pages(&self) -> Range<u64> {
        self.addr >> PAGE_SHIFT..(self.addr + self.size) >> PAGE_SHIFT
    }

    /// Whether all of `pages` are the device's.
    pub(crate) fn is_in_region(&self, pages: &Range<u64>) -> bool {
        let region = self.region_pages();
        region.start <= pages.start && pages.end <= region.end
    }

    /// Whether memory of the device is in the machine, in units or elsewhere.
    pub(crate) fn has_added<P: Platform>(&self, hotplug: &Hotplug<'_, P>) -> bool {
        hotplug.blocks().any(|block| self.is_in_region(&hotplug.pages(block.id)))
    }

    /// The part of `bytes`, of the region, that comes first and is in no memory block that is added and all the device's.
    pub(crate) fn first_out_of_machine<P: Platform>(
        &self,
        hotplug: &Hotplug<'_, P>,
        bytes: Range<u64>,
    ) -> Option<Range<u64>> {
        // There are no memory blocks behind.
        let machine = hotplug.engine().pages() << PAGE_SHIFT;
        let is_added = |at: u64| {
            let block = hotplug.block_of(at >> PAGE_SHIFT);
            hotplug.block(block).is_some() && self.is_in_region(&hotplug.pages(block))
        };
        let next = |at: u64| (at / self.memory_block + 1).saturating_mul(self.memory_block);
        let (mut start, end) = (bytes.start, bytes.end);
        while start < end.min(machine) && is_added(start) {
            start = next(start);
        }
        let mut to = start;
        while to < end.min(machine) && !is_added(to) {
            to = next(to);
        }
        let to = if to < machine { to.min(end) } else { end };
        (start < to).then_some(start..to)
    }

    /// Memory blocks in a unit.
    pub(crate) fn blocks_per_unit(&self) -> u64 {
        self.unit() / self.memory_block
    }

    /// The memory blocks of `unit`, in ascending order.
    pub(crate) fn memory_blocks(&self, unit: u64) -> impl DoubleEndedIterator<Item = BlockId> + use<> {
        let first = self.address(unit, 0) / self.memory_block;
        (first..first + self.blocks_per_unit()).map(BlockId)
    }

    /// Bytes that may be added without being online. Linux's limit: 1 GiB, two memory blocks or two big blocks.
    pub(crate) fn offline_limit(&self) -> u64 {
        (1u64 << 30).max(2 * self.memory_block).max(2 * self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn geometry(block_size: u64, addr: u64, size: u64, memory_block: u64) -> Result<Geometry, ConfigError> {
        let region = Region { block_size, addr, size };
        Geometry::new(region, 1 << 30, memory_block >> PAGE_SHIFT, false, None)
    }

    #[test]
    fn the_mode_follows_from_the_sizes() {
        let typical = geometry(2 * MIB, 4096 * MIB, 1024 * MIB, 128 * MIB).unwrap();
        assert_eq!((typical.mode, typical.per_unit()), (Mode::SubBlock { size: 2 * MIB }, 64));
        let tiny = geometry(MIB, 4096 * MIB, 1024 * MIB, 128 * MIB).unwrap();
        assert_eq!(tiny.mode, Mode::SubBlock { size: 2 * MIB }, "no smaller than an area");
        let hugetlb = geometry(1024 * MIB, 4096 * MIB, 8192 * MIB, 128 * MIB).unwrap();
        assert_eq!((hugetlb.mode, hugetlb.units), (Mode::BigBlock { size: 1024 * MIB }, 8));
        let large = geometry(2 * MIB, 4096 * MIB, 8192 * MIB, 2048 * MIB).unwrap();
        assert_eq!((large.per_unit(), large.units), (1024, 4));
    }

    #[test]
    fn units_that_are_not_whole_are_never_used() {
        let odd = geometry(2 * MIB, 4096 * MIB + 2 * MIB, 1024 * MIB, 128 * MIB).unwrap();
        assert_eq!((odd.start, odd.units), (4224 * MIB, 7));
        assert_eq!(odd.usable_units(126 * MIB), 0);
        assert_eq!(odd.usable_units(254 * MIB), 1);
        assert_eq!(odd.usable_units(u64::MAX), 7);
        assert_eq!(geometry(2 * MIB, 4096 * MIB, 126 * MIB, 128 * MIB), Err(ConfigError::TooSmall));
        assert_eq!(geometry(2 * MIB, 1 << 50, 1024 * MIB, 128 * MIB), Err(ConfigError::TooSmall));
    }
}
