//! The device's config space, checked.

use pagefold_engine::geometry::PAGE_SIZE;
use pagefold_virtio_mem_spec::ConfigSpace;
use thiserror::Error;

/// Why a config space is refused. Correct the host's configuration, unless the variant says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The block size is 0, not a power of two, or below a page.
    #[error("the device's block size is {0}: it must be a power of two of at least {PAGE_SIZE}")]
    BlockSize(u64),
    /// A field is not a multiple of the block size.
    #[error("the device's {0} ({1:#x}) is not a multiple of its block size")]
    Misaligned(&'static str, u64),
    /// The region ends beyond the last address.
    #[error("the device's region ends beyond all addresses")]
    Overflow,
    /// The usable region, the plugged size or the requested size is larger than the region.
    #[error("the device's sizes are larger than its region")]
    Sizes,
    /// The device names a node above 255, the last one that a machine can have here.
    #[error("node {0} is too large: use one up to 255")]
    Node(u16),
    /// A field that never changes has changed. The driver does nothing until it has changed back; if the first value was
    /// the wrong one, end this driver and probe again.
    #[error("the device has changed its {0}, which never changes: end this driver and probe again")]
    Changed(&'static str),
    /// No whole memory block lies in the region and in the machine: give the engine more pages
    /// ([`Config`](pagefold_engine::Config)), or the device a larger region.
    #[error("the device's region has no whole memory block in this machine")]
    TooSmall,
}

/// Sizes that change, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes at the start of the region that may be plugged now.
    pub usable: u64,
    /// Bytes plugged, by the count of the device.
    pub plugged: u64,
    /// Bytes that the host asks for.
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
pub(crate) fn check(config: &ConfigSpace) -> Result<(Region, Limits), ConfigError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn good() -> ConfigSpace {
        ConfigSpace {
            block_size: (2 * MIB).into(),
            addr: (4096 * MIB).into(),
            region_size: (1024 * MIB).into(),
            usable_region_size: (512 * MIB).into(),
            requested_size: (256 * MIB).into(),
            plugged_size: (128 * MIB).into(),
            ..ConfigSpace::default()
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        assert!(check(&good()).is_ok());
        let refused = |change: &dyn Fn(&mut ConfigSpace)| {
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
        let config = ConfigSpace { usable_region_size: 0.into(), ..good() };
        let limits = check(&config).unwrap().1;
        assert_eq!((limits.usable, limits.plugged, limits.requested), (0, 128 * MIB, 256 * MIB));
    }
}
