//! Parts of the device's region.

/// A part of the device's region: whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRange {
    /// Where it begins in guest physical address space.
    pub addr: u64,
    /// Where it begins in the region, and in the backing. Bytes.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}
