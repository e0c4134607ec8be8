//! The memory map: what stands for pages by themselves, under classes, whatever it is. Who may write which class and which
//! descriptor, and when, is said by [`crate::protocol`].

mod memory;

use core::marker::PhantomData;
use core::ops::Range;

use crate::geometry::{MapPage, Order, Pfn, Row};
use crate::heap::OutOfMemory;
use crate::mapping::{FoldRange, Mapping};
use crate::marks::Marks;
use crate::protocol::class::{Class, ClassEntry};
use crate::protocol::classes::{Classed, Classes};
use crate::stock::Source;
use crate::sync::{AtomicBool, AtomicU64, Ordering, spin_loop};
use crate::table::{Table, TableEntry};

/// Whether large folios are born folded, or with every descriptor written as Linux does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Map pages that only describe tails are folded. The default.
    #[default]
    Folded,
    /// Every page has a written descriptor. For comparison.
    Flat,
}

/// What stands for a page by itself, in a map page that has memory.
pub trait MapEntry: TableEntry {
    /// As it is for a free page. The caller owns the page.
    fn clear(&self, is_poisoned: bool);
    /// Notes, for dumps, that the page is broken.
    fn mark_poisoned(&self);
}

/// Entries under classes: what every kind of descriptors has.
pub struct MemoryMap<D: Classed, E, M> {
    pub(crate) pages: Table<E, M>,
    pub(crate) classes: Classes<D, M>,
    pub(crate) poison: Marks<M>,
    pub(crate) holes: Marks<M>,
    pub(crate) withheld: Marks<M>,
    /// Map pages that have memory behind them: the number of class entries with the `BACKED` bit.
    materialised: AtomicU64,
    /// Whether large folios are written flat from now on.
    flat: AtomicBool,
    _geometry: PhantomData<D>,
}

impl<D: Classed, E: MapEntry, M: Mapping> MemoryMap<D, E, M> {
    pub(crate) fn new(
        pages: Table<E, M>,
        classes: Classes<D, M>,
        [poison, holes, withheld]: [Marks<M>; 3],
        layout: Layout,
    ) -> Self {
        debug_assert!(pages.len() <= classes.len() * D::PAGES_PER_MAP_PAGE, "a class for every map page");
        Self {
            pages,
            classes,
            poison,
            holes,
            withheld,
            materialised: AtomicU64::new(0),
            flat: AtomicBool::new(layout == Layout::Flat),
            _geometry: PhantomData,
        }
    }

    /// The map page that describes `pfn`.
    #[inline]
    pub(crate) fn map_page(&self, pfn: Pfn) -> MapPage {
        D::map_page(pfn)
    }

    /// The first page that `map_page` describes.
    #[inline]
    pub(crate) fn first_pfn(&self, map_page: MapPage) -> Pfn {
        D::first_pfn(map_page)
    }

    /// The pages that `map_page` describes.
    pub(crate) fn pages_of(&self, map_page: MapPage) -> Range<u64> {
        D::pages_of(map_page)
    }

    /// The map pages that `pages` lie in.
    pub(crate) fn map_pages_of(&self, pages: &Range<u64>) -> Range<u64> {
        D::map_pages_of(pages)
    }

    /// The map pages that the block of `order` at `pfn` spans.
    #[inline]
    pub(crate) fn map_pages(&self, pfn: Pfn, order: Order) -> Range<u64> {
        D::map_pages(pfn, order)
    }

    /// The class, and whether memory is behind it.
    pub(crate) fn class(&self, map_page: MapPage) -> (Class, bool) {
        let entry = self.classes.get(map_page);
        (entry.class(), entry.is_backed())
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

    fn entries(map_pages: &Range<u64>) -> Range<u64> {
        map_pages.start * D::PAGES_PER_MAP_PAGE..map_pages.end * D::PAGES_PER_MAP_PAGE
    }

    /// Where map pages lie in the mapping of the map, in bytes.
    pub(crate) fn bytes_of(&self, map_pages: Range<u64>) -> Range<u64> {
        self.pages.bytes_of(Self::entries(&map_pages))
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
    fn materialise(&self, map_pages: Range<u64>, source: &mut Source<'_>) -> Result<(), OutOfMemory> {
        debug_assert!(
            self.mapping().may_change(),
            "descriptors are unfolded where page tables may not change"
        );
        self.pages.materialise_from(Self::entries(&map_pages), source)?;
        self.materialised.fetch_add(map_pages.end - map_pages.start, Ordering::Relaxed);
        for map_page in map_pages {
            self.reapply_poison(MapPage(map_page));
        }
        Ok(())
    }

    /// Memory behind those of `map_pages` that have none, run by run. On an error those that were added are folded
    /// again: nothing is changed. The caller owns them all, and their classes stay as they are.
    pub(crate) fn materialise_missing(
        &self,
        map_pages: impl Iterator<Item = u64> + Clone,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        let missing =
            || map_pages.clone().filter(|&map_page| !self.classes.get(MapPage(map_page)).is_backed());
        for run in runs(missing()) {
            if let Err(out_of_memory) = self.materialise(run.clone(), source) {
                for done in self::runs(missing()).take_while(|done| done.start < run.start) {
                    self.fold_unpublished(done);
                }
                return Err(out_of_memory);
            }
        }
        Ok(())
    }

    /// Takes back what [`materialise_missing`](Self::materialise_missing) of `map_pages` has added, before any of it was
    /// published.
    pub(crate) fn fold_missing(&self, map_pages: Range<u64>) {
        for run in runs(map_pages.filter(|&map_page| !self.classes.get(MapPage(map_page)).is_backed())) {
            self.fold_unpublished(run);
        }
    }

    /// Takes back memory that was materialised but never published.
    fn fold_unpublished(&self, map_pages: Range<u64>) {
        let range =
            FoldRange { bytes: self.bytes_of(map_pages.clone()), backed: map_pages.end - map_pages.start };
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
            class if class.unbacked() == ClassEntry::FREE => return self.classes.set_mapped(map_page),
            class => class.backed(),
        };
        self.classes.set(map_page, class);
    }

    /// Unfolds one map page of which the caller owns at least one page. Owners of other pages of it may do the same at
    /// the same time. Nothing is changed on an error.
    pub(crate) fn ensure_mapped(&self, map_page: MapPage) -> Result<(), OutOfMemory> {
        loop {
            match self.classes.get(map_page) {
                ClassEntry::MAPPED => return Ok(()),
                // Another owner of a page here is at it, and will end it either way.
                ClassEntry::UNFOLDING => spin_loop(),
                ClassEntry::FREE => {
                    self.classes.ensure(map_page.0..map_page.0 + 1)?;
                    if self.classes.begin_unfold(map_page) {
                        let done = self.materialise(map_page.0..map_page.0 + 1, &mut Source::Machine);
                        match done {
                            Ok(()) => self.classes.set_mapped(map_page),
                            Err(OutOfMemory) => self.classes.set(map_page, ClassEntry::FREE),
                        }
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

    /// Puts the poison marks back into a map page that was just materialised.
    fn reapply_poison(&self, map_page: MapPage) {
        for row in Row::covering(&D::pages_of(map_page)) {
            let mut mask = self.poison.mask(row);
            while mask != 0 {
                let pfn = row.first_pfn().plus(u64::from(mask.trailing_zeros()));
                if let Some(entry) = self.pages.get(pfn.0) {
                    entry.mark_poisoned();
                }
                mask &= mask - 1;
            }
        }
    }

    /// Ends the life of what stands for `pfn`: as for a free page again. The caller owns the page.
    pub(crate) fn clear(&self, pfn: Pfn) {
        if let Some(entry) = self.pages.get(pfn.0) {
            entry.clear(self.is_poisoned(pfn));
        }
    }

    pub(crate) fn clear_map_page(&self, map_page: MapPage) {
        D::pages_of(map_page).for_each(|pfn| self.clear(Pfn(pfn)));
    }

    /// Publishes a free map page as folded, ahead of taking its memory away; whether there is memory to take. The
    /// caller owns all its pages, but for those without an owner (withheld ones and holes).
    pub(crate) fn publish_free(&self, map_page: MapPage) -> bool {
        if self.classes.get(map_page) != ClassEntry::MAPPED {
            return false;
        }
        self.classes.set(map_page, ClassEntry::FREE.backed());
        true
    }

    /// Materialises what describes free memory, as a flat memory map has it. The caller owns every page, so nobody else is
    /// unfolding any of it. Nothing is changed on an error.
    pub(crate) fn unfold_free(&self, map_pages: Range<u64>) -> Result<(), OutOfMemory> {
        self.classes.ensure(map_pages.clone())?;
        self.materialise_missing(map_pages.clone(), &mut Source::Machine)?;
        map_pages.for_each(|map_page| self.classes.set_mapped(MapPage(map_page)));
        Ok(())
    }

    /// Sets the poison mark of `pfn` if what stands for it is materialised. The caller is inside a section.
    pub(crate) fn mark_poisoned(&self, pfn: Pfn) {
        if self.classes.get(D::map_page(pfn)) == ClassEntry::MAPPED
            && let Some(entry) = self.pages.get(pfn.0)
        {
            // A write without ownership: it is safe for the same reason as a walker's compare-and-swap (class `Mapped`
            // seen inside a section), and it changes a bit that nothing else depends on.
            entry.mark_poisoned();
        }
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
