//! What a kernel maps once and for good: image, direct map, device registers, stacks.
//!
//! A present entry is never changed, so nothing has to be broken and nothing flushed: on every architecture here, an address
//! that was not mapped may be mapped at any time.

use crate::entry::{Access, Entry};
use crate::mmu::{Mmu, NoFrames, Slot};
use crate::part::{end_of, index};
use crate::{HUGE, LARGE, PAGE};
use core::ops::Range;

/// Why something was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame is left for a table.
    NoFrames,
    /// Something is mapped there already.
    Taken,
}

impl From<NoFrames> for MapError {
    fn from(_: NoFrames) -> Self {
        MapError::NoFrames
    }
}

/// The entry of `level` that leads to `address`, below the top table at the physical address `top`. As [`Root::slot`], but makes no
/// tables: `None` where one above the entry is missing, or a large page is in the way.
pub fn find<M: Mmu>(mmu: &M, top: u64, address: u64, level: u32) -> Option<Slot> {
    walk(mmu, top, address, level, |_| None).ok()
}

/// Down from the top table to the entry of `level` that leads to an address. `missing` stores an entry where one above it is
/// not present, or has no frame for a table.
fn walk<M: Mmu>(
    mmu: &M,
    top: u64,
    address: u64,
    level: u32,
    mut missing: impl FnMut(Slot) -> Option<u64>,
) -> Result<Slot, MapError> {
    let format = mmu.format();
    let mut table = top;
    for above in (level + 1..=4).rev() {
        let slot = Slot { table, index: index(address, above) };
        let mut word = mmu.load(slot);
        if !format.is_present(word) {
            word = missing(slot).ok_or(MapError::NoFrames)?;
        } else if above < 4 && format.is_large(word) {
            return Err(MapError::Taken);
        }
        table = format.address(word);
    }
    Ok(Slot { table, index: index(address, level) })
}

/// The tables of a kernel, from the top. Who has it mutably is the only one who changes them.
#[derive(Debug)]
pub struct Root {
    top: u64,
    frames: u64,
}

impl Root {
    /// Without anything mapped.
    ///
    /// # Errors
    /// There is no frame for the top table.
    pub fn new<M: Mmu>(mmu: &M) -> Result<Root, NoFrames> {
        let top = mmu.take(1).and_then(|mut frames| frames.next()).ok_or(NoFrames)?;
        Ok(Root { top, frames: 1 })
    }

    /// Physical address of the top table.
    pub fn top(&self) -> u64 {
        self.top
    }

    /// Frames taken for tables.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The entry of `level` (1 for page tables, 4 at the top) that leads to an address; tables above it are made if they are
    /// missing.
    ///
    /// # Errors
    /// There is no frame for one, or a large page is in the way.
    pub fn slot<M: Mmu>(&mut self, mmu: &M, address: u64, level: u32) -> Result<Slot, MapError> {
        let frames = &mut self.frames;
        walk(mmu, self.top, address, level, |slot| {
            let frame = mmu.take(1).and_then(|mut frames| frames.next())?;
            *frames += 1;
            let word = mmu.format().branch(frame);
            mmu.swap(slot, word);
            Some(word)
        })
    }

    /// Maps a page of 4 KiB (`level` 1), 2 MiB (2) or 1 GiB (3) where nothing is mapped.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map<M: Mmu>(
        &mut self,
        mmu: &M,
        address: u64,
        physical: u64,
        level: u32,
        access: Access,
    ) -> Result<(), MapError> {
        let slot = self.slot(mmu, address, level)?;
        if mmu.format().is_present(mmu.load(slot)) {
            return Err(MapError::Taken);
        }
        mmu.swap(slot, mmu.format().leaf(physical, access, level > 1));
        Ok(())
    }

    /// Maps a physical range at an offset, in pages that are as large as goes: 2 MiB at least, or 1 GiB where `has_huge`. What
    /// is mapped already stays.
    ///
    /// # Errors
    /// No frames.
    pub fn map_direct<M: Mmu>(
        &mut self,
        mmu: &M,
        offset: u64,
        memory: Range<u64>,
        has_huge: bool,
    ) -> Result<(), MapError> {
        let mut at = memory.start & !(LARGE - 1);
        while at < memory.end {
            let is_huge = has_huge && at.is_multiple_of(HUGE) && at + HUGE <= memory.end;
            let level = if is_huge { 3 } else { 2 };
            let unit = if is_huge { HUGE } else { LARGE };
            match self.map(mmu, offset + at, at, level, Access::Data) {
                // Memory next to other memory may share a large page with it.
                Ok(()) | Err(MapError::Taken) => at = end_of(at, unit),
                Err(error) => return Err(error),
            }
        }
        mmu.made(offset + memory.start..offset + memory.end);
        Ok(())
    }

    /// Maps the pages of a range of addresses, one by one.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map_pages<M: Mmu>(
        &mut self,
        mmu: &M,
        addresses: Range<u64>,
        physical: impl Fn(u64) -> Result<u64, MapError>,
        access: impl Fn(u64) -> Access,
    ) -> Result<(), MapError> {
        for page in addresses.clone().step_by(PAGE as usize) {
            self.map(mmu, page, physical(page)?, 1, access(page))?;
        }
        mmu.made(addresses);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::ArmEntry;
    use crate::simulated::Simulated;
    use crate::x86_64::X86Entry;

    fn is_found_and_nothing_made<E: Entry>(format: E) {
        const ADDRESS: u64 = 0xffff_c000_0000_0000 + 3 * HUGE;
        let machine = Simulated::new(format, 8);
        let mut root = Root::new(&&machine).unwrap();
        let top = root.top();
        assert_eq!(find(&&machine, top, ADDRESS, 4), Some(Slot { table: top, index: 384 }));
        assert_eq!(find(&&machine, top, ADDRESS, 3), None);
        assert_eq!(machine.free(), 7);
        let slot = root.slot(&&machine, ADDRESS, 3).unwrap();
        assert_eq!((slot.index, root.frames(), machine.free()), (3, 2, 6));
        assert_eq!(find(&&machine, top, ADDRESS + HUGE - 1, 3), Some(slot));
        // The next table is missing; then a large page is in its place.
        assert_eq!(find(&&machine, top, ADDRESS, 2), None);
        root.map(&&machine, ADDRESS, 0, 3, Access::Data).unwrap();
        assert_eq!(find(&&machine, top, ADDRESS, 2), None);
        assert_eq!(root.slot(&&machine, ADDRESS, 2), Err(MapError::Taken));
        assert_eq!((root.frames(), machine.free()), (2, 6));
    }

    #[test]
    fn an_entry_is_found_and_nothing_made() {
        is_found_and_nothing_made(X86Entry);
        is_found_and_nothing_made(ArmEntry);
    }
}
