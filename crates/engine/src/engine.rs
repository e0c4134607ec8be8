//! The engine: one machine's memory map, its allocator and its RCU domain, put together.
//!
//! The order of things is the same everywhere. Allocating: take the pages from the allocator, make their descriptors,
//! hand out the handle. Freeing: end the descriptors, give the pages to the allocator. So the code that touches descriptors or
//! classes owns the pages, and the allocator alone decides on ownership.

use core::fmt;

use crate::frames::Frames;
use crate::geometry::{MAX_PAGES, Pfn, pages_of_machine};
use crate::map::{Layout, MemoryMap};
use crate::marks::Marks;
use crate::platform::Mapping;
use crate::platform::{Platform, TableKind};
use crate::protocol::Protocol;
use crate::protocol::class::Class;
use crate::protocol::classes::Classes;
use crate::protocol::{Fold, reads_folded};
use crate::rcu::Rcu;
use crate::sync::AtomicBool;
use crate::table::{Table, TableEntry};
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

/// The engine. See the [crate](crate) for what it does, and [`crate::protocol`] for what it promises.
pub struct Engine<P: Platform> {
    pub(crate) map: MemoryMap<P::Mapping, P::Owner>,
    pub(crate) zones: [Frames<P::Mapping>; 2],
    pub(crate) records: Records<P::Mapping>,
    pub(crate) hotplug_taken: AtomicBool,
    pub(crate) rcu: Rcu<P::Barrier>,
    pub(crate) platform: P,
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
    /// // SAFETY: folded pages that are written to come back as zeros here, and are looked for.
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
    /// Either the rules keep the promises of [`crate::protocol`]: those of [`Fold`] do, whatever
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
        let pages = pages_of_machine(config.pages).ok_or(NewError::TooLarge)?;
        let reserve = |kind, bytes| platform.reserve(kind, bytes);
        let descriptors = table(&reserve, TableKind::Map, pages)?;
        let classes = Classes::new(
            table(&reserve, TableKind::Classes, pages)?,
            table(&reserve, TableKind::Sections, pages)?,
            table(&reserve, TableKind::Regions, pages)?,
        );
        let marks = [
            Marks::new(table(&reserve, TableKind::Poison, pages)?),
            Marks::new(table(&reserve, TableKind::Holes, pages)?),
            Marks::new(table(&reserve, TableKind::Withheld, pages)?),
        ];
        let map = MemoryMap::new(descriptors, classes, marks, config.layout);
        let records = Records::new(table(&reserve, TableKind::Blocks, pages)?);
        let zones = [
            Frames::new(
                table(&reserve, TableKind::Rows, pages)?,
                table(&reserve, TableKind::Lanes, pages)?,
                table(&reserve, TableKind::Trees, pages)?,
            ),
            Frames::new(
                table(&reserve, TableKind::MovableRows, pages)?,
                table(&reserve, TableKind::MovableLanes, pages)?,
                table(&reserve, TableKind::MovableTrees, pages)?,
            ),
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

    /// The allocator that has `pfn`, or would have it: its section's zone's. Sections lie in one zone as a whole.
    #[inline]
    pub(crate) fn frames(&self, pfn: Pfn) -> &Frames<P::Mapping> {
        self.zone(self.records.zone(pfn.section()))
    }

    /// The zone that `pfn` lies in, or would lie in: the normal one where there is no memory block.
    pub fn zone_of(&self, pfn: Pfn) -> Zone {
        self.records.zone(pfn.section())
    }

    /// Its RCU domain, for the owner's own structures and grace periods.
    pub fn rcu(&self) -> &Rcu<P::Barrier> {
        &self.rcu
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

/// A table of a machine of `pages` pages.
pub(crate) fn table<T: TableEntry, M: Mapping, E>(
    reserve: &impl Fn(TableKind, u64) -> Result<M, E>,
    kind: TableKind,
    pages: u64,
) -> Result<Table<T, M>, NewError<E>> {
    #[cfg(not(loom))]
    debug_assert_eq!(kind.entry_bytes(), size_of::<T>() as u64, "an entry of the {kind:?} table");
    let bytes = kind.bytes(pages).ok_or(NewError::TooLarge)?;
    let mapping = reserve(kind, bytes).map_err(|error| NewError::Reserve { kind, bytes, error })?;
    if mapping.made_for().is_some_and(|other| other != kind) {
        return Err(NewError::OtherTable(kind));
    }
    Table::new(mapping, kind.entries(pages)).ok_or(NewError::Short(kind))
}
