//! Classes of memory that comes and goes.
//!
//! The caller owns every page of the ranges here: no folio of another owner is in them, and the allocator does not have them
//! (yet, or any more).

use core::ops::Range;

use super::{MapEntry, MemoryMap};
use crate::geometry::MapPage;
use crate::heap::OutOfMemory;
use crate::mapping::{FoldRange, Mapping};
use crate::protocol::class::ClassEntry;
use crate::protocol::classes::Classed;
use crate::stock::Source;

/// Ranges folded by one call.
const BATCH: usize = 64;

impl<D: Classed, E: MapEntry, M: Mapping> MemoryMap<D, E, M> {
    /// Those of `map_pages` in sections that may have something materialised.
    fn explicit(&self, map_pages: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let sections =
            map_pages.start / D::MAP_PAGES_PER_SECTION..map_pages.end.div_ceil(D::MAP_PAGES_PER_SECTION);
        sections.filter(|&section| self.classes.is_explicit(section)).flat_map(move |section| {
            let first = section * D::MAP_PAGES_PER_SECTION;
            first.max(map_pages.start)..(first + D::MAP_PAGES_PER_SECTION).min(map_pages.end)
        })
    }

    /// `Absent` or `Offline` → `Free` (or `Mapped`, where memory is behind it; whether there is any: it can be folded as soon
    /// as the allocator has the pages). The classes have been prepared.
    #[must_use]
    pub(crate) fn offer(&self, map_pages: Range<u64>) -> bool {
        let mut any = false;
        for (stretch, has_backed) in self.classes.stretches(map_pages) {
            any |= has_backed;
            if !has_backed {
                self.classes.fill_uniform(stretch, ClassEntry::FREE);
                continue;
            }
            for map_page in stretch.map(MapPage) {
                if self.classes.get(map_page).is_backed() {
                    self.clear_map_page(map_page);
                    self.classes.set_mapped(map_page);
                } else {
                    self.classes.set(map_page, ClassEntry::FREE);
                }
            }
        }
        any
    }

    /// Publishes all of `map_pages` as `class` (`Absent` or `Offline`). What has memory behind it keeps it, and says so;
    /// whether there is any: to be taken away, after a grace period, by [`fold_offline`](Self::fold_offline). The classes
    /// have been prepared.
    pub(crate) fn publish_offline(&self, map_pages: Range<u64>, class: ClassEntry) -> bool {
        let mut any = false;
        for (stretch, has_backed) in self.classes.stretches(map_pages) {
            any |= has_backed;
            if !has_backed {
                self.classes.fill_uniform(stretch, class);
                continue;
            }
            for map_page in stretch.map(MapPage) {
                let is_backed = self.classes.get(map_page).is_backed();
                self.classes.set(map_page, if is_backed { class.backed() } else { class });
            }
        }
        any
    }

    /// Takes the memory behind all `runs` of map pages away: whole sections as one range, so that the page tables above go
    /// too.
    ///
    /// # Safety
    /// They were published as `class`, or as another folded class before that, and a grace period has passed since they
    /// were first (or the protocol is one of those that are wrong on purpose).
    pub(crate) unsafe fn fold_offline(
        &self,
        runs: impl Iterator<Item = Range<u64>> + Clone,
        class: ClassEntry,
    ) {
        let mut ranges: [FoldRange; BATCH] = core::array::from_fn(|_| FoldRange { bytes: 0..0, backed: 0 });
        let mut used = 0;
        // What the platform refuses stays backed, and its class keeps saying so: it is counted, it is tried again when its
        // block is removed, and it is `Mapped` free memory if the block comes online instead.
        // SAFETY: the caller's promise.
        let fold = |ranges: &[FoldRange]| unsafe { self.fold(ranges) };
        for run in runs.clone() {
            let mut next = run.start;
            while let Some((found, after)) = self.next_backed(next..run.end) {
                if let Some(range) = ranges.get_mut(used) {
                    *range = found;
                }
                (next, used) = (after, used + 1);
                if used == BATCH {
                    fold(&ranges);
                    used = 0;
                }
            }
        }
        if let Some(rest) = ranges.get(..used).filter(|rest| !rest.is_empty()) {
            fold(rest);
        }
        // One byte for all of it again, where nothing stayed.
        for run in runs {
            self.publish_offline(run, class);
        }
    }

    /// The first stretch of `map_pages` to be folded at once, and where the next may begin.
    fn next_backed(&self, map_pages: Range<u64>) -> Option<(FoldRange, u64)> {
        let is_backed = |&map_page: &u64| self.classes.get(MapPage(map_page)).is_backed();
        let start = self.explicit(map_pages.clone()).find(is_backed)?;
        let section = start - start % D::MAP_PAGES_PER_SECTION;
        let whole = section..section + D::MAP_PAGES_PER_SECTION;
        if map_pages.start <= section && whole.end <= map_pages.end {
            let backed = whole.clone().filter(is_backed).count() as u64;
            return Some((FoldRange { bytes: self.bytes_of(whole.clone()), backed }, whole.end));
        }
        let end = (start..map_pages.end.min(whole.end)).find(|map_page| !is_backed(map_page));
        let end = end.unwrap_or(map_pages.end.min(whole.end));
        Some((FoldRange { bytes: self.bytes_of(start..end), backed: end - start }, end))
    }

    /// Memory behind all of `map_pages`, whose classes keep saying folded. Nothing is changed on an error.
    pub(crate) fn materialise_offline(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        self.materialise_missing(map_pages.clone(), &mut Source::Machine)?;
        for map_page in map_pages.map(MapPage) {
            let class = self.classes.get(map_page);
            if !class.is_backed() {
                self.classes.set(map_page, class.backed());
            }
        }
        Ok(())
    }
}
