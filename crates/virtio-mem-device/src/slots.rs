//! Memory slots larger than a block: a slot is there as long as any of its blocks is plugged.
//!
//! A hypervisor has few memory slots, and each costs it metadata by size, so a VMM cuts the region into slots of, say,
//! 128 MiB and has only those that are in use. Blocks know nothing of slots: a request may touch several, or a part of one.
//! What of a slot is not plugged can be kept out of reach too ([`MemorySlots::open`], [`MemorySlots::close`]).

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;

use crate::host::GuestAccess;
use crate::range::RegionRange;
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

    /// Lets the guest at `range`, a part of a slot that is there: a slot that is used in part need not show the rest. A VMM
    /// protects what it adds (`mprotect` with `PROT_NONE`), and opens it here, block by block; one that does not tell parts
    /// apart leaves this as it is, and shows all of the slot.
    ///
    /// # Errors
    /// Where the host refuses; nothing is open then.
    fn open(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Takes `range`, a part of a slot that is there, out of the guest's reach.
    ///
    /// # Errors
    /// Where the host refuses; all is still open then.
    fn close(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

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
    /// Bytes the guest has of each slot that is there; 0 where the host would not remove it.
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
        // A slot that an earlier failure has left is there, though nothing of it is shown.
        if !self.shown.contains_key(&slot) {
            self.slots.add(&part)?;
            self.shown.insert(slot, 0);
        }
        if let Err(error) = self.slots.open(range) {
            // If it stays, it stays closed.
            if shown == 0 && self.slots.remove(&part).is_ok() {
                self.shown.remove(&slot);
            }
            return Err(error);
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
        self.slots.close(range)?;
        if range.len < shown {
            self.shown.insert(slot, shown - range.len);
            return Ok(());
        }
        if let Err(error) = self.slots.remove(&part) {
            // All is to be shown still. What the host does not open again is out of the guest's reach all the same: then the
            // range is hidden, and the slot is left.
            if self.slots.open(range).is_err() {
                self.shown.insert(slot, 0);
                return Ok(());
            }
            return Err(error);
        }
        self.shown.remove(&slot);
        Ok(())
    }

    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.slots.map_dma(range)
    }

    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.slots.unmap_dma(range)
    }
}
