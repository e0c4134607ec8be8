//! Devices that reach guest memory directly, and come and go while the guest runs: a VFIO device that is hot-plugged has to
//! have mapped what is plugged already.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU64;

use crate::device::Device;
use crate::host::{Backing, GuestAccess, HostError, Step};
use crate::range::RegionRange;

/// Maps guest memory for one device or one container of them (VFIO, vDPA, an IOMMU).
pub trait DmaMapper {
    /// Maps a device block. It may pin memory.
    ///
    /// # Errors
    /// Where the host refuses; nothing is mapped then.
    fn map(&mut self, block: &RegionRange) -> io::Result<()>;

    /// Unmaps a block that was mapped by one call of [`DmaMapper::map`].
    ///
    /// # Errors
    /// Where the host refuses; the block is still mapped then.
    fn unmap(&mut self, block: &RegionRange) -> io::Result<()>;
}

/// Which mapper, of those that a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapperId(u64);

/// One mapper, and the offsets of blocks that it has mapped.
struct Mapper {
    id: MapperId,
    map: Box<dyn DmaMapper + Send>,
    mapped: BTreeSet<u64>,
}

/// Guest access with any number of mappers beside it, which may come late. They map block by block, because VFIO cannot unmap
/// a part of what one call has mapped; so have blocks of a good size: a VFIO container takes 65,535 mappings.
#[derive(Default)]
pub struct Mappers<G = ()> {
    guest: G,
    region: Option<RegionRange>,
    /// Bytes of a device block; none before the first mapper.
    block: Option<NonZeroU64>,
    mappers: Vec<Mapper>,
    last: u64,
}

impl<G> std::fmt::Debug for Mappers<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mappers").field("mappers", &self.mappers.len()).finish_non_exhaustive()
    }
}

impl<G: GuestAccess> Mappers<G> {
    /// Beside the VMM's own guest access; no mapper is there yet.
    pub fn new(guest: G) -> Self {
        Self { guest, region: None, block: None, mappers: Vec::new(), last: 0 }
    }

    /// The VMM's own guest access.
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// How many mappers there are.
    pub fn count(&self) -> usize {
        self.mappers.len()
    }

    /// The blocks of a range.
    fn blocks(&self, range: &RegionRange) -> Vec<RegionRange> {
        let len = self.block.map_or(range.len, NonZeroU64::get);
        (0..range.len / len)
            .map(|at| RegionRange { addr: range.addr + at * len, offset: range.offset + at * len, len })
            .collect()
    }
}

impl Mapper {
    /// Maps blocks, all or none. One that an earlier failure has left mapped holds memory that is gone: it is mapped anew.
    fn map(&mut self, blocks: &[RegionRange]) -> io::Result<()> {
        for (at, block) in blocks.iter().enumerate() {
            let done = match self.mapped.contains(&block.offset) {
                true => self.unmap_one(block).and_then(|()| self.map.map(block)),
                false => self.map.map(block),
            };
            if let Err(error) = done {
                // What the host does not take back stays in the record.
                self.unmap_what_goes(&blocks[..at]);
                return Err(error);
            }
            self.mapped.insert(block.offset);
        }
        Ok(())
    }

    /// Unmaps blocks, all or none. What is not mapped needs nothing.
    fn unmap(&mut self, blocks: &[RegionRange]) -> io::Result<()> {
        for (at, block) in blocks.iter().enumerate() {
            if let Err(error) = self.unmap_one(block) {
                // The blocks stay plugged, so they are mapped again. What the host does not map again is out of the record, and
                // out of this mapper's reach until the block is plugged anew.
                for block in &blocks[..at] {
                    if self.map.map(block).is_ok() {
                        self.mapped.insert(block.offset);
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn unmap_one(&mut self, block: &RegionRange) -> io::Result<()> {
        if self.mapped.contains(&block.offset) {
            self.map.unmap(block)?;
            self.mapped.remove(&block.offset);
        }
        Ok(())
    }

    fn unmap_what_goes(&mut self, blocks: &[RegionRange]) {
        for block in blocks {
            // In the record, if not.
            let _ = self.unmap_one(block);
        }
    }
}

impl<G: GuestAccess> GuestAccess for Mappers<G> {
    fn attach(&mut self, region: &RegionRange) -> io::Result<()> {
        self.guest.attach(region)?;
        self.region = Some(*region);
        Ok(())
    }

    fn slot_size(&self) -> Option<NonZeroU64> {
        self.guest.slot_size()
    }

    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        self.guest.show(range)
    }

    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        self.guest.hide(range)
    }

    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.guest.map_dma(range)?;
        let blocks = self.blocks(range);
        for at in 0..self.mappers.len() {
            if let Err(error) = self.mappers[at].map(&blocks) {
                self.mappers[..at].iter_mut().for_each(|mapper| mapper.unmap_what_goes(&blocks));
                // As there was nothing mapped before; what is, is in the mappers' records, and the VMM's own end must take
                // back what it has just done.
                let _ = self.guest.unmap_dma(range);
                return Err(error);
            }
        }
        Ok(())
    }

    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        let blocks = self.blocks(range);
        for at in 0..self.mappers.len() {
            if let Err(error) = self.mappers[at].unmap(&blocks) {
                for mapper in &mut self.mappers[..at] {
                    // A mapper that cannot map again what it had is without it until the block is plugged anew.
                    let _ = mapper.map(&blocks);
                }
                return Err(error);
            }
        }
        self.guest.unmap_dma(range)
    }
}

impl<B: Backing, G: GuestAccess> Device<B, Mappers<G>> {
    /// A device that reaches memory directly has come: maps for it what is plugged, and from now on what will be.
    ///
    /// # Errors
    /// What the host would not map; nothing is mapped for it then, and it is not attached.
    pub fn attach_dma(&mut self, map: Box<dyn DmaMapper + Send>) -> Result<MapperId, HostError> {
        self.settle()?;
        let ranges: Vec<RegionRange> = self.plugged_ranges().collect();
        let access = &mut self.host.guest;
        access.block = NonZeroU64::new(self.core.block_size);
        access.last += 1;
        let mut mapper = Mapper { id: MapperId(access.last), map, mapped: BTreeSet::new() };
        for (at, range) in ranges.iter().enumerate() {
            if let Err(source) = mapper.map(&access.blocks(range)) {
                for range in &ranges[..at] {
                    mapper.unmap_what_goes(&access.blocks(range));
                }
                return Err(HostError { step: Step::MapDma, range: *range, source, undo: None });
            }
        }
        let id = mapper.id;
        access.mappers.push(mapper);
        Ok(id)
    }

    /// The device goes: unmaps for it what is mapped. One that is not there needs nothing.
    ///
    /// # Errors
    /// What the host would not unmap; it stays attached then, and can be detached again.
    pub fn detach_dma(&mut self, id: MapperId) -> Result<(), HostError> {
        let (access, block) = (&mut self.host.guest, self.core.block_size);
        let Some(at) = access.mappers.iter().position(|mapper| mapper.id == id) else { return Ok(()) };
        let mapper = &mut access.mappers[at];
        for offset in mapper.mapped.clone() {
            let range = RegionRange { addr: self.core.addr + offset, offset, len: block };
            mapper.unmap_one(&range).map_err(|source| HostError {
                step: Step::UnmapDma,
                range,
                source,
                undo: None,
            })?;
        }
        access.mappers.remove(at);
        Ok(())
    }
}
