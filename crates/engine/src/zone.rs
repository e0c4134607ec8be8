//! Zones, and what is recorded of memory blocks: a word a section.

use core::ops::Range;

use crate::geometry::PAGES_PER_SECTION;
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::table::Table;

/// Which allocations memory serves. Each zone has an allocator of its own; a section lies in one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    /// Everything, also what can never move: Linux's `ZONE_NORMAL`. Boot memory lies here.
    Normal,
    /// Only folios whose owners move them when asked to, so that the memory can go offline: `ZONE_MOVABLE`.
    Movable,
}

impl Zone {
    /// Both.
    pub const ALL: [Zone; 2] = [Zone::Normal, Zone::Movable];

    /// As Linux spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Zone::Normal => "Normal",
            Zone::Movable => "Movable",
        }
    }
}

/// Where a memory block stands. Linux's names (`drivers/base/memory.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Added; none of its pages can be allocated.
    Offline,
    /// On its way from one to the other, while listeners are told.
    Going,
    /// Its pages are in a zone.
    Online,
}

/// What a section's word says. Zero: no memory block (boot memory, or nothing).
///
/// | bits | meaning |
/// |---|---|
/// | 0-1 | 0 no block, 1 offline, 2 going, 3 online |
/// | 2 | movable zone |
/// | 8-15 | NUMA node |
/// | 16-31 | group |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record(u32);

const STATE: u32 = 0b11;
const MOVABLE: u32 = 1 << 2;

impl Record {
    pub(crate) const NONE: Record = Record(0);

    pub(crate) const fn offline(node: u8, group: u16) -> Self {
        Record(1 | (node as u32) << 8 | (group as u32) << 16)
    }
    pub(crate) const fn state(self) -> Option<BlockState> {
        match self.0 & STATE {
            0 => None,
            1 => Some(BlockState::Offline),
            2 => Some(BlockState::Going),
            _ => Some(BlockState::Online),
        }
    }
    pub(crate) const fn with_state(self, state: BlockState) -> Self {
        let bits = match state {
            BlockState::Offline => 1,
            BlockState::Going => 2,
            BlockState::Online => 3,
        };
        Record(self.0 & !STATE | bits)
    }
    pub(crate) const fn zone(self) -> Zone {
        if self.0 & MOVABLE != 0 { Zone::Movable } else { Zone::Normal }
    }
    pub(crate) const fn with_zone(self, zone: Zone) -> Self {
        match zone {
            Zone::Normal => Record(self.0 & !MOVABLE),
            Zone::Movable => Record(self.0 | MOVABLE),
        }
    }
    pub(crate) const fn node(self) -> u8 {
        (self.0 >> 8) as u8
    }
    pub(crate) const fn group(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The words of all sections.
///
/// One thread at a time changes them ([`Hotplug`](crate::hotplug::Hotplug)); anyone may read.
pub(crate) struct Records<M> {
    words: Table<AtomicU32, M>,
    /// Whether there ever was a memory block.
    used: AtomicBool,
}

impl<M: Mapping> Records<M> {
    pub(crate) fn new(words: Table<AtomicU32, M>) -> Self {
        Self { words, used: AtomicBool::new(false) }
    }

    pub(crate) fn mapping(&self) -> &M {
        self.words.mapping()
    }

    /// Whether there never was a memory block.
    pub(crate) fn is_empty(&self) -> bool {
        !self.used.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn get(&self, section: u64) -> Record {
        // Relaxed: the owner of a page got it from its zone's allocator (Acquire), which got the memory after the word was
        // written. Others only search, and a search in the wrong zone finds nothing.
        self.words.get(section).map_or(Record::NONE, |word| Record(word.load(Ordering::Relaxed)))
    }

    /// The zone of `section`; the normal one where there is no block.
    #[inline]
    pub(crate) fn zone(&self, section: u64) -> Zone {
        self.get(section).zone()
    }

    /// Makes the words of `sections` writable.
    pub(crate) fn ensure(&self, sections: Range<u64>) -> Result<(), OutOfMemory> {
        self.words.materialise(sections)
    }

    /// Sets the words of `sections`, which were ensured.
    pub(crate) fn set(&self, sections: Range<u64>, record: Record) {
        self.used.store(true, Ordering::Relaxed);
        for word in self.words.slice(sections) {
            word.store(record.0, Ordering::Relaxed);
        }
    }
}

/// The sections that `pages` (whole sections) are.
pub(crate) fn sections_of(pages: &Range<u64>) -> Range<u64> {
    pages.start / PAGES_PER_SECTION..pages.end / PAGES_PER_SECTION
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_every_other() {
        for state in [BlockState::Offline, BlockState::Going, BlockState::Online] {
            for zone in Zone::ALL {
                let record = Record::offline(7, 0xabcd).with_state(state).with_zone(zone);
                assert_eq!((record.state(), record.zone()), (Some(state), zone));
                assert_eq!((record.node(), record.group()), (7, 0xabcd));
            }
        }
        assert_eq!((Record::NONE.state(), Record::NONE.zone()), (None, Zone::Normal));
    }
}
