//! The engine: one machine's memory map, its allocator and its RCU domain, put together.
//!
//! The order of things is the same everywhere. Allocating: take the pages from the allocator, make their descriptors,
//! hand out the handle. Freeing: end the descriptors, give the pages to the allocator. So whoever touches descriptors or
//! classes owns the pages, and the allocator alone decides who that is.

use core::fmt;
use core::ops::Range;

use crate::class::{Class, ClassByte, Classes};
use crate::fold::{FoldBatch, Folder};
use crate::folio::{Folio, Frozen, RawFolio};
use crate::frames::{AllocError, Claim, Frames};
use crate::geometry::{
    ALL_PAGES, AREA_ORDER, MAP_PAGES_PER_SECTION, MAX_PAGES, MapPage, Order, PAGES_PER_MAP_PAGE,
    PAGES_PER_SECTION, Pfn, SECTION_ORDER, SECTIONS_PER_REGION,
};
use crate::heap::OutOfMemory;
use crate::map::{Layout, MemoryMap};
use crate::marks::Marks;
use crate::page::{Kind, Page};
use crate::platform::{FoldRange, Mapping, Platform, TableKind};
use crate::protocol::{Fold, Protocol, reads_folded};
use crate::rcu::Rcu;
use crate::sync::AtomicBool;
use crate::table::{Entry, Table};
use crate::walk::{Peek, PoisonError, Poisoned, Walker};
use crate::zone::{Records, Zone};

/// How large a machine, and how its large folios are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Page numbers from 0 up to here may have memory; rounded up to whole sections.
    pub pages: u64,
    /// Folded (the default) or flat.
    pub layout: Layout,
}

impl Config {
    /// A machine whose page numbers end at `pages`, in the folded layout.
    pub const fn new(pages: u64) -> Self {
        Self { pages, layout: Layout::Folded }
    }
}

/// Why an engine could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewError<E> {
    /// More pages than page numbers have bits for; at most [`MAX_PAGES`].
    TooLarge,
    /// The platform could not reserve address space for a table.
    Reserve {
        /// Which one.
        kind: TableKind,
        /// How many bytes it needs.
        bytes: u64,
        /// What the platform said.
        error: E,
    },
    /// The platform reserved less than was asked for.
    Short(TableKind),
    /// The platform gave a range for this table that was made for another one: [`Platform::reserve`] is to pass the kind on.
    OtherTable(TableKind),
}

impl<E: fmt::Display> fmt::Display for NewError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewError::TooLarge => write!(f, "more than {MAX_PAGES} pages: no page number has that many bits"),
            NewError::Reserve { kind, error, .. } => write!(f, "the {kind:?} table: {error}"),
            NewError::Short(kind) => write!(f, "the platform reserved too little for the {kind:?} table"),
            NewError::OtherTable(kind) => {
                write!(f, "the platform's range for the {kind:?} table was made for another table")
            }
        }
    }
}
impl<E: fmt::Debug + fmt::Display> core::error::Error for NewError<E> {}

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

impl From<OutOfMemory> for AddError {
    fn from(_: OutOfMemory) -> Self {
        AddError::OutOfMemory
    }
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddError::Misaligned => "the range is not a multiple of the memory block size",
            AddError::OutOfRange => "the range ends beyond the machine",
            AddError::Overlap => "memory was added there before",
            AddError::OutOfMemory => "no memory to note the new memory: free some and retry",
        })
    }
}
impl core::error::Error for AddError {}

/// The engine. See the [crate](crate) for what it does, and [`crate::map`] for what it promises.
pub struct Engine<P: Platform> {
    pub(crate) map: MemoryMap<P::Mapping, P::Owner>,
    zones: [Frames<P::Mapping>; 2],
    pub(crate) records: Records<P::Mapping>,
    pub(crate) hotplug_taken: AtomicBool,
    pub(crate) rcu: Rcu<P::Barrier>,
    platform: P,
}

impl<P: Platform<Rules = Fold>> Engine<P> {
    /// An engine without memory: everything is `Absent`, nothing is materialised.
    ///
    /// # Errors
    /// [`NewError`].
    pub fn new(platform: P, config: Config) -> Result<Self, NewError<P::Error>> {
        // SAFETY: the rules of `Fold` keep every promise.
        unsafe { Self::with_rules(platform, config) }
    }
}

impl<P: Platform> Engine<P> {
    /// As [`new`](Engine::new), by whatever rules the platform names, for comparison and for tests. No other call makes an
    /// engine whose rules are not [`Fold`]'s, so whatever else is called of such an engine, this call answers for it.
    ///
    /// ```
    /// # use pagefold_engine::{Config, Engine, NewError, Platform, protocol::NoGracePeriod};
    /// # fn kernel<P: Platform<Rules = NoGracePeriod>>(platform: P, config: Config) -> Result<(), NewError<P::Error>> {
    /// // SAFETY: folded pages that are written to come back as zeros here, and somebody looks for them.
    /// let engine = unsafe { Engine::with_rules(platform, config) }?;
    /// # Ok(()) }
    /// ```
    /// ```compile_fail,E0271
    /// # use pagefold_engine::{Config, Engine, NewError, Platform, protocol::NoGracePeriod};
    /// # fn kernel<P: Platform<Rules = NoGracePeriod>>(platform: P, config: Config) -> Result<(), NewError<P::Error>> {
    /// let engine = Engine::new(platform, config)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Safety
    /// Either the rules keep the promises of [`crate::map`]: those of [`Fold`] do, whatever
    /// [`between_look_and_swap`](Protocol::between_look_and_swap) does, and those of
    /// [`RefcountFirst`](crate::protocol::RefcountFirst). Or the machine survives what happens instead: with
    /// [`NoGracePeriod`](crate::protocol::NoGracePeriod) and [`WritableTails`](crate::protocol::WritableTails) walkers read
    /// descriptors that are folded, and their failing compare-and-swap reaches them. The machine must bring the page back,
    /// zeroed, or stop in order; and the caller must not count on what is folded costing nothing.
    ///
    /// # Errors
    /// [`NewError`].
    pub unsafe fn with_rules(platform: P, config: Config) -> Result<Self, NewError<P::Error>> {
        const {
            assert!(
                !P::Mapping::HAS_GAP || !reads_folded::<P::Rules>(),
                "this protocol reads folded descriptors: it needs a mapping without a gap"
            );
        }
        let pages = config.pages.checked_next_multiple_of(PAGES_PER_SECTION);
        let pages = pages.filter(|&pages| pages <= MAX_PAGES).ok_or(NewError::TooLarge)?;
        let map_pages = pages / PAGES_PER_MAP_PAGE;
        let (rows, lane_words, trees) = Frames::<P::Mapping>::table_lengths(pages);
        let descriptors = table::<Page<P::Owner>, P>(&platform, TableKind::Map, pages)?;
        let classes = table(&platform, TableKind::Classes, map_pages)?;
        let sections = pages / PAGES_PER_SECTION;
        let regions = sections.div_ceil(SECTIONS_PER_REGION);
        let sections = table(&platform, TableKind::Sections, sections)?;
        let regions = table(&platform, TableKind::Regions, regions)?;
        let marks = [
            Marks::new(table(&platform, TableKind::Poison, map_pages)?),
            Marks::new(table(&platform, TableKind::Holes, map_pages)?),
            Marks::new(table(&platform, TableKind::Withheld, map_pages)?),
        ];
        let map = MemoryMap::new(descriptors, Classes::new(classes, sections, regions), marks, config.layout);
        let records = Records::new(table(&platform, TableKind::Blocks, pages / PAGES_PER_SECTION)?);
        let frames = |kinds: [TableKind; 3]| {
            let [rows_kind, lanes_kind, trees_kind] = kinds;
            Ok(Frames::tables(
                table(&platform, rows_kind, rows)?,
                table(&platform, lanes_kind, lane_words)?,
                table(&platform, trees_kind, trees)?,
            ))
        };
        let zones = [
            frames([TableKind::Rows, TableKind::Lanes, TableKind::Trees])?,
            frames([TableKind::MovableRows, TableKind::MovableLanes, TableKind::MovableTrees])?,
        ];
        let rcu = Rcu::new(platform.barrier());
        Ok(Self { map, zones, records, hotplug_taken: AtomicBool::new(false), rcu, platform })
    }

    /// Page numbers end here.
    pub fn pages(&self) -> u64 {
        self.map.pages()
    }
    /// How large folios are laid out when they are allocated.
    pub fn layout(&self) -> Layout {
        self.map.layout()
    }
    /// Lays out large folios differently from now on. Those that exist stay as they are; both kinds work side by side.
    pub fn set_layout(&self, layout: Layout) {
        self.map.set_layout(layout);
    }
    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }
    /// The allocator of a zone.
    #[inline]
    pub(crate) fn zone(&self, zone: Zone) -> &Frames<P::Mapping> {
        let [normal, movable] = &self.zones;
        match zone {
            Zone::Normal => normal,
            Zone::Movable => movable,
        }
    }
    /// The allocator that has `map_page`, or would have it: its section's zone's. Sections lie in one zone as a whole.
    #[inline]
    pub(crate) fn frames(&self, map_page: MapPage) -> &Frames<P::Mapping> {
        self.zone(self.records.zone(map_page.section()))
    }
    /// The zone that `pfn` lies in, or would lie in: the normal one where there is no memory block.
    pub fn zone_of(&self, pfn: Pfn) -> Zone {
        self.records.zone(pfn.map_page().section())
    }
    /// Its RCU domain, for the owner's own structures and grace periods.
    pub fn rcu(&self) -> &Rcu<P::Barrier> {
        &self.rcu
    }

    /// Registers a walker.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn walker(&self) -> Result<Walker<'_, P>, OutOfMemory> {
        Ok(Walker::new(self, self.rcu.reader()?))
    }

    /// An empty batch with room for `capacity` folios.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn fold_batch(&self, capacity: usize) -> Result<FoldBatch<'_, P>, OutOfMemory> {
        FoldBatch::new(self, capacity)
    }

    /// A folder of free memory that takes up to `batch` areas or map pages at a time.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn folder(&self, batch: usize) -> Result<Folder<'_, P>, OutOfMemory> {
        Folder::new(self, batch)
    }

    // ---- memory ------------------------------------------------------------------------------------------------

    /// Adds `pages` as free memory. Nothing is materialised for it but a few bytes a GiB.
    ///
    /// Whoever adds memory has the engine alone: boot code, before it hands the engine out. From then on
    /// [`Hotplug`](crate::hotplug::Hotplug) adds memory, under its own lock, also memory that will stay
    /// ([`boot`](crate::hotplug::Hotplug::boot)).
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
        self.add_boot(pages)
    }

    /// As [`online`](Self::online). The caller is the only one who adds or removes memory: it has the engine alone, or it
    /// has its one [`Hotplug`](crate::hotplug::Hotplug) alone, beside which nobody has the engine alone.
    pub(crate) fn add_boot(&self, pages: Range<u64>) -> Result<(), AddError> {
        let map_pages = self.absent_map_pages(&pages)?;
        // The pages of the first and the last map page that lie outside.
        let before = (1u64 << (pages.start % PAGES_PER_MAP_PAGE)) - 1;
        let after = match pages.end % PAGES_PER_MAP_PAGE {
            0 => 0,
            inside => ALL_PAGES & !((1 << inside) - 1),
        };
        let edges = [(MapPage(map_pages.start), before), (MapPage(map_pages.end - 1), after)];
        for (edge, mask) in edges {
            if mask != 0 {
                self.map.holes.ensure(edge)?;
            }
        }
        self.zone(Zone::Normal).prepare_online(&pages)?;
        self.map.classes.prepare_uniform(map_pages.clone())?;
        // Holes before classes: a page without memory must not be taken for one that could break. Classes before frames: as
        // soon as the allocator has the memory, it may be used.
        for (edge, mask) in edges {
            self.map.holes.mark(edge, mask);
        }
        self.map.offer(map_pages.clone());
        self.zone(Zone::Normal).online(pages);
        // A memory block may have been here before, and some of its pages broken.
        self.withhold_poison(map_pages);
        Ok(())
    }

    /// Notes that memory exists at `pages` but is not ours. Map pages that lie only partly in the range stay `Absent`. As
    /// [`online`](Self::online), this needs the engine alone.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_offline(&mut self, pages: Range<u64>) -> Result<(), AddError> {
        self.absent_map_pages(&pages)?;
        let whole = pages.start.div_ceil(PAGES_PER_MAP_PAGE)..pages.end / PAGES_PER_MAP_PAGE;
        if whole.start < whole.end {
            self.map.classes.prepare_uniform(whole.clone())?;
            self.map.publish_offline(whole, ClassByte::OFFLINE);
        }
        Ok(())
    }

    pub(crate) fn absent_map_pages(&self, pages: &Range<u64>) -> Result<Range<u64>, AddError> {
        if pages.start >= pages.end || pages.end > self.pages() {
            return Err(AddError::OutOfRange);
        }
        let map_pages = pages.start / PAGES_PER_MAP_PAGE..pages.end.div_ceil(PAGES_PER_MAP_PAGE);
        let mut next = map_pages.start;
        while next < map_pages.end {
            // Uniform stretches first: their class bytes are not even read, so that nothing is behind them.
            let (class, after) = match self.map.classes.uniform(MapPage(next).section()) {
                Some((class, section)) => (class, section * MAP_PAGES_PER_SECTION),
                None => (self.map.classes.get(MapPage(next)), next + 1),
            };
            if class.unbacked() != ClassByte::ABSENT {
                return Err(AddError::Overlap);
            }
            next = after;
        }
        Ok(map_pages)
    }

    /// Materialises the descriptors of all free memory in `pages`, as a flat memory map has them. Memory in use is left
    /// alone, and so is what is being allocated, freed, folded or isolated meanwhile.
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
            let frames = self.frames(map_page);
            let Some(claim) = frames.take_any(map_page)? else { continue };
            let claimed = claim.map_pages();
            let done = match claim {
                // As an owner of one page: others may take, use and free the others meanwhile.
                Claim::Row(map_page, _) => self.map.ensure_mapped(map_page),
                Claim::Area(_) => self.map.unfold_free(claimed.clone()),
            };
            next = next.max(claimed.end);
            frames.give_claim(claim);
            self.withhold_poison(claimed.clone());
            self.map.classes.hint_foldable_range(&claimed);
            done?;
        }
        Ok(())
    }

    /// Free pages, counted. Exact while nothing moves.
    pub fn free_pages(&self) -> u64 {
        self.zones.iter().map(Frames::free_pages).sum()
    }

    /// Map pages that have memory behind them now.
    pub fn materialised_map_pages(&self) -> u64 {
        self.map.materialised()
    }

    /// All tables, for measuring.
    pub fn tables(&self) -> [(TableKind, &P::Mapping); 14] {
        let [classes, sections, regions] = self.map.classes.mappings();
        let [normal, movable] = &self.zones;
        let [rows, lanes, trees] = normal.mappings();
        let [movable_rows, movable_lanes, movable_trees] = movable.mappings();
        [
            (TableKind::Map, self.map.mapping()),
            (TableKind::Classes, classes),
            (TableKind::Sections, sections),
            (TableKind::Regions, regions),
            (TableKind::Rows, rows),
            (TableKind::Lanes, lanes),
            (TableKind::Trees, trees),
            (TableKind::Poison, self.map.poison.mapping()),
            (TableKind::Holes, self.map.holes.mapping()),
            (TableKind::Withheld, self.map.withheld.mapping()),
            (TableKind::Blocks, self.records.mapping()),
            (TableKind::MovableRows, movable_rows),
            (TableKind::MovableLanes, movable_lanes),
            (TableKind::MovableTrees, movable_trees),
        ]
    }

    /// The class of the map page of `pfn`, and whether memory is behind it.
    pub fn class(&self, pfn: Pfn) -> (Class, bool) {
        self.map.class(pfn.map_page())
    }

    // ---- allocating and freeing --------------------------------------------------------------------------------

    /// Allocates a frozen folio that will stay where it is, out of the normal zone. Its owner's data is zeros.
    ///
    /// Out of folded free memory this materialises one map page, whatever the order; often none.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc(&self, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        self.alloc_in(Zone::Normal, order, kind)
    }

    /// As [`alloc`](Self::alloc), for a folio whose owner will move it when asked to (see
    /// [`Migrate`](crate::hotplug::Migrate)): out of the movable zone, or the normal one where that has none.
    ///
    /// # Errors
    /// [`AllocError`], of the normal zone.
    pub fn alloc_movable(&self, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        match self.alloc_in(Zone::Movable, order, kind) {
            Err(AllocError::NoBlock | AllocError::OutOfMemory) => self.alloc_in(Zone::Normal, order, kind),
            done => done,
        }
    }

    fn alloc_in(&self, zone: Zone, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        loop {
            let pfn = self.zone(zone).alloc(order, self.platform.cpu())?;
            if self.has_poison(pfn, order) {
                // Not for ever: nobody meets these poisoned pages again.
                self.give_back_but_poison(pfn, order);
                continue;
            }
            return self.make_folio(pfn, order, kind);
        }
    }

    /// Allocates the block at `pfn`.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_at(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        if pfn.0.checked_add(order.pages()).is_none_or(|end| end > self.pages()) {
            return Err(AllocError::Absent);
        }
        self.frames(pfn.map_page()).alloc_at(pfn, order)?;
        if self.has_poison(pfn, order) {
            self.give_back_but_poison(pfn, order);
            return Err(AllocError::Busy);
        }
        self.make_folio(pfn, order, kind)
    }

    fn make_folio(&self, pfn: Pfn, order: Order, kind: Kind) -> Result<Frozen<'_, P>, AllocError> {
        if let Err(out_of_memory) = self.map.claim(pfn, order, kind) {
            self.give_back(pfn, order);
            return Err(out_of_memory.into());
        }
        // The claim has just written it.
        self.map.page(pfn).map(|page| Frozen::adopt(self, page, order)).ok_or(AllocError::Absent)
    }

    /// A reference that was taken out of its handle by [`Folio::into_raw`].
    ///
    /// # Safety
    /// `raw` came from a folio of this engine and was not given back before.
    pub unsafe fn from_raw(&self, raw: RawFolio) -> Folio<'_, P> {
        // SAFETY: the number of a folio of this engine lies in its map.
        Folio::adopt(self, unsafe { self.map.page(raw.0).unwrap_unchecked() })
    }

    /// Frees a frozen folio that the caller owns. Allocates nothing and cannot fail.
    pub(crate) fn free_block(&self, pfn: Pfn, order: Order) {
        self.map.release(pfn, order);
        self.give_back(pfn, order);
    }

    /// Gives pages without descriptors back to the allocator.
    fn give_back(&self, pfn: Pfn, order: Order) {
        let first = pfn.map_page();
        let given = self.frames(first).free(pfn, order);
        // Every caller owns the block. (Should one not, its pages stay taken, and the audit finds them leaked.)
        debug_assert!(given.is_ok(), "{pfn} {order} was not owned");
        self.after_giving_back(first, order);
    }

    #[inline]
    fn after_giving_back(&self, first: MapPage, order: Order) {
        if order.get() <= SECTION_ORDER {
            self.map.classes.hint_foldable(first);
        } else {
            self.map.classes.hint_foldable_range(&(first.0..first.0 + order.map_pages()));
        }
        self.withhold_poison(first.0..first.0 + order.map_pages());
    }

    /// As [`give_back`](Self::give_back), for a block that was just taken and turned out to have poisoned pages: those are
    /// withheld at once, so that the allocator never has them again.
    #[cold]
    fn give_back_but_poison(&self, pfn: Pfn, order: Order) {
        let first = pfn.map_page();
        let in_block = match order.pages() {
            pages if pages < PAGES_PER_MAP_PAGE => ((1 << pages) - 1) << (pfn.0 % PAGES_PER_MAP_PAGE),
            _ => ALL_PAGES,
        };
        self.frames(first).free_but(pfn, order, |map_page| {
            let poisoned = self.map.poison.mask(map_page) & in_block;
            self.withhold(map_page, poisoned);
            poisoned
        });
        self.after_giving_back(first, order);
    }

    /// Marks pages that the caller owns in the allocator, and that are poisoned, as withheld. Nobody owns them any more.
    fn withhold(&self, map_page: MapPage, mask: u64) {
        if self.map.withheld.mark(map_page, mask) != 0 {
            // What stands in the way of folding this map page is out of the way now.
            self.map.classes.hint_foldable(map_page);
        }
    }

    /// Withholds the poisoned pages among those that were just given back. Should an allocation be faster, it finds the
    /// poison itself.
    #[inline]
    pub(crate) fn withhold_poison(&self, map_pages: Range<u64>) {
        if self.map.poison.pages() != 0 {
            self.withhold_free(map_pages);
        }
    }

    #[cold]
    fn withhold_free(&self, map_pages: Range<u64>) {
        for map_page in map_pages.map(MapPage) {
            let poisoned = self.map.poison.mask(map_page) & !self.map.withheld.mask(map_page);
            if poisoned != 0 {
                let taken = self.frames(map_page).take_free_of(map_page, poisoned);
                self.withhold(map_page, taken);
            }
        }
    }

    #[inline]
    fn has_poison(&self, pfn: Pfn, order: Order) -> bool {
        self.map.poison.pages() != 0 && self.poison_in(pfn, order)
    }

    #[cold]
    fn poison_in(&self, pfn: Pfn, order: Order) -> bool {
        let first = pfn.map_page().0;
        if order.pages() < PAGES_PER_MAP_PAGE {
            return (pfn.0..pfn.0 + order.pages()).any(|page| self.map.is_poisoned(Pfn(page)));
        }
        (first..first + order.map_pages()).any(|map_page| self.map.poison.mask(MapPage(map_page)) != 0)
    }

    // ---- for the handles ---------------------------------------------------------------------------------------

    pub(crate) fn split_block(&self, pfn: Pfn, order: Order, to: Order) -> Result<(), OutOfMemory> {
        let breaks_areas = order.get() >= AREA_ORDER && to.get() < AREA_ORDER;
        if breaks_areas {
            self.frames(pfn.map_page()).prepare_split(pfn, order)?;
        }
        self.map.split(pfn, order, to)?;
        if breaks_areas {
            self.frames(pfn.map_page()).split_whole(pfn, order);
        }
        Ok(())
    }

    pub(crate) fn collapse_block(&self, pfn: Pfn, order: Order, kind: Kind) {
        self.map.collapse(pfn, order, kind);
        self.frames(pfn.map_page()).join_whole(pfn, order);
    }

    /// The parts of a frozen folio's map that describe only tails and have memory.
    pub(crate) fn backed_tails(&self, pfn: Pfn, order: Order) -> impl Iterator<Item = FoldRange> {
        let first = pfn.map_page().0;
        self.map.backed_runs(first + 1..first + order.map_pages())
    }

    /// Pages of a map page that are taken although they are nobody's: withheld ones, and those without memory.
    pub(crate) fn never_free(&self, map_page: MapPage) -> u64 {
        self.map.withheld.mask(map_page) | self.map.holes.mask(map_page)
    }

    // ---- looking -----------------------------------------------------------------------------------------------

    /// See [`Walker::peek`]; the caller is inside a section or nothing moves.
    pub(crate) fn peek(&self, pfn: Pfn) -> Option<Peek> {
        if pfn.0 >= self.pages() {
            return None;
        }
        let (class, backed) = self.map.class(pfn.map_page());
        let state = self.map.state(pfn);
        let candidate = match class {
            Class::Tail(order) => Some(pfn.head(order)),
            Class::Mapped if state.is_head() => Some(pfn),
            Class::Mapped if state.is_tail() => Some(pfn.head(state.order())),
            Class::Mapped => Some(pfn.head(Order::MAP_PAGE)),
            _ => None,
        };
        let head = candidate
            .map(|head| (head, if head == pfn { state } else { self.map.state(head) }))
            .filter(|&(head, state)| state.covers(head, pfn));
        Some(Peek { class, backed, state, head })
    }

    /// Whether `pfn` was recorded as poisoned.
    pub fn is_poisoned(&self, pfn: Pfn) -> bool {
        self.map.is_poisoned(pfn)
    }

    /// Poisoned pages recorded.
    pub fn poisoned_pages(&self) -> u64 {
        self.map.poison.pages()
    }

    pub(crate) fn record_poison(&self, pfn: Pfn, mark: impl FnOnce()) -> Result<Poisoned, PoisonError> {
        let is_absent = pfn.0 >= self.pages() || self.class(pfn).0 == Class::Absent;
        if is_absent || self.map.holes.contains(pfn) {
            return Err(PoisonError::Absent);
        }
        let (map_page, bit) = (pfn.map_page(), 1 << (pfn.0 % PAGES_PER_MAP_PAGE));
        // Withholding must not need memory, now or when the page is freed, or its block comes online, in either zone.
        self.zones.iter().try_for_each(|zone| zone.prepare_withholding(pfn))?;
        self.map.withheld.ensure(map_page)?;
        self.map.poison.ensure(map_page)?;
        if self.map.poison.mark(map_page, bit) == 0 {
            return Ok(Poisoned::Known);
        }
        mark();
        let taken = self.frames(map_page).take_free_of(map_page, bit);
        self.withhold(map_page, taken);
        Ok(if taken != 0 { Poisoned::Withheld } else { Poisoned::InUse })
    }
}

impl<P: Platform> fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("protocol", &P::Rules::NAME)
            .field("pages", &self.pages())
            .field("layout", &self.layout())
            .field("materialised_map_pages", &self.materialised_map_pages())
            .finish_non_exhaustive()
    }
}

type TableResult<T, P> = Result<Table<T, <P as Platform>::Mapping>, NewError<<P as Platform>::Error>>;

pub(crate) fn table<T: Entry, P: Platform>(platform: &P, kind: TableKind, len: u64) -> TableResult<T, P> {
    let bytes = Table::<T, P::Mapping>::bytes_for(len).ok_or(NewError::TooLarge)?;
    let mapping = platform.reserve(kind, bytes).map_err(|error| NewError::Reserve { kind, bytes, error })?;
    if mapping.made_for().is_some_and(|other| other != kind) {
        return Err(NewError::OtherTable(kind));
    }
    Table::new(mapping, len).ok_or(NewError::Short(kind))
}
