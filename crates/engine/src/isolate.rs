//! Taking a range of memory out of circulation.

use core::fmt;
use core::ops::Range;

use crate::engine::Engine;
use crate::frames::isolate::{IsolateError, Isolation};
use crate::geometry::{AREA_ORDER, Order, PAGES_PER_ROW, Pfn, Row, areas_of};
use crate::heap::{OutOfMemory, try_vec};
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
        let isolation = self.zone(zone).isolation(areas_of(&pages))?;
        // On an error, what was isolated so far comes back as it does in the end.
        let mut isolated = Isolated { engine: self, isolation, pages };
        isolated.isolation.isolate_all()?;
        Ok(isolated)
    }

    /// Isolates what can be isolated of `parts` (whole areas of one zone, ascending, not empty): what is not free, only if
    /// not `only_free`. Areas of a piece of `piece` pages are of use together only.
    pub(crate) fn isolate_parts(
        &self,
        parts: &[Range<u64>],
        piece: u64,
        only_free: bool,
    ) -> Result<Isolated<'_, P>, OutOfMemory> {
        let start = parts.first().map_or(0, |part| part.start);
        let pages = start..parts.last().map_or(start, |part| part.end);
        let mut areas = try_vec(parts.len())?;
        areas.extend(parts.iter().map(areas_of));
        let isolation = self.frames(Pfn(start)).isolation(areas_of(&pages))?;
        // As in `isolate_in`.
        let mut isolated = Isolated { engine: self, isolation, pages };
        isolated.isolation.isolate_parts(&areas, piece >> AREA_ORDER, only_free)?;
        Ok(isolated)
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
        self.isolation.collect();
        let is_there =
            |row: Row| self.engine.map.class(self.engine.map.map_page(row.first_pfn())).0 != Class::Absent;
        let missing = self.isolation.missing().filter(|&(row, _)| is_there(row));
        missing.map(|(row, missing)| u64::from((missing & !self.engine.never_free(row)).count_ones())).sum()
    }

    /// Takes the memory of `taken` (whole areas, ascending) away from the allocator for good, and puts the rest back into
    /// circulation. Every page of `taken` is the caller's: collected, or owned otherwise. Nothing is withheld there any more.
    pub(crate) fn remove(mut self, taken: &[Range<u64>]) {
        self.part(taken);
        self.isolation.remove();
    }

    /// As [`remove`](Self::remove), but the memory stays the allocator's: taken, and the caller's from now on, and so is what
    /// was withheld.
    pub(crate) fn keep(mut self, taken: &[Range<u64>]) {
        self.part(taken);
        self.isolation.keep();
    }

    /// Puts everything but `taken` back into circulation.
    fn part(&mut self, taken: &[Range<u64>]) {
        for pages in taken {
            self.engine.map.withheld.clear(rows_of(pages));
        }
        let mut parts = taken.iter().peekable();
        self.isolation.give_back(|area| {
            let pfn = area << AREA_ORDER;
            while parts.next_if(|part| part.end <= pfn).is_some() {}
            parts.peek().is_some_and(|part| part.contains(&pfn))
        });
        let mut next = self.pages.start;
        for pages in taken {
            self.has_come_back(next..pages.start);
            next = pages.end;
        }
        self.has_come_back(next..self.pages.end);
        self.pages = 0..0;
    }

    /// Sees to `pages`, which are in circulation again: what became free meanwhile was out of the folders' reach, and poison
    /// out of the allocator's.
    fn has_come_back(&self, pages: Range<u64>) {
        if pages.start < pages.end {
            self.engine.withhold_poison(pages.clone());
            self.engine.map.classes.hint_foldable(&self.engine.map.map_pages_of(&pages));
        }
    }

    /// Pages held: free, and of no use to anyone while this lives.
    pub fn held_pages(&self) -> u64 {
        self.isolation.collected_pages()
    }
}

impl<P: Platform> Drop for Isolated<'_, P> {
    fn drop(&mut self) {
        self.isolation.end();
        self.has_come_back(self.pages());
    }
}

fn rows_of(pages: &Range<u64>) -> Range<u64> {
    pages.start / PAGES_PER_ROW..pages.end / PAGES_PER_ROW
}

impl<P: Platform> fmt::Debug for Isolated<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolated")
            .field("pages", &self.pages)
            .field("held_pages", &self.held_pages())
            .finish_non_exhaustive()
    }
}
