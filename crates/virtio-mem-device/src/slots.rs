//! Memory slots larger than a block: a slot is there as long as any of its blocks is plugged.
//!
//! A hypervisor has few memory slots, and each costs it metadata by size, so a VMM cuts the region into slots of, say,
//! 128 MiB and has only those that are in use. Blocks know nothing of slots: a request may touch several, or a part of one.

use std::collections::BTreeSet;
use std::io;

use crate::core::RegionRange;
use crate::host::GuestAccess;

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

/// A region in slots of one size; the last may be smaller.
#[derive(Debug)]
pub struct SlotAccess<S> {
    slots: S,
    addr: u64,
    region_size: u64,
    slot_size: u64,
    /// Bytes the guest is to have of each slot.
    shown: Vec<u64>,
    /// Slots that are there although nothing of them is shown, or the other way: the hypervisor refused twice.
    unsettled: BTreeSet<usize>,
}

impl<S: MemorySlots> SlotAccess<S> {
    /// The region of `region_size` bytes at `addr`, in slots of `slot_size` bytes. No slot is there at first.
    ///
    /// # Errors
    /// Where the slot size is 0.
    pub fn new(slots: S, addr: u64, region_size: u64, slot_size: u64) -> io::Result<Self> {
        if slot_size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "memory slots of 0 bytes"));
        }
        let shown = vec![0; region_size.div_ceil(slot_size) as usize];
        Ok(Self { slots, addr, region_size, slot_size, shown, unsettled: BTreeSet::new() })
    }

    /// The VMM's end.
    pub fn slots(&self) -> &S {
        &self.slots
    }

    /// The VMM's end.
    pub fn slots_mut(&mut self) -> &mut S {
        &mut self.slots
    }

    fn slot(&self, slot: usize) -> RegionRange {
        let offset = slot as u64 * self.slot_size;
        RegionRange { addr: self.addr + offset, offset, len: self.slot_size.min(self.region_size - offset) }
    }

    /// The slots a range touches, and how many bytes of each.
    fn parts(&self, range: &RegionRange) -> impl Iterator<Item = (usize, u64)> + use<S> {
        let (start, end, size) = (range.offset, range.offset + range.len, self.slot_size);
        (start / size..end.div_ceil(size))
            .map(move |slot| (slot as usize, end.min((slot + 1) * size) - start.max(slot * size)))
    }

    fn put(&mut self, slot: usize, there: bool) -> io::Result<()> {
        let part = self.slot(slot);
        if there { self.slots.add(&part) } else { self.slots.remove(&part) }
    }

    /// Adds or removes `slots`, all or none.
    fn put_all(&mut self, slots: &[usize], there: bool) -> io::Result<()> {
        for (done, &slot) in slots.iter().enumerate() {
            let Err(error) = self.put(slot, there) else { continue };
            for &slot in &slots[..done] {
                if self.put(slot, !there).is_err() {
                    self.unsettled.insert(slot);
                }
            }
            return Err(error);
        }
        Ok(())
    }

    /// Puts right what the hypervisor refused to undo. Called before every change; a VMM may call it too.
    ///
    /// # Errors
    /// Where it refuses still.
    pub fn settle(&mut self) -> io::Result<()> {
        while let Some(&slot) = self.unsettled.first() {
            self.put(slot, self.shown[slot] > 0)?;
            self.unsettled.remove(&slot);
        }
        Ok(())
    }
}

impl<S: MemorySlots> GuestAccess for SlotAccess<S> {
    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        self.settle()?;
        let new: Vec<_> =
            self.parts(range).map(|(slot, _)| slot).filter(|&slot| self.shown[slot] == 0).collect();
        self.put_all(&new, true)?;
        for (slot, bytes) in self.parts(range) {
            self.shown[slot] += bytes;
        }
        Ok(())
    }

    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        self.settle()?;
        let empty: Vec<_> = self
            .parts(range)
            .filter(|&(slot, bytes)| self.shown[slot] == bytes)
            .map(|(slot, _)| slot)
            .collect();
        self.put_all(&empty, false)?;
        for (slot, bytes) in self.parts(range) {
            self.shown[slot] -= bytes;
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
