//! Memory that is there from boot on.

use core::fmt;
use core::ops::Range;

use crate::engine::Engine;
use crate::geometry::{
    MAP_PAGES_PER_SECTION, MapPage, PAGES_PER_MAP_PAGE, PAGES_PER_ROW, Pfn, Row, map_pages_of,
};
use crate::heap::OutOfMemory;
use crate::platform::Platform;
use crate::protocol::class::ClassByte;
use crate::zone::Zone;

/// Why memory could not be added. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The range is empty, or does not begin and end at multiples of the block size.
    Misaligned,
    /// The range ends beyond the machine.
    OutOfRange,
    /// Memory was added there before.
    Overlap,
    /// No memory to note it: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for AddError {
    fn from(_: OutOfMemory) -> Self {
        AddError::OutOfMemory
    }
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddError::Misaligned => "the range is not a multiple of the memory block size",
            AddError::OutOfRange => "the range ends beyond the machine",
            AddError::Overlap => "memory was added there before",
            AddError::OutOfMemory => "no memory to note the new memory: free some and retry",
        })
    }
}
impl core::error::Error for AddError {}

impl<P: Platform> Engine<P> {
    /// Adds `pages` as free memory. Nothing is materialised for it but a few bytes a GiB.
    ///
    /// This needs the engine alone: it is for boot code, before it hands the engine out. From then on
    /// [`Hotplug`](crate::hotplug::Hotplug) adds memory, under its own lock, also memory that will stay
    /// ([`boot`](crate::hotplug::Hotplug::boot)).
    ///
    /// Context: boot code; may take frames for tables.
    ///
    /// ```
    /// # use pagefold_engine::{Engine, AddError, Platform};
    /// # fn boot<P: Platform>(mut engine: Engine<P>) -> Result<(), AddError> {
    /// engine.online(0..1 << 15)?;
    /// engine.online(1 << 15..1 << 16)?;
    /// # Ok(()) }
    /// ```
    /// ```compile_fail,E0499
    /// # use pagefold_engine::{Engine, AddError, Platform};
    /// # fn boot<P: Platform>(mut engine: Engine<P>) -> Result<(), AddError> {
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| engine.online(0..1 << 15));
    ///     scope.spawn(|| engine.online(1 << 15..1 << 16));
    /// });
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`AddError`].
    pub fn online(&mut self, pages: Range<u64>) -> Result<(), AddError> {
        self.add_boot(pages)
    }

    /// As [`online`](Self::online). The caller is the only one that adds or removes memory: it has the engine alone, or it
    /// has its one [`Hotplug`](crate::hotplug::Hotplug) alone, beside which the engine is shared.
    pub(crate) fn add_boot(&self, pages: Range<u64>) -> Result<(), AddError> {
        let map_pages = self.absent_map_pages(&pages)?;
        // The pages of the first and the last row that lie outside.
        let before = (1u64 << (pages.start % PAGES_PER_ROW)) - 1;
        let after = match pages.end % PAGES_PER_ROW {
            0 => 0,
            inside => Row::ALL & !((1 << inside) - 1),
        };
        let edges = [(Pfn(pages.start).row(), before), (Pfn(pages.end - 1).row(), after)];
        for (edge, mask) in edges {
            if mask != 0 {
                self.map.holes.ensure(edge)?;
            }
        }
        self.zone(Zone::Normal).prepare_online(&pages)?;
        self.map.classes.prepare_uniform(map_pages.clone())?;
        // Holes before classes: a page without memory must not be taken for one that could break. Classes before frames: as
        // soon as the allocator has the memory, it may be used.
        for (edge, mask) in edges {
            self.map.holes.mark(edge, mask);
        }
        self.map.offer(map_pages);
        self.zone(Zone::Normal).online(pages.clone());
        // A memory block may have been here before, and some of its pages broken.
        self.withhold_poison(pages);
        Ok(())
    }

    /// Notes that memory exists at `pages` but is not ours. Map pages that lie only partly in the range stay `Absent`. As
    /// [`online`](Self::online), this needs the engine alone.
    ///
    /// Context: boot code; may take frames for tables.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_offline(&mut self, pages: Range<u64>) -> Result<(), AddError> {
        self.absent_map_pages(&pages)?;
        let whole = pages.start.div_ceil(PAGES_PER_MAP_PAGE)..pages.end / PAGES_PER_MAP_PAGE;
        if whole.start < whole.end {
            self.map.classes.prepare_uniform(whole.clone())?;
            self.map.publish_offline(whole, ClassByte::OFFLINE);
        }
        Ok(())
    }

    pub(crate) fn absent_map_pages(&self, pages: &Range<u64>) -> Result<Range<u64>, AddError> {
        if pages.start >= pages.end || pages.end > self.pages() {
            return Err(AddError::OutOfRange);
        }
        let map_pages = pages.start / PAGES_PER_MAP_PAGE..pages.end.div_ceil(PAGES_PER_MAP_PAGE);
        let mut next = map_pages.start;
        while next < map_pages.end {
            // Uniform stretches first: their class bytes are not even read, so that nothing is behind them.
            let (class, after) = match self.map.classes.uniform(MapPage(next).section()) {
                Some((class, section)) => (class, section * MAP_PAGES_PER_SECTION),
                None => (self.map.classes.get(MapPage(next)), next + 1),
            };
            if class.unbacked() != ClassByte::ABSENT {
                return Err(AddError::Overlap);
            }
            next = after;
        }
        Ok(map_pages)
    }
}

impl<P: Platform> Engine<P> {
    /// Gives areas of class `Offline` to a zone as free memory. Everything it needs was prepared.
    pub(crate) fn enlist(&self, pages: Range<u64>, zone: Zone) {
        self.map.offer(map_pages_of(&pages));
        self.zone(zone).online(pages.clone());
        self.withhold_poison(pages);
    }
}
