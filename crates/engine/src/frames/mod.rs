//! The frame allocator: who owns which page.
//!
//! It never reads a descriptor, and the memory map never reads a row: free memory has no descriptors, so the state of
//! free memory must live elsewhere. Everything here is zero for memory that is free and was never touched, so it costs
//! nothing until then.
//!
//! Promises:
//!
//! * The owner of a page is the caller that set its bit (orders below an area), or took its lane (an area and more),
//!   until it gives the page back. No page has two owners.
//! * Giving back never allocates, never fails for a rightful owner, and touches only table pages that are backed.
//! * The counts that guide the search never promise more than there is; hints (`FULL`, the CPUs' slots) may be stale,
//!   and a stale hint hides or costs time but never gives a page twice.
//!
//! The layers: [`rows`] are bits, [`lanes`] are areas and trees. On them stand blocks below an area ([`small`]), areas and more
//! ([`whole`]), pages asked for by number ([`particular`]), pages taken without a descriptor ([`claim`]), and ranges taken out
//! of circulation ([`isolate`]). Memory comes in by [`online`].

pub(crate) mod check;
pub(crate) mod claim;
pub(crate) mod error;
pub(crate) mod isolate;
mod lanes;
mod online;
mod particular;
mod rows;
mod small;
pub(crate) mod standalone;
mod whole;

use core::ops::Range;

use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Order, PAGES_PER_ROW, Pfn, ROW_ORDER, ROWS_PER_AREA, Row};
use crate::mapping::Mapping;
use crate::sync::{AtomicU64, CachePadded, Ordering, fence, spin_loop};
use crate::table::Table;
use error::{AllocError, NotOwned};
use lanes::{Area, ISOLATED, Lanes, SMALL, Set, state};

/// CPUs that get a slot of their own; more share.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
/// How many trees a search looks at for the best fit before it takes any.
const NEAR: u64 = 32;
const AREA_PAGES: u64 = 1 << AREA_ORDER;
/// How often to look for a lane that a count has promised, while others move lanes under our eyes.
const TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// Where a CPU takes its small pages.
struct CpuSlot {
    /// Row it took from last, plus one; 0 for none. Its area is `RESERVED`, or was.
    ///
    /// Stored with Release by the CPU that reserved the area, and loaded with Acquire by CPUs that take pages there: a
    /// CPU that did not open the area (CPUs may share a slot) must know that its rows can be written.
    row: AtomicU64,
    /// Area where its searches begin: where it took memory last. Others begin elsewhere, and go on from there, so CPUs meet
    /// neither in a tree's word nor in a word of lanes before memory is short.
    home: AtomicU64,
}

impl CpuSlot {
    fn home(&self) -> Area {
        // Relaxed: only where to look first.
        Area(self.home.load(Ordering::Relaxed))
    }

    fn set_home(&self, area: Area) {
        // Not written where it says so already: CPUs may share a slot.
        if self.home() != area {
            self.home.store(area.0, Ordering::Relaxed);
        }
    }
}

/// The frame allocator over its tables.
pub(crate) struct Frames<M> {
    rows: Table<AtomicU64, M>,
    lanes: Lanes<M>,
    slots: [CachePadded<CpuSlot>; SLOTS],
    /// Areas opened and closed: how many such moves have begun and ended. In between, free pages look taken. All CPUs write
    /// them, once for 512 pages that they take or give back one by one; nobody else's words lie beside them.
    moves: CachePadded<[AtomicU64; 2]>,
}

impl<M: Mapping> Frames<M> {
    pub(crate) fn new(
        rows: Table<AtomicU64, M>,
        words: Table<AtomicU64, M>,
        trees: Table<crate::sync::AtomicU32, M>,
    ) -> Self {
        let lanes = Lanes::new(words, trees);
        let areas = lanes.trees().max(1) * AREAS_PER_TREE;
        let slot = |index: usize| {
            // As far from each other as they can be, however few CPUs there are: their numbers' bits, reversed.
            let place = (index as u64).reverse_bits() >> (u64::BITS - SLOTS.ilog2());
            let home = areas / (SLOTS as u64) * place;
            CachePadded(CpuSlot { row: AtomicU64::new(0), home: AtomicU64::new(home) })
        };
        let moves = CachePadded([AtomicU64::new(0), AtomicU64::new(0)]);
        Self { rows, lanes, slots: core::array::from_fn(slot), moves }
    }

    pub(crate) fn mappings(&self) -> [&M; 3] {
        let [lanes, trees] = self.lanes.mappings();
        [self.rows.mapping(), lanes, trees]
    }

    /// Takes a block of `order`. `cpu` is the caller's CPU, as [`crate::platform::Platform::cpu`].
    #[inline]
    pub(crate) fn alloc(&self, order: Order, cpu: usize) -> Result<Pfn, AllocError> {
        let Some(slot) = self.slots.get(cpu % SLOTS) else { return Err(AllocError::NoBlock) };
        // The common case: the row this CPU took from last has room.
        if order.get() <= ROW_ORDER
            && let Some(row) = slot.row.load(Ordering::Acquire).checked_sub(1)
            && let Some(pfn) = self.take_in_row(row, order)
        {
            return Ok(pfn);
        }
        // Or the GiB it took from last has.
        if order.get() >= AREA_ORDER
            && let Some(pfn) = self.take_whole_in(slot.home(), 1 << (order.get() - AREA_ORDER))?
        {
            slot.set_home(Area::of(pfn.row()));
            return Ok(pfn);
        }
        self.search(order, slot)
    }

    #[inline(never)]
    fn search(&self, order: Order, slot: &CpuSlot) -> Result<Pfn, AllocError> {
        let attempt = || {
            if order.get() < AREA_ORDER {
                self.alloc_small(order, slot)
            } else {
                self.alloc_whole(order, slot)
            }
        };
        let mut found = self.despite_moves(attempt);
        let mut tries = 0;
        while found == Err(AllocError::NoBlock) && tries < TRIES {
            // What looks used up may lie in the areas that CPUs reserve, or in counts that others have lowered for a
            // search that will fail.
            self.drain();
            if tries > 0 && !self.has_block(order) {
                break;
            }
            tries += 1;
            found = self.despite_moves(attempt);
        }
        found
    }

    /// Runs `attempt` again for as long as it fails while some area was being opened or closed: its pages are free, and
    /// only look taken for a moment.
    fn despite_moves<T>(&self, attempt: impl Fn() -> Result<T, AllocError>) -> Result<T, AllocError> {
        let [begun, ended] = &self.moves.0;
        loop {
            let before = ended.load(Ordering::Acquire);
            let done = attempt();
            let failed = matches!(done, Err(AllocError::NoBlock | AllocError::Busy));
            if !failed {
                return done;
            }
            // Acquire: with the Release of `swap_row`, a page that was found taken by a move shows its beginning.
            fence(Ordering::Acquire);
            if begun.load(Ordering::Acquire) == before {
                return done;
            }
            spin_loop();
        }
    }

    /// Counts an opening or a closing while it is under way.
    fn move_area<T>(&self, change: impl FnOnce() -> T) -> T {
        let [begun, ended] = &self.moves.0;
        // AcqRel: a search that finds a page taken by this sees the beginning; one that looks again sees the end.
        begun.fetch_add(1, Ordering::AcqRel);
        let done = change();
        ended.fetch_add(1, Ordering::AcqRel);
        done
    }

    /// Whether a block of `order` is free somewhere, whatever the counts say. Slow: it looks at every lane.
    fn has_block(&self, order: Order) -> bool {
        let areas = 1 << order.get().saturating_sub(AREA_ORDER);
        (0..self.lanes.trees()).filter(|&tree| self.lanes.is_online(tree)).any(|tree| {
            self.lanes.find_free_run(Area(tree * AREAS_PER_TREE), areas).is_some()
                || order.get() < AREA_ORDER
                    && (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(Area).any(|area| {
                        let lane = self.lanes.get(area);
                        state(lane) == SMALL && lane & ISOLATED == 0 && self.has_room(area, order)
                    })
        })
    }

    /// Gives a block back that was taken whole.
    #[inline]
    pub(crate) fn free(&self, pfn: Pfn, order: Order) -> Result<(), NotOwned> {
        if order.get() <= ROW_ORDER {
            let bit = (pfn.0 % PAGES_PER_ROW) as u32;
            return self.free_mask(pfn.row(), rows::mask(bit, order.get()));
        }
        if order == Order::AREA {
            return self.free_whole(Area::of(pfn.row()), 1);
        }
        self.free_many(pfn, order)
    }

    #[inline(never)]
    fn free_many(&self, pfn: Pfn, order: Order) -> Result<(), NotOwned> {
        if order.get() >= AREA_ORDER {
            let (area, areas) = (Area(pfn.0 >> AREA_ORDER), 1 << (order.get() - AREA_ORDER));
            return self.free_whole(area, areas);
        }
        let rows = pfn.row().0..pfn.row().0 + order.rows();
        if rows.clone().any(|row| self.row(row) != Row::ALL) {
            return Err(NotOwned);
        }
        rows.map(Row).try_for_each(|row| self.free_mask(row, Row::ALL))
    }

    /// Ends all reservations.
    pub(crate) fn drain(&self) {
        self.drain_areas(0..self.lanes.trees() * AREAS_PER_TREE);
    }

    /// Ends the reservations of `areas`.
    fn drain_areas(&self, areas: Range<u64>) {
        for slot in &self.slots {
            let row = slot.row.load(Ordering::Relaxed);
            if let Some(area) = row.checked_sub(1).map(|row| row / ROWS_PER_AREA)
                && areas.contains(&area)
                && slot.row.compare_exchange(row, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                self.retire(Area(area));
            }
        }
        // A close can be missed while others are searching the tree; here is where it is made up for.
        let trees = areas.start / AREAS_PER_TREE..areas.end.div_ceil(AREAS_PER_TREE);
        for tree in trees.filter(|&tree| self.lanes.count(tree, Set::Open) > 0) {
            for area in (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(Area) {
                if self.lanes.get(area) == SMALL {
                    self.after_free(area);
                }
            }
        }
    }
}

/// All of `0..n` once, beginning at `start`.
fn around(start: u64, n: u64) -> impl Iterator<Item = u64> {
    let start = if start < n { start } else { 0 };
    (start..n).chain(0..start)
}
