//! Memory that is there from boot on.

use core::ops::Range;

use crate::engine::Engine;
use crate::errors::{error_texts, from_out_of_memory};
use crate::geometry::{MapGeometry, MapPage, Row};
use crate::platform::Platform;
use crate::protocol::class::{Class, ClassEntry};
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

from_out_of_memory!(AddError);

error_texts!(AddError {
    Misaligned => "the range is not a multiple of the memory block size",
    OutOfRange => "the range ends beyond the machine",
    Overlap => "memory was added there before",
    OutOfMemory => "no memory to note the new memory: free some and retry",
});

impl<P: Platform> Engine<P> {
    /// Adds `pages` as free memory. Nothing is materialised for it but a few bytes a GiB. A map page may get its memory in
    /// several parts.
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
        let map_pages = self.map_pages_around(&pages)?;
        // Memory of one map page may come in parts.
        let edges = [map_pages.start, map_pages.end - 1]
            .map(|edge| (MapPage(edge), self.joins(MapPage(edge), &pages)));
        let [(_, joins_before), (_, joins_behind)] = edges;
        let first = map_pages.start + u64::from(joins_before);
        let fresh = first..(map_pages.end - u64::from(joins_behind)).max(first);
        let has_backed = self.add_fresh(&pages, fresh)?;
        for (edge, _) in edges.into_iter().filter(|&(_, joins)| joins) {
            for row in Row::covering(&self.map.pages_of(edge)) {
                self.map.holes.unmark(row, row.mask_of(&pages));
            }
        }
        self.hand_over(pages, Zone::Normal, has_backed);
        Ok(())
    }

    /// Whether `map_page` has memory, and none where it lies in `pages`.
    fn joins(&self, map_page: MapPage, pages: &Range<u64>) -> bool {
        let is_hole = |row: Row| row.mask_of(pages) & !self.map.holes.mask(row) == 0;
        self.map.class(map_page).0 != Class::Absent
            && Row::covering(&self.map.pages_of(map_page)).all(is_hole)
    }

    /// As [`online`](Self::online), for map pages that have no memory yet. The caller is the only one that adds or removes
    /// memory: it has its one [`Hotplug`](crate::hotplug::Hotplug) alone, beside which the engine is shared.
    pub(crate) fn add_boot(&self, pages: Range<u64>) -> Result<(), AddError> {
        let map_pages = self.map_pages_around(&pages)?;
        let has_backed = self.add_fresh(&pages, map_pages)?;
        self.hand_over(pages, Zone::Normal, has_backed);
        Ok(())
    }

    /// Makes `map_pages` those of free memory, as far as they lie in `pages`; the allocator is to be given all of `pages` next,
    /// and can be ([`hand_over`](Self::hand_over)). Whether some have memory.
    fn add_fresh(&self, pages: &Range<u64>, map_pages: Range<u64>) -> Result<bool, AddError> {
        self.are_absent(&map_pages)?;
        // What of the first and the last map page lies outside.
        let described = P::Descriptors::PAGES_PER_MAP_PAGE;
        let all = map_pages.start * described..map_pages.end * described;
        let outside =
            [all.start..pages.start.clamp(all.start, all.end), pages.end.clamp(all.start, all.end)..all.end];
        let holes = || {
            let parts = outside.iter().filter(|part| !part.is_empty());
            parts.flat_map(|part| Row::covering(part).map(move |row| (row, row.mask_of(part))))
        };
        for (row, _) in holes() {
            self.map.holes.ensure(row)?;
        }
        self.zone(Zone::Normal).prepare_online(pages)?;
        self.map.classes.prepare_uniform(map_pages.clone())?;
        // Holes before classes: a page without memory must not be taken for one that could break. Classes before frames: as
        // soon as the allocator has the memory, it may be used.
        for (row, mask) in holes() {
            self.map.holes.mark(row, mask);
        }
        Ok(self.map.offer(map_pages))
    }

    /// Notes that memory exists at `pages` but is not ours. Map pages that lie only partly in the range stay `Absent`. As
    /// [`online`](Self::online), this needs the engine alone.
    ///
    /// Context: boot code; may take frames for tables.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_offline(&mut self, pages: Range<u64>) -> Result<(), AddError> {
        self.map_pages_around(&pages)?;
        let described = P::Descriptors::PAGES_PER_MAP_PAGE;
        let whole = pages.start.div_ceil(described)..pages.end / described;
        if whole.start < whole.end {
            self.are_absent(&whole)?;
            self.map.classes.prepare_uniform(whole.clone())?;
            self.map.publish_offline(whole, ClassEntry::OFFLINE);
        }
        Ok(())
    }

    /// The map pages that `pages` lie in, all of them `Absent`.
    pub(crate) fn absent_map_pages(&self, pages: &Range<u64>) -> Result<Range<u64>, AddError> {
        let map_pages = self.map_pages_around(pages)?;
        self.are_absent(&map_pages)?;
        Ok(map_pages)
    }

    fn map_pages_around(&self, pages: &Range<u64>) -> Result<Range<u64>, AddError> {
        if pages.start >= pages.end || pages.end > self.pages() {
            return Err(AddError::OutOfRange);
        }
        Ok(self.map.map_pages_of(pages))
    }

    fn are_absent(&self, map_pages: &Range<u64>) -> Result<(), AddError> {
        let mut next = map_pages.start;
        while next < map_pages.end {
            // Uniform stretches first: their class bytes are not even read, so that nothing is behind them.
            let section = P::Descriptors::section_of(MapPage(next));
            let (class, after) = match self.map.classes.uniform(section) {
                Some((class, section)) => (class, section * P::Descriptors::MAP_PAGES_PER_SECTION),
                None => (self.map.classes.get(MapPage(next)), next + 1),
            };
            if class.unbacked() != ClassEntry::ABSENT {
                return Err(AddError::Overlap);
            }
            next = after;
        }
        Ok(())
    }
}

impl<P: Platform> Engine<P> {
    /// Gives areas of class `Offline` to a zone as free memory. Everything it needs was prepared.
    pub(crate) fn enlist(&self, pages: Range<u64>, zone: Zone) {
        let has_backed = self.map.offer(self.map.map_pages_of(&pages));
        self.hand_over(pages, zone, has_backed);
    }

    /// Gives the allocator of `zone` pages whose classes say that they are free.
    fn hand_over(&self, pages: Range<u64>, zone: Zone, has_backed: bool) {
        self.zone(zone).online(pages.clone());
        if has_backed {
            // Not before: a folder that looks in between finds the pages taken, and nobody would tell the next one.
            self.map.classes.hint_foldable(&self.map.map_pages_of(&pages));
        }
        // A memory block may have been here before, and some of its pages broken.
        self.withhold_poison(pages);
    }
}
