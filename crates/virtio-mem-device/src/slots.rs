//! Memory slots larger than a block: a slot is there as long as any of its blocks is plugged.
//!
//! A hypervisor has few memory slots, and each costs it metadata by size, so a VMM cuts the region into slots of, say,
//! 128 MiB and has only those that are in use. Blocks know nothing of slots: a request may touch several, or a part of one.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;

use crate::core::RegionRange;
use crate::host::GuestAccess;
use crate::settings::MIN_BLOCK_SIZE;

/// How a VMM adds a memory slot to its guest, and removes it.
pub trait MemorySlots {
    /// Adds the slot for `part` of the region.
    ///
    /// # Errors
    /// Where the hypervisor refuses; the slot is not there then.
    fn add(&mut self, part: &RegionRange) -> io::Result<()>;

    /// Removes it.
    ///
    /// # Errors
    /// Where the hypervisor refuses; the slot is still there then.
    fn remove(&mut self, part: &RegionRange) -> io::Result<()>;

    /// As [`GuestAccess::map_dma`].
    ///
    /// # Errors
    /// As there.
    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// As [`GuestAccess::unmap_dma`].
    ///
    /// # Errors
    /// As there.
    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }
}

/// A region in slots of one size; the last may be smaller. The device that it is given to says what the region is.
#[derive(Debug)]
pub struct SlotAccess<S> {
    slots: S,
    slot_size: NonZeroU64,
    /// The device's.
    region: Option<RegionRange>,
    /// Bytes the guest has of each slot that is there.
    shown: BTreeMap<u64, u64>,
}

impl<S: MemorySlots> SlotAccess<S> {
    /// Slots of `slot_size` bytes, at least [`MIN_BLOCK_SIZE`]. No slot is there at first.
    ///
    /// # Errors
    /// Where slots are smaller.
    pub fn new(slots: S, slot_size: u64) -> io::Result<Self> {
        match NonZeroU64::new(slot_size).filter(|size| size.get() >= MIN_BLOCK_SIZE) {
            Some(slot_size) => Ok(Self { slots, slot_size, region: None, shown: BTreeMap::new() }),
            None => Err(wrong(format!("memory slots of {slot_size} bytes: take {MIN_BLOCK_SIZE} at least"))),
        }
    }

    /// The VMM's end.
    pub fn slots(&self) -> &S {
        &self.slots
    }

    /// The slot that a range is a part of, and all that slot covers.
    fn slot_of(&self, range: &RegionRange) -> io::Result<(u64, RegionRange)> {
        let slot = range.offset / self.slot_size;
        let offset = slot * self.slot_size.get();
        let part = self.region.filter(|region| offset < region.len).map(|region| RegionRange {
            addr: region.addr + offset,
            offset,
            len: self.slot_size.get().min(region.len - offset),
        });
        part.filter(|part| range.len > 0 && range.len <= part.len - (range.offset - offset))
            .map(|part| (slot, part))
            .ok_or_else(|| wrong(format!("{range:?} is no part of one memory slot")))
    }
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl<S: MemorySlots> GuestAccess for SlotAccess<S> {
    fn attach(&mut self, region: &RegionRange) -> io::Result<()> {
        match self.region.replace(*region) {
            None => Ok(()),
            Some(other) => {
                Err(wrong(format!("these memory slots are another device's, at {:#x}", other.addr)))
            }
        }
    }

    fn slot_size(&self) -> Option<NonZeroU64> {
        Some(self.slot_size)
    }

    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        let (slot, part) = self.slot_of(range)?;
        let shown = self.shown.get(&slot).copied().unwrap_or(0);
        if range.len > part.len - shown {
            return Err(wrong(format!("{range:?} is shown already")));
        }
        if shown == 0 {
            self.slots.add(&part)?;
        }
        self.shown.insert(slot, shown + range.len);
        Ok(())
    }

    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        let (slot, part) = self.slot_of(range)?;
        let shown = self.shown.get(&slot).copied().unwrap_or(0);
        if range.len > shown {
            return Err(wrong(format!("{range:?} is not shown")));
        }
        if range.len == shown {
            self.slots.remove(&part)?;
            self.shown.remove(&slot);
        } else {
            self.shown.insert(slot, shown - range.len);
        }
        Ok(())
    }

    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.slots.map_dma(range)
    }

    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.slots.unmap_dma(range)
    }
}
