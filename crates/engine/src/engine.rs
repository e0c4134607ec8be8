//! The engine: one machine's memory map, its allocator and its RCU domain, put together.
//!
//! The order of things is the same everywhere. Allocating: take the pages from the allocator, make their descriptors,
//! hand out the handle. Freeing: end the descriptors, give the pages to the allocator. So the code that touches descriptors or
//! classes owns the pages, and the allocator alone decides on ownership.

use core::fmt;

use crate::descriptors::seam::{DescriptorMap, Descriptors};
use crate::frames::Frames;
use crate::geometry::Pfn;
use crate::map::{Layout, MemoryMap};
use crate::mapping::{Mapping, TableKind};
use crate::marks::Marks;
use crate::platform::Platform;
use crate::protocol::Protocol;
use crate::protocol::class::Class;
use crate::protocol::classes::Classes;
use crate::protocol::{Fold, reads_folded};
use crate::rcu::Rcu;
use crate::reserve::{NewError, Tables};
use crate::sync::AtomicBool;
use crate::zone::{Records, Zone};

/// The memory map of a platform's engine.
pub(crate) type MapOf<P> =
    <<P as Platform>::Descriptors as Descriptors>::Map<<P as Platform>::Mapping, <P as Platform>::Owner>;
/// The descriptor of a folio there.
pub(crate) type HeadOf<P> = <<P as Platform>::Descriptors as Descriptors>::Head<<P as Platform>::Owner>;

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

/// The engine. See the [crate](crate) for what it does, and [`crate::protocol`] for what it promises.
pub struct Engine<P: Platform> {
    pub(crate) map: MapOf<P>,
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
        let reserve = |kind, bytes| platform.reserve(kind, bytes);
        let tables = Tables::new(reserve, config.pages, P::Descriptors::shape::<P::Owner>())?;
        let descriptors = tables.table(TableKind::Map)?;
        let classes = Classes::new(
            tables.table(TableKind::Classes)?,
            tables.table(TableKind::Sections)?,
            tables.table(TableKind::Regions)?,
        );
        let marks = [
            Marks::new(tables.table(TableKind::Poison)?),
            Marks::new(tables.table(TableKind::Holes)?),
            Marks::new(tables.table(TableKind::Withheld)?),
        ];
        let map = MapOf::<P>::new(MemoryMap::new(descriptors, classes, marks, config.layout), &tables)?;
        let records = Records::new(tables.table(TableKind::Blocks)?);
        let zones = [
            Frames::new(
                tables.table(TableKind::Rows)?,
                tables.table(TableKind::Lanes)?,
                tables.table(TableKind::Trees)?,
            ),
            Frames::new(
                tables.table(TableKind::MovableRows)?,
                tables.table(TableKind::MovableLanes)?,
                tables.table(TableKind::MovableTrees)?,
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

    /// Objects in use where descriptors are objects: one a folio. Exact while nothing moves.
    pub fn objects(&self) -> Option<u64> {
        self.map.objects()
    }

    /// All tables, for measuring: the memory map first.
    pub fn tables(&self) -> impl Iterator<Item = (TableKind, &P::Mapping)> {
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
        .into_iter()
        .chain(self.map.object_tables())
    }

    /// The class of the map page of `pfn`, and whether memory is behind it.
    pub fn class(&self, pfn: Pfn) -> (Class, bool) {
        self.map.class(self.map.map_page(pfn))
    }
}

impl<P: Platform> fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("protocol", &P::Rules::NAME)
            .field("descriptors", &P::Descriptors::NAME)
            .field("pages", &self.pages())
            .field("layout", &self.layout())
            .field("materialised_map_pages", &self.materialised_map_pages())
            .finish_non_exhaustive()
    }
}
