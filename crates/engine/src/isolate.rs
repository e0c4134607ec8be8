//! Taking a range of memory out of circulation.

use core::fmt;
use core::ops::Range;

use crate::engine::Engine;
use crate::frames::{Isolation, IsolationError};
use crate::geometry::{AREA_ORDER, MAP_PAGES_PER_AREA, MapPage, Order, PAGES_PER_MAP_PAGE, Pfn};
use crate::platform::Platform;
use crate::protocol::{Fold, Protocol};

/// Why a range could not be isolated. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolateError {
    /// The range is empty, ends beyond the machine, does not begin and end at multiples of 2 MiB, or lies in several zones.
    BadRange,
    /// No memory to note what is collected: free some and retry.
    OutOfMemory,
    /// A part of the range is isolated already, or being taken offline: retry when that is over.
    Isolated,
}

impl From<IsolationError> for IsolateError {
    fn from(error: IsolationError) -> Self {
        match error {
            IsolationError::OutOfMemory => IsolateError::OutOfMemory,
            IsolationError::Isolated => IsolateError::Isolated,
        }
    }
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IsolateError::BadRange => {
                "the range must lie in one zone of the machine and be a multiple of 2 MiB"
            }
            IsolateError::Isolated => "a part of the range is isolated already: retry later",
            IsolateError::OutOfMemory => "no memory to note what is collected: free some and retry",
        })
    }
}
impl core::error::Error for IsolateError {}

/// A range in which nothing new is allocated. What is free there is held; what is in use stays with its owners until
/// they free it. Dropping it puts the range back into circulation.
#[must_use = "dropping it ends the isolation"]
pub struct Isolated<'e, P: Platform, R: Protocol = Fold> {
    engine: &'e Engine<P, R>,
    isolation: Isolation<'e, P::Mapping>,
    pages: Range<u64>,
}

impl<P: Platform, R: Protocol> Engine<P, R> {
    /// Isolates `pages` (whole areas of 2 MiB): nothing new is allocated there from now on, but for memory that is added
    /// there, or comes online, later.
    ///
    /// # Errors
    /// [`IsolateError`].
    pub fn isolate(&self, pages: Range<u64>) -> Result<Isolated<'_, P, R>, IsolateError> {
        let is_aligned = Pfn(pages.start).is_aligned(Order::AREA) && Pfn(pages.end).is_aligned(Order::AREA);
        if !is_aligned || pages.start >= pages.end || pages.end > self.pages() {
            return Err(IsolateError::BadRange);
        }
        let zone = self.records.zone(Pfn(pages.start).section());
        let last = Pfn(pages.end - 1).section();
        if !(Pfn(pages.start).section()..=last).all(|section| self.records.zone(section) == zone) {
            return Err(IsolateError::BadRange);
        }
        let isolation = self.zone(zone).isolate(pages.start >> AREA_ORDER..pages.end >> AREA_ORDER)?;
        Ok(Isolated { engine: self, isolation, pages })
    }
}

impl<P: Platform, R: Protocol> Engine<P, R> {
    /// What is to be done for pages that are in circulation again: what became free meanwhile was out of the folders'
    /// reach, and poison out of the allocator's.
    pub(crate) fn after_isolation(&self, pages: Range<u64>) {
        let map_pages = pages.start / PAGES_PER_MAP_PAGE..pages.end / PAGES_PER_MAP_PAGE;
        self.withhold_poison(map_pages.clone());
        for map_page in map_pages.step_by(MAP_PAGES_PER_AREA as usize) {
            self.map.classes.hint_foldable(MapPage(map_page));
        }
    }
}

impl<P: Platform, R: Protocol> Isolated<'_, P, R> {
    /// The isolated range.
    pub fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    /// Collects what was freed since the last time, and returns how many pages are still in use.
    pub fn collect(&mut self) -> u64 {
        self.isolation.collect()
    }

    /// Pages held: free, and of no use to anyone while this lives.
    pub fn held_pages(&self) -> u64 {
        self.isolation.collected().map(|(_, mask)| u64::from(mask.count_ones())).sum()
    }
}

impl<P: Platform, R: Protocol> Drop for Isolated<'_, P, R> {
    fn drop(&mut self) {
        self.isolation.end();
        self.engine.after_isolation(self.pages.clone());
    }
}

impl<P: Platform, R: Protocol> fmt::Debug for Isolated<'_, P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolated")
            .field("pages", &self.pages)
            .field("held_pages", &self.held_pages())
            .finish_non_exhaustive()
    }
}
