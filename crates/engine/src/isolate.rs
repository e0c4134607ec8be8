//! Taking a range of memory out of circulation.

use core::fmt;
use core::ops::Range;

use crate::engine::Engine;
use crate::frames::isolate::{IsolateError, Isolation};
use crate::geometry::{AREA_ORDER, Order, PAGES_PER_ROW, Pfn, Row};
use crate::platform::Platform;
use crate::protocol::class::Class;
use crate::zone::Zone;

/// A range in which nothing new is allocated. What is free there is held; what is in use stays with its owners until
/// they free it. Dropping it puts the range back into circulation; one that is forgotten keeps it for good. It has a say
/// over the memory that was there when the range was isolated, and over none that comes later.
#[must_use = "dropping it ends the isolation"]
pub struct Isolated<'e, P: Platform> {
    engine: &'e Engine<P>,
    pub(crate) isolation: Isolation<'e, P::Mapping>,
    /// What is to be put back into circulation in the end.
    pages: Range<u64>,
}

impl<P: Platform> Engine<P> {
    /// Isolates `pages` (whole areas of 2 MiB): nothing new is allocated there from now on, but for memory that is added
    /// there, or comes online, later.
    ///
    /// Context: may take heap memory and frames. Spins while another CPU changes the same area.
    ///
    /// # Errors
    /// [`IsolateError`].
    pub fn isolate(&self, pages: Range<u64>) -> Result<Isolated<'_, P>, IsolateError> {
        let is_aligned = Pfn(pages.start).is_aligned(Order::AREA) && Pfn(pages.end).is_aligned(Order::AREA);
        if !is_aligned || pages.start >= pages.end || pages.end > self.pages() {
            return Err(IsolateError::BadRange);
        }
        let zone = self.records.zone(Pfn(pages.start).section());
        let last = Pfn(pages.end - 1).section();
        if !(Pfn(pages.start).section()..=last).all(|section| self.records.zone(section) == zone) {
            return Err(IsolateError::BadRange);
        }
        self.isolate_in(zone, pages)
    }

    /// As [`isolate`](Self::isolate), for whole areas of `zone`.
    pub(crate) fn isolate_in(&self, zone: Zone, pages: Range<u64>) -> Result<Isolated<'_, P>, IsolateError> {
        let isolation = self.zone(zone).isolate(pages.start >> AREA_ORDER..pages.end >> AREA_ORDER)?;
        Ok(Isolated { engine: self, isolation, pages })
    }
}

impl<P: Platform> Isolated<'_, P> {
    /// The isolated range.
    pub fn pages(&self) -> Range<u64> {
        self.pages.clone()
    }

    /// Collects what was freed since the last time, and returns how many pages are still in use. Broken pages that are
    /// kept back, and pages without memory, are not in use.
    ///
    /// Context: any.
    pub fn collect(&mut self) -> u64 {
        if self.isolation.collect() == 0 {
            return 0;
        }
        let is_there =
            |row: &Row| self.engine.map.class(self.engine.map.map_page(row.first_pfn())).0 != Class::Absent;
        let in_use = |row| self.isolation.missing(row) & !self.engine.never_free(row);
        self.isolation
            .rows_with_memory()
            .filter(is_there)
            .map(|row| u64::from(in_use(row).count_ones()))
            .sum()
    }

    /// Takes the memory away from the allocator for good. Every page of it is the caller's: collected, or owned
    /// otherwise. Nothing is withheld there any more.
    pub(crate) fn remove(mut self) {
        self.engine.map.withheld.clear(self.rows());
        self.isolation.remove();
        self.pages = 0..0;
    }

    /// Ends the isolation, but keeps what was collected: it stays taken, and is the caller's from now on, and so is what
    /// was withheld.
    pub(crate) fn keep(mut self) {
        self.engine.map.withheld.clear(self.rows());
        self.isolation.keep();
        self.pages = 0..0;
    }

    fn rows(&self) -> Range<u64> {
        self.pages.start / PAGES_PER_ROW..self.pages.end / PAGES_PER_ROW
    }

    /// Pages held: free, and of no use to anyone while this lives.
    pub fn held_pages(&self) -> u64 {
        self.isolation.collected_pages()
    }
}

impl<P: Platform> Drop for Isolated<'_, P> {
    fn drop(&mut self) {
        self.isolation.end();
        // What became free meanwhile was out of the folders' reach, and poison out of the allocator's.
        self.engine.withhold_poison(self.pages());
        self.engine.map.classes.hint_foldable_range(&self.engine.map.map_pages_of(&self.pages));
    }
}

impl<P: Platform> fmt::Debug for Isolated<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolated")
            .field("pages", &self.pages)
            .field("held_pages", &self.held_pages())
            .finish_non_exhaustive()
    }
}
