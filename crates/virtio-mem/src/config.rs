//! The device's configuration, checked, and the units it leads to.

use core::fmt;
use core::ops::Range;

use pagefold_engine::Order;
use pagefold_engine::geometry::{PAGE_SHIFT, PAGE_SIZE, PAGES_PER_SECTION};
use pagefold_virtio_mem_spec::Config;

/// Why a config space is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The block size is 0, not a power of two, or below a page.
    BlockSize(u64),
    /// A field is not a multiple of the block size.
    Misaligned(&'static str, u64),
    /// The region ends beyond what addresses can say.
    Overflow,
    /// The usable region, what is plugged or what is requested is larger than the region.
    Sizes,
    /// The node it names is none that a machine can have here: nodes end at 255.
    Node(u16),
    /// A field that never changes has changed. The driver does nothing until it has changed back; if the first value was
    /// the wrong one, end this driver and probe again.
    Changed(&'static str),
    /// No whole memory block lies in the region and in the machine.
    TooSmall,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::BlockSize(size) => {
                write!(
                    f,
                    "the device's block size is {size}: it must be a power of two of at least {PAGE_SIZE}"
                )
            }
            ConfigError::Misaligned(field, value) => {
                write!(f, "the device's {field} ({value:#x}) is not a multiple of its block size")
            }
            ConfigError::Overflow => f.write_str("the device's region ends beyond all addresses"),
            ConfigError::Sizes => f.write_str("the device's sizes are larger than its region"),
            ConfigError::Node(node) => {
                write!(f, "the device lies in node {node}, and nodes end at 255: give it one below")
            }
            ConfigError::Changed(field) => {
                write!(
                    f,
                    "the device has changed its {field}, which never changes: end this driver and probe again"
                )
            }
            ConfigError::TooSmall => {
                f.write_str("the device's region has no whole memory block in this machine")
            }
        }
    }
}
impl core::error::Error for ConfigError {}

/// Sizes that change, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may be plugged at all now, from the start of the region on.
    pub usable: u64,
    /// Bytes the device has plugged, as it says.
    pub plugged: u64,
    /// Bytes the host wants plugged.
    pub requested: u64,
}

/// What never changes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) block_size: u64,
    pub(crate) addr: u64,
    pub(crate) size: u64,
}

/// Checks a config space.
pub(crate) fn check(config: &Config) -> Result<(Region, Limits), ConfigError> {
    let block_size = config.block_size.get();
    if !block_size.is_power_of_two() || block_size < PAGE_SIZE {
        return Err(ConfigError::BlockSize(block_size));
    }
    let (addr, size) = (config.addr.get(), config.region_size.get());
    let (usable, plugged, requested) =
        (config.usable_region_size.get(), config.plugged_size.get(), config.requested_size.get());
    let fields = [
        ("address", addr),
        ("region size", size),
        ("usable region size", usable),
        ("plugged size", plugged),
        ("requested size", requested),
    ];
    for (field, value) in fields {
        if !value.is_multiple_of(block_size) {
            return Err(ConfigError::Misaligned(field, value));
        }
    }
    if addr.checked_add(size).is_none() {
        return Err(ConfigError::Overflow);
    }
    // A usable region below what is requested or plugged is against the specification, and happens: Firecracker's is 0
    // after UNPLUG_ALL until the host asks again. Nothing rests on it but how much may be plugged.
    if usable > size || requested > size || plugged > size {
        return Err(ConfigError::Sizes);
    }
    Ok((Region { block_size, addr, size }, Limits { usable, plugged, requested }))
}

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

/// The units of one device in one machine.
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
        let unit = match mode {
            Mode::SubBlock { .. } => memory_block,
            Mode::BigBlock { size } => size,
        };
        let start = region.addr.checked_next_multiple_of(unit).ok_or(ConfigError::Overflow)?;
        let end = (region.addr + region.size).min(pages << PAGE_SHIFT);
        let units = end.saturating_sub(start) / unit;
        if units == 0 {
            return Err(ConfigError::TooSmall);
        }
        Ok(Self { mode, device_block: region.block_size, memory_block, start, units, addr: region.addr })
    }

    /// Bytes of a unit.
    pub fn unit(&self) -> u64 {
        match self.mode {
            Mode::SubBlock { .. } => self.memory_block,
            Mode::BigBlock { size } => size,
        }
    }

    /// Bytes of a sub-block; a whole unit in big-block mode.
    pub fn sub_block(&self) -> u64 {
        match self.mode {
            Mode::SubBlock { size } | Mode::BigBlock { size } => size,
        }
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

    /// Address of sub-block `sub` of unit `unit`.
    pub(crate) fn address(&self, unit: u64, sub: u64) -> u64 {
        self.start + unit * self.unit() + sub * self.sub_block()
    }

    /// Pages of the sub-blocks `subs` of `unit`.
    pub(crate) fn pages(&self, unit: u64, subs: Range<u64>) -> Range<u64> {
        self.address(unit, subs.start) >> PAGE_SHIFT..self.address(unit, subs.end) >> PAGE_SHIFT
    }

    /// The unit that `pfn` lies in.
    pub(crate) fn unit_of(&self, pfn: u64) -> Option<u64> {
        let offset = (pfn << PAGE_SHIFT).checked_sub(self.start)?;
        Some(offset / self.unit()).filter(|&unit| unit < self.units)
    }

    /// The unit that `pfn` lies in, and the sub-block of it.
    pub(crate) fn sub_block_of(&self, pfn: u64) -> Option<(u64, u64)> {
        let unit = self.unit_of(pfn)?;
        Some((unit, ((pfn << PAGE_SHIFT) - self.address(unit, 0)) / self.sub_block()))
    }

    /// Memory blocks of `unit`, by their number.
    pub(crate) fn memory_blocks(&self, unit: u64) -> Range<u64> {
        let first = self.address(unit, 0) / self.memory_block;
        first..first + self.unit() / self.memory_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn good() -> Config {
        Config {
            block_size: (2 * MIB).into(),
            addr: (4096 * MIB).into(),
            region_size: (1024 * MIB).into(),
            usable_region_size: (512 * MIB).into(),
            requested_size: (256 * MIB).into(),
            plugged_size: (128 * MIB).into(),
            ..Config::default()
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        assert!(check(&good()).is_ok());
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = good();
            change(&mut config);
            check(&config).unwrap_err()
        };
        for size in [0, 6 * MIB, 2048, u64::MAX] {
            assert_eq!(refused(&|c| c.block_size = size.into()), ConfigError::BlockSize(size));
        }
        assert!(matches!(refused(&|c| c.addr = MIB.into()), ConfigError::Misaligned("address", _)));
        assert!(matches!(
            refused(&|c| c.plugged_size = 1.into()),
            ConfigError::Misaligned("plugged size", 1)
        ));
        assert_eq!(refused(&|c| c.addr = (0u64.wrapping_sub(2 * MIB)).into()), ConfigError::Overflow);
        assert_eq!(refused(&|c| c.usable_region_size = (2048 * MIB).into()), ConfigError::Sizes);
        assert_eq!(refused(&|c| c.requested_size = (1026 * MIB).into()), ConfigError::Sizes);
        assert_eq!(refused(&|c| c.plugged_size = (1026 * MIB).into()), ConfigError::Sizes);
    }

    #[test]
    fn a_usable_region_below_what_is_plugged_or_requested_is_a_limit_and_no_error() {
        let config = Config { usable_region_size: 0.into(), ..good() };
        let limits = check(&config).unwrap().1;
        assert_eq!((limits.usable, limits.plugged, limits.requested), (0, 128 * MIB, 256 * MIB));
    }

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
