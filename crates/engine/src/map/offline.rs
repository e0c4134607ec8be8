//! Classes and descriptors of memory that comes and goes.
//!
//! The caller owns every page of the ranges here: no folio of another owner is in them, and the allocator does not have them
//! (yet, or any more).

use core::ops::Range;

use crate::geometry::{MAP_PAGES_PER_SECTION, MapPage, Order, PAGES_PER_MAP_PAGE, Pfn};
use crate::heap::OutOfMemory;
use crate::map::MemoryMap;
use crate::page::{PageKind, State};
use crate::platform::{FoldRange, Mapping, Owner};
use crate::protocol::class::ClassByte;
use crate::sync::Ordering;

/// Ranges folded by one call.
const BATCH: usize = 64;

impl<M: Mapping, O: Owner> MemoryMap<M, O> {
    /// Those of `map_pages` in sections that may have something materialised.
    fn explicit(&self, map_pages: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let sections = map_pages.start / MAP_PAGES_PER_SECTION..map_pages.end.div_ceil(MAP_PAGES_PER_SECTION);
        sections.filter(|&section| self.classes.is_explicit(section)).flat_map(move |section| {
            let first = section * MAP_PAGES_PER_SECTION;
            first.max(map_pages.start)..(first + MAP_PAGES_PER_SECTION).min(map_pages.end)
        })
    }

    /// `Absent` or `Offline` → `Free` (or `Mapped`, where memory is behind it). The classes have been prepared.
    pub(crate) fn offer(&self, map_pages: Range<u64>) {
        for (stretch, has_backed) in self.classes.stretches(map_pages) {
            if !has_backed {
                self.classes.fill_uniform(stretch, ClassByte::FREE);
                continue;
            }
            for map_page in stretch.map(MapPage) {
                if self.classes.get(map_page).is_backed() {
                    self.clear_map_page(map_page);
                    self.classes.set(map_page, ClassByte::MAPPED);
                    self.classes.hint_foldable(map_page);
                } else {
                    self.classes.set(map_page, ClassByte::FREE);
                }
            }
        }
    }

    /// Publishes all of `map_pages` as `class` (`Absent` or `Offline`). What has memory behind it keeps it, and says so;
    /// whether there is any: to be taken away, after a grace period, by [`fold_offline`](Self::fold_offline). The classes
    /// have been prepared.
    pub(crate) fn publish_offline(&self, map_pages: Range<u64>, class: ClassByte) -> bool {
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

    /// Takes the memory behind `map_pages` away: whole sections as one range, so that the page tables above go too.
    ///
    /// # Safety
    /// They were published as `class`, or as another folded class before that, and a grace period has passed since they
    /// were first (or the protocol is one of those that are wrong on purpose).
    pub(crate) unsafe fn fold_offline(&self, map_pages: Range<u64>, class: ClassByte) {
        let mut ranges: [FoldRange; BATCH] = core::array::from_fn(|_| FoldRange { bytes: 0..0, backed: 0 });
        let mut next = map_pages.start;
        while next < map_pages.end {
            let mut used = 0;
            for range in &mut ranges {
                let Some((found, after)) = self.next_backed(next..map_pages.end) else {
                    next = map_pages.end;
                    break;
                };
                *range = found;
                used += 1;
                next = after;
            }
            // What the platform refuses stays backed, and its class keeps saying so: it is counted, it is tried again when
            // its block is removed, and it is `Mapped` free memory if the block comes online instead.
            // SAFETY: the caller's promise.
            unsafe { self.fold(ranges.get(..used).unwrap_or_default()) };
        }
        // One byte for all of it again, where nothing stayed.
        self.publish_offline(map_pages, class);
    }

    /// The first stretch of `map_pages` to be folded at once, and where the next may begin.
    fn next_backed(&self, map_pages: Range<u64>) -> Option<(FoldRange, u64)> {
        let is_backed = |&map_page: &u64| self.classes.get(MapPage(map_page)).is_backed();
        let start = self.explicit(map_pages.clone()).find(is_backed)?;
        let section = start - start % MAP_PAGES_PER_SECTION;
        let whole = section..section + MAP_PAGES_PER_SECTION;
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
        self.materialise_missing(map_pages.clone())?;
        for map_page in map_pages.map(MapPage) {
            let class = self.classes.get(map_page);
            if !class.is_backed() {
                self.classes.set(map_page, class.backed());
            }
        }
        Ok(())
    }

    /// Writes the descriptors of those of `map_pages` that are `Offline`: each page a folio of its own, of kind
    /// `Offline`, with one reference. They have been materialised.
    pub(crate) fn describe_offline(&self, map_pages: Range<u64>) {
        for map_page in map_pages.map(MapPage) {
            if self.classes.get(map_page).unbacked() == ClassByte::OFFLINE {
                self.write_offline(map_page);
            }
        }
    }

    /// As [`describe_offline`](Self::describe_offline), for one map page of whatever class, whose pages are free.
    pub(crate) fn write_offline(&self, map_page: MapPage) {
        let state = State::head(Order::ZERO, PageKind::Offline).with_refs(1);
        for pfn in (map_page.first_pfn().0..map_page.first_pfn().0 + PAGES_PER_MAP_PAGE).map(Pfn) {
            self.clear(pfn);
            // Release: a walker that sees the reference may take another.
            self.store(pfn, self.marked(pfn, state), Ordering::Release);
        }
        self.classes.set(map_page, ClassByte::MAPPED);
    }

    /// The descriptor of a fake-offline page, whatever its class says.
    fn offline_state(&self, pfn: Pfn) -> State {
        self.pages.get(pfn.0).map_or(State::ZERO, |page| State(page.state.load(Ordering::Acquire)))
    }

    /// Whether `pfn` is fake-offline with a descriptor, hidden or not. Only the one who changes memory blocks makes such
    /// pages and ends them. The caller is inside a section.
    pub(crate) fn is_held_offline(&self, pfn: Pfn) -> bool {
        match self.classes.get(pfn.map_page()) {
            ClassByte::MAPPED => self.state(pfn).is_offline(),
            class if class == ClassByte::OFFLINE.backed() => self.offline_state(pfn).is_offline(),
            _ => false,
        }
    }

    /// Drops the one reference of a fake-offline page, if it is the only one; what was found if not.
    pub(crate) fn drop_offline(&self, pfn: Pfn) -> Result<(), State> {
        let Some(page) = self.pages.get(pfn.0) else { return Err(State::ZERO) };
        let mut now = self.offline_state(pfn);
        while now.refs() == 1 && now.is_offline() {
            // Acquire: pairs with the Release of a walker's put, as in freezing.
            match page.state.compare_exchange(now.0, now.with_refs(0).0, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                // A walker came, or its poison mark.
                Err(other) => now = State(other),
            }
        }
        Err(now)
    }

    /// Takes the reference of a fake-offline page again, if it was dropped.
    pub(crate) fn retake_offline(&self, pfn: Pfn) {
        let now = self.offline_state(pfn);
        if now.refs() == 0 && now.is_offline() {
            self.store(pfn, now.with_refs(1), Ordering::Release);
        }
    }

    /// Tells walkers by the class that the fake-offline pages of `map_page` are nothing to take, or that they are there
    /// again.
    pub(crate) fn hide_offline(&self, map_page: MapPage, is_hidden: bool) {
        let (from, to) = match is_hidden {
            true => (ClassByte::MAPPED, ClassByte::OFFLINE.backed()),
            false => (ClassByte::OFFLINE.backed(), ClassByte::MAPPED),
        };
        if self.classes.get(map_page) == from {
            self.classes.set(map_page, to);
        }
    }

    /// Whether `pfn` is left to the driver alone: fake-offline, with its reference dropped. The caller
    /// is inside a section.
    pub(crate) fn is_given_up(&self, pfn: Pfn) -> bool {
        match self.classes.get(pfn.map_page()).unbacked() {
            ClassByte::OFFLINE => true,
            _ => {
                let state = self.state(pfn);
                state.is_offline() && state.refs() == 0
            }
        }
    }

    /// Ends fake-offline pages: their descriptors are zero again. Their references have been dropped.
    pub(crate) fn end_offline(&self, map_page: MapPage) {
        self.clear_map_page(map_page);
        self.classes.set(map_page, ClassByte::MAPPED);
        self.classes.hint_foldable(map_page);
    }
}
