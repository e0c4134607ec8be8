//! Folding the descriptors of free memory.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::descriptors::seam::{DescriptorMap, ObjectFolder};
use crate::engine::{Engine, MapOf};
use crate::fold::{FoldReport, Pending};
use crate::frames::claim::Claim;
use crate::geometry::{AREA_ORDER, MapGeometry, MapPage, Order, PAGES_PER_ROW, PAGES_PER_SECTION, Pfn, Row};
use crate::heap::{OutOfMemory, try_vec};
use crate::mapping::FoldRange;
use crate::platform::Platform;
use crate::protocol::class::Class;

impl<P: Platform> Engine<P> {
    /// A folder of free memory that takes up to `batch` areas or map pages at a time.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn folder(&self, batch: usize) -> Result<Folder<'_, P>, OutOfMemory> {
        let batch = batch.max(1);
        let map_pages = self.map.map_pages(Pfn(0), Order::AREA).count();
        // One map page may need as many claims as it has rows.
        let claims = batch.saturating_add(Row::covering(&self.map.pages_of(MapPage(0))).count());
        Ok(Folder {
            engine: self,
            cursor: 0,
            claims: try_vec(claims)?,
            objects: ObjectFolder::new(batch)?,
            has_objects: false,
            pending: Pending::new(batch.saturating_mul(map_pages))?,
            batch,
        })
    }

    /// Materialises the descriptors of all free memory in `pages`, as a flat memory map has them. Memory in use is left
    /// alone, and so is what is being allocated, freed, folded or isolated meanwhile.
    ///
    /// Context: takes frames and changes page tables.
    ///
    /// # Errors
    /// [`OutOfMemory`]; what was done so far stays.
    pub fn materialise_free(&self, pages: Range<u64>) -> Result<(), OutOfMemory> {
        let Range { start: mut next, end } =
            self.map.map_pages_of(&(pages.start..pages.end.min(self.pages())));
        while next < end {
            let map_page = MapPage(next);
            next += 1;
            if self.map.class(map_page) != (Class::Free, false) {
                continue;
            }
            let rows = Row::covering(&self.map.pages_of(map_page));
            let frames = self.frames(self.map.first_pfn(map_page));
            let Some(claim) = rows.map(|row| frames.take_any(row)).find_map(Result::transpose).transpose()?
            else {
                continue;
            };
            let pages = claim.pages();
            let (claimed, done) = match claim {
                // As an owner of one page: others may take, use and free the others meanwhile.
                Claim::Row(..) => (map_page.0..next, self.map.ensure_mapped(map_page)),
                Claim::Area(_) => {
                    let claimed = self.map.map_pages_of(&pages);
                    (claimed.clone(), self.map.unfold_free(claimed))
                }
            };
            next = next.max(claimed.end);
            frames.give_claim(claim);
            self.withhold_poison(pages);
            self.map.classes.hint_foldable(&claimed);
            done?;
        }
        Ok(())
    }

    /// Gives a claim back to its zone's allocator.
    fn unclaim(&self, claim: Claim) {
        let pages = claim.pages();
        self.frames(Pfn(pages.start)).give_claim(claim);
        self.withhold_poison(pages);
    }
}

/// Folds the descriptors of free memory, a batch at a time. One thread's; several may work at the same time.
///
/// Between [`start`](Self::start) and [`poll`](Self::poll) the pages of the batch are not available to allocations; dropping it
/// finishes the batch, which waits for its grace period.
pub struct Folder<'e, P: Platform> {
    engine: &'e Engine<P>,
    /// Section where the search goes on.
    cursor: u64,
    /// What was taken from the allocator.
    claims: Vec<Claim>,
    objects: <MapOf<P> as DescriptorMap<P::Mapping, P::Owner>>::ObjectFolder,
    has_objects: bool,
    pending: Pending<'e, P::Barrier>,
    batch: usize,
}

/// Why a map page was not claimed.
enum NotClaimed {
    /// Some page of it is in use, or nobody's is all there is. Nothing was claimed. Who frees a page sets the hint.
    InUse,
    /// It looked free, and another CPU is changing it. Some of it may be claimed, and is to be given back. Look here again.
    Changing,
}

/// Sections looked at in one search: bounds a step where there is nothing to do.
const SECTIONS_PER_STEP: u64 = 1 << 16;

impl<'e, P: Platform> Folder<'e, P> {
    /// Collects a batch of free map pages (up to as many areas or map pages as the folder was made for), publishes them
    /// as free and folded, and starts their grace period. Whether there is a batch under way now.
    ///
    /// Context: may interrupt other CPUs; does not wait for readers.
    pub fn start(&mut self) -> bool {
        self.begin();
        self.is_under_way()
    }

    fn is_under_way(&self) -> bool {
        self.has_objects || !self.claims.is_empty()
    }

    /// Finishes the batch if its grace period is over: its memory is given back, and its pages are free again. `None`
    /// while it is not.
    ///
    /// Context: changes page tables, and may interrupt other CPUs for that; does not wait for readers.
    pub fn poll(&mut self) -> Option<FoldReport> {
        self.pending.is_over().then(|| self.finish())
    }

    /// One whole batch, waiting for its grace period. Must not be called inside a section.
    ///
    /// Context: waits for a grace period, interrupts other CPUs, changes page tables.
    pub fn fold_batch(&mut self) -> FoldReport {
        self.start();
        self.pending.wait();
        self.finish()
    }

    /// Batches until nothing foldable is found any more. Must not be called inside a section.
    ///
    /// Context: as of [`fold_batch`](Self::fold_batch), many times.
    pub fn fold_all(&mut self) -> FoldReport {
        let mut total = FoldReport::default();
        let mut idle = 0;
        // A step looks at a part of a huge machine only, and ends early when its batch is full; stop after a whole turn
        // without a find. A batch that folds nothing (the platform refuses) counts for a section at least.
        while idle <= self.engine.map.classes.sections() {
            let looked = self.begin();
            self.pending.wait();
            let report = self.finish();
            total += report;
            let is_idle = report.map_pages == 0 && report.object_pages == 0;
            idle = if is_idle { idle + looked.max(1) } else { 0 };
        }
        total
    }

    /// Collects a batch, if none is under way, and starts its grace period. Returns the sections that were looked at.
    fn begin(&mut self) -> u64 {
        if self.is_under_way() {
            return 0;
        }
        let looked = self.collect();
        self.has_objects = self.objects.collect(&self.engine.map);
        self.pending.start(self.engine, self.has_objects);
        looked
    }

    /// Returns how many sections were looked at to their end.
    fn collect(&mut self) -> u64 {
        let sections = self.engine.map.classes.sections();
        let mut looked = 0;
        for _ in 0..sections.min(SECTIONS_PER_STEP) {
            if self.cursor >= sections {
                self.cursor = 0;
            }
            if let Some((_, next)) = self.engine.map.classes.uniform(self.cursor) {
                // Nothing is materialised in it.
                looked += next - self.cursor;
                self.cursor = next;
                continue;
            }
            if self.engine.map.classes.take_foldable_hint(self.cursor) && !self.collect_section(self.cursor) {
                // The batch is full and there may be more here.
                let first = self.cursor * P::Descriptors::MAP_PAGES_PER_SECTION;
                self.engine.map.classes.hint_foldable(&(first..first + 1));
                return looked;
            }
            looked += 1;
            self.cursor += 1;
        }
        looked
    }

    /// Whether the section was looked at to its end.
    fn collect_section(&mut self, section: u64) -> bool {
        let map = &self.engine.map;
        let per_section = P::Descriptors::MAP_PAGES_PER_SECTION;
        let end = ((section + 1) * per_section).min(map.classes.len());
        let mut next = section * per_section;
        let is_mapped = |map_page| map.classes.is_mapped(MapPage(map_page));
        // Without a map page to fold nothing has to be taken from the allocator.
        if !(next..end).any(is_mapped) || self.collect_whole(section) {
            return true;
        }
        while next < end {
            let map_page = next;
            next += 1;
            if !map.classes.is_mapped(MapPage(map_page)) {
                continue;
            }
            if self.claims.len() >= self.batch {
                return false;
            }
            let first = self.claims.len();
            match self.claim_map_page(MapPage(map_page)) {
                Ok(pages) => {
                    for claimed in map.map_pages_of(&pages).map(MapPage) {
                        if map.publish_free(claimed) {
                            let bytes = map.bytes_of(claimed.0..claimed.0 + 1);
                            self.pending.push(FoldRange { bytes, backed: 1 });
                        }
                        next = next.max(claimed.0 + 1);
                    }
                }
                Err(NotClaimed::InUse) => {}
                Err(NotClaimed::Changing) => {
                    self.unclaim_from(first);
                    // Not before the pages are given back: another folder would find them taken, and nobody would tell
                    // the next one.
                    map.classes.hint_foldable(&(map_page..map_page + 1));
                }
            }
        }
        true
    }

    /// Gives the claims from number `first` on back.
    fn unclaim_from(&mut self, first: usize) {
        self.claims.drain(first..).for_each(|claim| self.engine.unclaim(claim));
    }

    /// Takes every page of a map page that is free, or has no owner; the pages that are claimed now.
    fn claim_map_page(&mut self, map_page: MapPage) -> Result<Range<u64>, NotClaimed> {
        let map = &self.engine.map;
        let described = map.pages_of(map_page);
        let frames = self.engine.frames(Pfn(described.start));
        if Row::covering(&described).any(|row| frames.is_owned(row, self.engine.never_free(row))) {
            return Err(NotClaimed::InUse);
        }
        let mut pages = described.start..described.start;
        let mut owned = false;
        while pages.end < described.end {
            let row = Pfn(pages.end).row();
            let except = self.engine.never_free(row);
            if except == Row::ALL {
                // Nobody's. That stands for as long as another page of it is claimed, and is looked at again then.
                pages.end = row.first_pfn().0 + PAGES_PER_ROW;
                continue;
            }
            // Taken since, or moving or isolated just now.
            let claim = frames.take_row(row, except).ok_or(NotClaimed::Changing)?;
            let claimed = claim.pages();
            self.claims.push(claim);
            owned = true;
            if self.engine.never_free(row) & except != except {
                // Looked at before the claim, and not so any more: the memory went and came back meanwhile. From the claim
                // on that cannot happen.
                return Err(NotClaimed::Changing);
            }
            pages = pages.start.min(claimed.start)..claimed.end;
        }
        let is_nobodys_or_claimed = |row: Row| frames.taken_mask(row) == Row::ALL;
        if !Row::covering(&described).all(is_nobodys_or_claimed) {
            return Err(NotClaimed::Changing);
        }
        // Without an owned page it is nobody's as a whole.
        if owned { Ok(pages) } else { Err(NotClaimed::InUse) }
    }

    /// Takes a section that is free as a whole, so that its part of the map is folded as one range, and the page table
    /// above it can go too. Only where plenty of other memory is free: all of it is out of reach until it is folded.
    fn collect_whole(&mut self, section: u64) -> bool {
        const AREAS: u64 = PAGES_PER_SECTION >> AREA_ORDER;
        let map = &self.engine.map;
        let per_section = P::Descriptors::MAP_PAGES_PER_SECTION;
        let map_pages = section * per_section..(section + 1) * per_section;
        let pages = section * PAGES_PER_SECTION..(section + 1) * PAGES_PER_SECTION;
        let frames = self.engine.frames(Pfn(pages.start));
        let first = self.claims.len();
        let has_room = first + AREAS as usize <= self.batch && map_pages.end <= map.classes.len();
        if !has_room || !frames.is_mostly_free(Pfn(pages.start)) {
            return false;
        }
        for area in pages.step_by(Order::AREA.pages() as usize).map(Pfn) {
            match frames.take_area(area) {
                Some(claim) => self.claims.push(claim),
                None => {
                    self.unclaim_from(first);
                    return false;
                }
            }
        }
        let backed = map_pages.clone().filter(|&map_page| map.publish_free(MapPage(map_page))).count() as u64;
        if backed > 0 {
            self.pending.push(FoldRange { bytes: map.bytes_of(map_pages), backed });
        }
        true
    }

    fn finish(&mut self) -> FoldReport {
        let mut report = self.pending.finish(self.engine);
        report.object_pages = self.objects.finish(&self.engine.map);
        self.has_objects = false;
        let Self { engine, claims, .. } = self;
        let map = &engine.map;
        for claim in claims.drain(..) {
            let claimed = map.map_pages_of(&claim.pages());
            // A map page may have several claims. It is `Mapped` again before the first of them is given back, and stays so
            // at least until the last is: no new owner has all of it.
            let mut any_refused = false;
            for map_page in claimed.clone().map(MapPage).filter(|_| report.refused > 0) {
                if map.class(map_page).1 {
                    map.stay_backed(map_page);
                    any_refused = true;
                }
            }
            engine.unclaim(claim);
            if any_refused {
                // The next folder tries it again. Not told before: it would find the pages taken.
                map.classes.hint_foldable(&claimed);
            }
        }
        report
    }
}

impl<P: Platform> Drop for Folder<'_, P> {
    fn drop(&mut self) {
        self.pending.wait();
        self.finish();
    }
}

impl<P: Platform> fmt::Debug for Folder<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folder").field("cursor", &self.cursor).field("claims", &self.claims.len()).finish()
    }
}
