//! Folding: giving descriptors back, many at a time, for one grace period and one flush.
//!
//! Two things can be folded, and they differ in who owns the pages meanwhile:
//!
//! * [`FoldBatch`] folds the tails of frozen folios, which their owner hands over and gets back.
//! * [`Folder`] folds the descriptors of free memory. It takes the free pages from the allocator, as any owner would,
//!   and gives them back when they are folded.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::engine::Engine;
use crate::folio::Frozen;
use crate::frames::claim::Claim;
use crate::geometry::{
    AREA_ORDER, MAP_PAGES_PER_SECTION, MapPage, Order, PAGES_PER_MAP_PAGE, PAGES_PER_SECTION, Pfn,
    map_pages_of,
};
use crate::heap::{OutOfMemory, try_vec};
use crate::platform::{Barrier, FoldRange, Platform};
use crate::protocol::Protocol;
use crate::protocol::class::Class;
use crate::rcu::Ticket;

/// What folding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldReport {
    /// Map pages whose memory was given back.
    pub map_pages: u64,
    /// Map pages that were to be folded, but whose memory the platform did not take. They stay materialised.
    pub refused: u64,
    /// Grace periods waited for.
    pub grace_periods: u64,
}

impl core::ops::AddAssign for FoldReport {
    fn add_assign(&mut self, other: Self) {
        self.map_pages += other.map_pages;
        self.refused += other.refused;
        self.grace_periods += other.grace_periods;
    }
}

/// Why a folio could not be handed over to a batch. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The folio belongs to another engine than the batch: push it to a batch of its own engine.
    OtherEngine,
    /// The batch has as many folios as it was made for: commit it, take them out, and push this one again.
    Full,
    /// No memory to note it: commit what is there, or free some, and retry.
    OutOfMemory,
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PushError::OtherEngine => "the folio belongs to another engine: push it to a batch of that one",
            PushError::Full => "the batch is full: commit it first",
            PushError::OutOfMemory => "no memory to note the folio: free some and retry",
        })
    }
}
impl core::error::Error for PushError {}

/// Ranges of the map that have been published as folded and wait for their grace period.
struct Pending<'e, B> {
    ranges: Vec<FoldRange>,
    ticket: Option<Ticket<'e, B>>,
}

impl<'e, B: Barrier> Pending<'e, B> {
    fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { ranges: try_vec(capacity)?, ticket: None })
    }

    /// Notes a range, joined to the last one if it goes on from there. There is room for it.
    fn push(&mut self, range: FoldRange) {
        match self.ranges.last_mut() {
            Some(last) if last.bytes.end == range.bytes.start => {
                last.bytes.end = range.bytes.end;
                last.backed += range.backed;
            }
            _ => self.ranges.push(range),
        }
    }

    fn start<P: Platform<Barrier = B>>(&mut self, engine: &'e Engine<P>) {
        if P::Rules::WAITS && !self.ranges.is_empty() {
            self.ticket = Some(engine.rcu.start());
        }
    }

    /// Whether no reader that began before can be inside any more. Without a ticket there is nothing to wait for.
    fn is_over(&self) -> bool {
        self.ticket.is_none_or(|ticket| ticket.is_over())
    }

    fn wait(&self) {
        if let Some(ticket) = self.ticket {
            ticket.wait();
        }
    }

    /// Takes the memory away. The grace period is over.
    fn finish<P: Platform<Barrier = B>>(&mut self, engine: &Engine<P>) -> FoldReport {
        if self.ranges.is_empty() {
            return FoldReport::default();
        }
        let wanted = self.ranges.iter().map(|range| range.backed).sum::<u64>();
        // SAFETY: the ranges were published as folded by the owner of their pages, before the ticket was started, and
        // the ticket is over (or the protocol is wrong on purpose). The owner's handles or claims still exist.
        let map_pages = unsafe { engine.map.fold(&self.ranges) };
        let grace_periods = u64::from(self.ticket.take().is_some());
        self.ranges.clear();
        FoldReport { map_pages, refused: wanted - map_pages, grace_periods }
    }
}

/// Frozen folios to be folded together.
///
/// [`push`](Self::push) hands a folio over and publishes its tails as folded; [`commit`](Self::commit) waits for one
/// grace period and gives the memory of all their tails back; then the folios can be taken out again. Dropping the batch
/// before that frees the folios.
#[must_use = "nothing is folded before commit"]
pub struct FoldBatch<'e, P: Platform> {
    engine: &'e Engine<P>,
    folios: Vec<Frozen<'e, P>>,
    /// Folios it takes at most.
    capacity: usize,
    pending: Pending<'e, P::Barrier>,
}

impl<P: Platform> Engine<P> {
    /// An empty batch for up to `capacity` folios (at least one). Allocates.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn fold_batch(&self, capacity: usize) -> Result<FoldBatch<'_, P>, OutOfMemory> {
        FoldBatch::new(self, capacity)
    }

    /// A folder of free memory that takes up to `batch` areas or map pages at a time.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn folder(&self, batch: usize) -> Result<Folder<'_, P>, OutOfMemory> {
        Folder::new(self, batch)
    }

    /// Materialises the descriptors of all free memory in `pages`, as a flat memory map has them. Memory in use is left
    /// alone, and so is what is being allocated, freed, folded or isolated meanwhile.
    ///
    /// Context: takes frames and changes page tables.
    ///
    /// # Errors
    /// [`OutOfMemory`]; what was done so far stays.
    pub fn materialise_free(&self, pages: Range<u64>) -> Result<(), OutOfMemory> {
        let end = pages.end.min(self.pages()).div_ceil(PAGES_PER_MAP_PAGE);
        let mut next = pages.start / PAGES_PER_MAP_PAGE;
        while next < end {
            let map_page = MapPage(next);
            next += 1;
            if self.map.class(map_page) != (Class::Free, false) {
                continue;
            }
            let frames = self.frames(map_page.first_pfn());
            let Some(claim) = frames.take_any(map_page.first_pfn().row())? else { continue };
            let pages = claim.pages();
            let claimed = map_pages_of(&pages);
            let done = match claim {
                // As an owner of one page: others may take, use and free the others meanwhile.
                Claim::Row(..) => self.map.ensure_mapped(map_page),
                Claim::Area(_) => self.map.unfold_free(claimed.clone()),
            };
            next = next.max(claimed.end);
            frames.give_claim(claim);
            self.withhold_poison(pages);
            self.map.classes.hint_foldable_range(&claimed);
            done?;
        }
        Ok(())
    }
}

impl<'e, P: Platform> FoldBatch<'e, P> {
    pub(crate) fn new(engine: &'e Engine<P>, capacity: usize) -> Result<Self, OutOfMemory> {
        let capacity = capacity.max(1);
        Ok(Self { engine, folios: try_vec(capacity)?, capacity, pending: Pending::new(capacity)? })
    }

    /// Folios in the batch.
    pub fn len(&self) -> usize {
        self.folios.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.folios.is_empty()
    }
    /// Folios it takes at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Hands a folio over.
    ///
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// The folio as it was, and why.
    #[allow(clippy::type_complexity)]
    pub fn push(&mut self, folio: Frozen<'e, P>) -> Result<(), (Frozen<'e, P>, PushError)> {
        if !core::ptr::eq(folio.engine(), self.engine) {
            return Err((folio, PushError::OtherEngine));
        }
        if self.folios.len() >= self.capacity {
            return Err((folio, PushError::Full));
        }
        let runs = self.engine.backed_tails(folio.pfn(), folio.order()).count();
        if self.pending.ranges.try_reserve(runs).is_err() {
            return Err((folio, PushError::OutOfMemory));
        }
        let tails = self.engine.map.publish_tails(folio.pfn(), folio.order());
        self.engine.map.backed_runs(tails).for_each(|run| self.pending.push(run));
        self.folios.push(folio);
        Ok(())
    }

    /// Waits for one grace period and gives the memory of all tails back. Must not be called inside a section.
    ///
    /// Context: waits for a grace period, interrupts other CPUs, changes page tables.
    pub fn commit(&mut self) -> FoldReport {
        self.pending.start(self.engine);
        self.pending.wait();
        self.pending.finish(self.engine)
    }

    /// Takes the folios out, in the order in which they came. Those that were not committed have their tails published
    /// as folded, but their memory stays until they are pushed again, or freed.
    pub fn drain(&mut self) -> impl Iterator<Item = Frozen<'e, P>> {
        self.pending.ranges.clear();
        self.folios.drain(..)
    }
}

impl<P: Platform> fmt::Debug for FoldBatch<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoldBatch").field("folios", &self.folios).finish_non_exhaustive()
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
    pending: Pending<'e, P::Barrier>,
    batch: usize,
}

/// Sections looked at in one search: bounds a step where there is nothing to do.
const SECTIONS_PER_STEP: u64 = 1 << 16;

impl<'e, P: Platform> Folder<'e, P> {
    pub(crate) fn new(engine: &'e Engine<P>, batch: usize) -> Result<Self, OutOfMemory> {
        let batch = batch.max(1);
        let ranges = batch.saturating_mul(Order::AREA.map_pages() as usize);
        Ok(Self { engine, cursor: 0, claims: try_vec(batch)?, pending: Pending::new(ranges)?, batch })
    }

    /// Collects a batch of free map pages (up to as many areas or map pages as the folder was made for), publishes them
    /// as free and folded, and starts their grace period. Whether there is a batch under way now.
    ///
    /// Context: may interrupt other CPUs; does not wait for readers.
    pub fn start(&mut self) -> bool {
        self.begin();
        !self.claims.is_empty()
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
            idle = if report.map_pages == 0 { idle + looked.max(1) } else { 0 };
        }
        total
    }

    /// Collects a batch, if none is under way, and starts its grace period. Returns the sections that were looked at.
    fn begin(&mut self) -> u64 {
        if !self.claims.is_empty() {
            return 0;
        }
        let looked = self.collect();
        self.pending.start(self.engine);
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
                self.engine.map.classes.hint_foldable(MapPage(self.cursor * MAP_PAGES_PER_SECTION));
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
        let end = ((section + 1) * MAP_PAGES_PER_SECTION).min(map.classes.len());
        let mut next = section * MAP_PAGES_PER_SECTION;
        let is_mapped = |map_page| map.classes.is_mapped(MapPage(map_page));
        // Without a map page to fold nothing has to be taken from the allocator.
        if !(next..end).any(is_mapped) || self.collect_whole(section) {
            return true;
        }
        while next < end {
            let map_page = MapPage(next);
            next += 1;
            if !map.classes.is_mapped(map_page) {
                continue;
            }
            if self.claims.len() >= self.batch {
                return false;
            }
            let row = map_page.first_pfn().row();
            let except = self.engine.never_free(row);
            let frames = self.engine.frames(map_page.first_pfn());
            let Some(claim) = frames.take_row(row, except) else {
                if frames.taken_mask(row) & !except == 0 {
                    // Free, but moving or isolated just now: look here again.
                    map.classes.hint_foldable(map_page);
                }
                continue;
            };
            if self.engine.never_free(row) & except != except {
                // Looked at before the claim, and not so any more: the memory went and came back meanwhile. From the claim
                // on that cannot happen. Look here again.
                frames.give_claim(claim);
                self.engine.withhold_poison(map_page.pages());
                map.classes.hint_foldable(map_page);
                continue;
            }
            for claimed in map_pages_of(&claim.pages()).map(MapPage) {
                if map.publish_free(claimed) {
                    self.pending.push(FoldRange { bytes: map.bytes_of(claimed.0..claimed.0 + 1), backed: 1 });
                }
                next = next.max(claimed.0 + 1);
            }
            self.claims.push(claim);
        }
        true
    }

    /// Takes a section that is free as a whole, so that its part of the map is folded as one range, and the page table
    /// above it can go too. Only where plenty of other memory is free: all of it is out of reach until it is folded.
    fn collect_whole(&mut self, section: u64) -> bool {
        const AREAS: u64 = PAGES_PER_SECTION >> AREA_ORDER;
        let map = &self.engine.map;
        let map_pages = section * MAP_PAGES_PER_SECTION..(section + 1) * MAP_PAGES_PER_SECTION;
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
                    for claim in self.claims.drain(first..) {
                        let claimed = claim.pages();
                        frames.give_claim(claim);
                        self.engine.withhold_poison(claimed);
                    }
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
        let report = self.pending.finish(self.engine);
        for claim in self.claims.drain(..) {
            if report.refused > 0 {
                for map_page in map_pages_of(&claim.pages()).map(MapPage) {
                    if self.engine.map.class(map_page).1 {
                        self.engine.map.stay_backed(map_page);
                        // The next folder tries it again.
                        self.engine.map.classes.hint_foldable(map_page);
                    }
                }
            }
            let pages = claim.pages();
            self.engine.frames(Pfn(pages.start)).give_claim(claim);
            self.engine.withhold_poison(pages);
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
