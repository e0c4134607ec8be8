//! The memory map: descriptors under classes. Who may write which class and which descriptor, and when, is said by
//! [`crate::protocol`].

mod folio;
mod offline;
pub(crate) mod walk;

use core::ops::Range;

use crate::geometry::{MapPage, PAGES_PER_MAP_PAGE, Pfn, Row};
use crate::heap::OutOfMemory;
use crate::marks::Marks;
use crate::page::{POISON, Page, State, fresh_owner};
use crate::platform::{FoldRange, Mapping, Owner};
use crate::protocol::class::ClassByte;
use crate::protocol::classes::Classes;
use crate::sync::{AtomicBool, AtomicU64, Ordering, spin_loop};
use crate::table::Table;

/// Whether large folios are born folded, or with every descriptor written as Linux does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Map pages that only describe tails are folded. The default.
    #[default]
    Folded,
    /// Every page has a written descriptor. For comparison.
    Flat,
}

pub(crate) struct MemoryMap<M, O> {
    pages: Table<Page<O>, M>,
    pub(crate) classes: Classes<M>,
    pub(crate) poison: Marks<M>,
    pub(crate) holes: Marks<M>,
    pub(crate) withheld: Marks<M>,
    /// Map pages that have memory behind them: the number of class bytes with the `BACKED` bit.
    materialised: AtomicU64,
    /// Whether large folios are written flat from now on.
    flat: AtomicBool,
}

impl<M: Mapping, O: Owner> MemoryMap<M, O> {
    pub(crate) fn new(
        pages: Table<Page<O>, M>,
        classes: Classes<M>,
        [poison, holes, withheld]: [Marks<M>; 3],
        layout: Layout,
    ) -> Self {
        #[cfg(not(loom))]
        let () = Page::<O>::SIZE_CHECK;
        debug_assert!(pages.len() <= classes.len() * PAGES_PER_MAP_PAGE, "a class for every map page");
        Self {
            pages,
            classes,
            poison,
            holes,
            withheld,
            materialised: AtomicU64::new(0),
            flat: AtomicBool::new(layout == Layout::Flat),
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.len()
    }

    pub(crate) fn mapping(&self) -> &M {
        self.pages.mapping()
    }

    pub(crate) fn materialised(&self) -> u64 {
        self.materialised.load(Ordering::Relaxed)
    }

    pub(crate) fn layout(&self) -> Layout {
        // Relaxed: both layouts are valid at any time, folio by folio.
        if self.flat.load(Ordering::Relaxed) { Layout::Flat } else { Layout::Folded }
    }

    pub(crate) fn set_layout(&self, layout: Layout) {
        self.flat.store(layout == Layout::Flat, Ordering::Relaxed);
    }

    /// Where map pages lie in the mapping of the map, in bytes.
    pub(crate) fn bytes_of(&self, map_pages: Range<u64>) -> Range<u64> {
        self.pages.bytes_of(map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE)
    }

    /// The memory of `map_pages`, as [`fold`](Self::fold) wants it, in runs of those that have memory.
    pub(crate) fn backed_runs(&self, map_pages: Range<u64>) -> impl Iterator<Item = FoldRange> {
        runs(map_pages.filter(|&map_page| self.classes.get(MapPage(map_page)).is_backed()))
            .map(|run| FoldRange { backed: run.end - run.start, bytes: self.bytes_of(run) })
    }

    /// Takes the memory behind `ranges` (from [`backed_runs`](Self::backed_runs)) away and notes it in the classes.
    /// Returns map pages folded; what the platform could not fold stays backed.
    ///
    /// # Safety
    /// All ranges were published as folded by their owner, who still owns them; and a grace period has passed since (or
    /// the protocol is one of those that are wrong on purpose).
    pub(crate) unsafe fn fold(&self, ranges: &[FoldRange]) -> u64 {
        debug_assert!(self.mapping().may_change(), "descriptors are folded where page tables may not change");
        // SAFETY: the caller's promise is what the mapping asks for; `crate::protocol` says why no walker reads or
        // writes.
        let done = unsafe { self.pages.fold(ranges) };
        let bytes_per_map_page = self.bytes_of(0..1).end;
        let mut folded = 0;
        for range in ranges.iter().take(done) {
            let Range { start, end } = range.bytes;
            for map_page in (start / bytes_per_map_page..end / bytes_per_map_page).map(MapPage) {
                let class = self.classes.get(map_page);
                if class.is_backed() {
                    self.classes.set(map_page, class.unbacked());
                    folded += 1;
                }
            }
        }
        self.materialised.fetch_sub(folded, Ordering::Relaxed);
        folded
    }

    /// Memory behind `map_pages`, all of them folded and the caller's alone. Nothing is changed on an error.
    fn materialise(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        let entries = map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE;
        debug_assert!(
            self.mapping().may_change(),
            "descriptors are unfolded where page tables may not change"
        );
        self.pages.materialise(entries)?;
        self.materialised.fetch_add(map_pages.end - map_pages.start, Ordering::Relaxed);
        for map_page in map_pages {
            self.reapply_poison(MapPage(map_page));
        }
        Ok(())
    }

    /// Memory behind those of `map_pages` that have none, run by run. On an error those that were added are folded
    /// again: nothing is changed. The caller owns them all, and their classes stay as they are.
    fn materialise_missing(&self, map_pages: impl Iterator<Item = u64> + Clone) -> Result<(), OutOfMemory> {
        let missing =
            || map_pages.clone().filter(|&map_page| !self.classes.get(MapPage(map_page)).is_backed());
        for run in runs(missing()) {
            if let Err(out_of_memory) = self.materialise(run.clone()) {
                for done in self::runs(missing()).take_while(|done| done.start < run.start) {
                    self.fold_unpublished(done);
                }
                return Err(out_of_memory);
            }
        }
        Ok(())
    }

    /// Takes back memory that was materialised but never published.
    fn fold_unpublished(&self, map_pages: Range<u64>) {
        let entries = map_pages.start * PAGES_PER_MAP_PAGE..map_pages.end * PAGES_PER_MAP_PAGE;
        let range =
            FoldRange { bytes: self.pages.bytes_of(entries), backed: map_pages.end - map_pages.start };
        // SAFETY: the class has said folded since before the grace period of the last fold, so no walker is led here,
        // and the caller owns the range.
        let folded = unsafe { self.pages.fold(&[range]) };
        if folded == 1 {
            self.materialised.fetch_sub(map_pages.end - map_pages.start, Ordering::Relaxed);
        } else {
            map_pages.for_each(|map_page| self.stay_backed(MapPage(map_page)));
        }
    }

    /// The platform did not take the memory behind a folded map page: the class says so, and a free map page is simply
    /// `Mapped` again. The caller owns it.
    pub(crate) fn stay_backed(&self, map_page: MapPage) {
        let class = match self.classes.get(map_page) {
            class if class.unbacked() == ClassByte::FREE => ClassByte::MAPPED,
            class => class.backed(),
        };
        self.classes.set(map_page, class);
    }

    /// Unfolds one map page of which the caller owns at least one page. Owners of other pages of it may do the same at
    /// the same time. Nothing is changed on an error.
    pub(crate) fn ensure_mapped(&self, map_page: MapPage) -> Result<(), OutOfMemory> {
        loop {
            match self.classes.get(map_page) {
                ClassByte::MAPPED => return Ok(()),
                // Another owner of a page here is at it, and will end it either way.
                ClassByte::UNFOLDING => spin_loop(),
                ClassByte::FREE => {
                    self.classes.ensure(map_page.0..map_page.0 + 1)?;
                    if self.classes.begin_unfold(map_page) {
                        let done = self.materialise(map_page.0..map_page.0 + 1);
                        let class = if done.is_ok() { ClassByte::MAPPED } else { ClassByte::FREE };
                        self.classes.set(map_page, class);
                        return done;
                    }
                }
                // No page can be owned here: the allocator has none to give. Should it happen all the same, waiting
                // would not end, and refusing changes nothing.
                _ => return Err(OutOfMemory),
            }
        }
    }

    /// Whether `pfn` has been recorded as poisoned.
    pub(crate) fn is_poisoned(&self, pfn: Pfn) -> bool {
        self.poison.contains(pfn)
    }

    /// `state` with the poison mark of `pfn`.
    fn marked(&self, pfn: Pfn, state: State) -> State {
        if self.is_poisoned(pfn) { State(state.0 | POISON) } else { state }
    }

    /// Puts the poison marks back into a map page that was just materialised.
    fn reapply_poison(&self, map_page: MapPage) {
        for row in Row::covering(&map_page.pages()) {
            let mut mask = self.poison.mask(row);
            while mask != 0 {
                let pfn = row.first_pfn().plus(u64::from(mask.trailing_zeros()));
                self.store(pfn, State(POISON), Ordering::Relaxed);
                mask &= mask - 1;
            }
        }
    }

    fn store(&self, pfn: Pfn, state: State, order: Ordering) {
        if let Some(page) = self.pages.get(pfn.0) {
            page.state.store(state.0, order);
        }
    }

    /// Ends the life of the descriptor at `pfn`: zero again, owner's data included. The caller owns the page.
    fn clear(&self, pfn: Pfn) {
        if let Some(page) = self.pages.get(pfn.0) {
            // SAFETY: the caller owns the page, and no folio is alive there, so nobody else reaches its owner's data.
            unsafe {
                page.owner.get_mut().write(fresh_owner());
            }
            let mark = if self.is_poisoned(pfn) { POISON } else { 0 };
            // Release: a CPU that sees the zero also sees that the folio is over.
            page.state.store(mark, Ordering::Release);
        }
    }

    fn clear_map_page(&self, map_page: MapPage) {
        let first = map_page.first_pfn().0;
        (first..first + PAGES_PER_MAP_PAGE).for_each(|pfn| self.clear(Pfn(pfn)));
    }
}

/// Adjacent numbers of an ascending sequence, joined.
fn runs(numbers: impl Iterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    let mut numbers = numbers.peekable();
    core::iter::from_fn(move || {
        let start = numbers.next()?;
        let mut end = start + 1;
        while numbers.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}
