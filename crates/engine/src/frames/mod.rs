//! The frame allocator: who owns which page.
//!
//! It never reads a descriptor, and the memory map never reads a row: free memory has no descriptors, so the state of
//! free memory must live elsewhere. Everything here is zero for memory that is free and was never touched, so it costs
//! nothing until then.
//!
//! Promises:
//!
//! * A page is owned by whoever set its bit (orders below an area), or took its lane (an area and more), until they give
//!   it back. No page has two owners.
//! * Giving back never allocates, never fails for a rightful owner, and touches only table pages that are backed.
//! * The counts that guide the search never promise more than there is; hints (`FULL`, the CPUs' slots) may be stale,
//!   and a stale hint hides or costs time but never gives a page twice.
//!
//! The layers: [`rows`] are bits, [`lanes`] are areas and trees, [`isolate`] takes a range out of circulation.

mod isolate;
mod lanes;
mod rows;
mod standalone;

pub use standalone::FrameAllocator;

use core::ops::Range;

pub use isolate::IsolateError;
pub(crate) use isolate::Isolation;
use lanes::{ABSENT, Area, FREE, FULL, ISOLATED, Lanes, ONES, RESERVED, SMALL, Set, WHOLE, state};

use crate::geometry::{
    AREA_ORDER, AREAS_PER_TREE, MAP_PAGE_ORDER, MAP_PAGES_PER_AREA, MapPage, Order, PAGES_PER_MAP_PAGE, Pfn,
    TREE_ORDER,
};
use crate::heap::OutOfMemory;
use crate::platform::Mapping;
use crate::sync::{AtomicU64, CachePadded, Ordering, fence, spin_loop};
use crate::table::Table;

/// CPUs that get a slot of their own; more share.
const SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
/// How many trees a search looks at for the best fit before it takes any.
const NEAR: u64 = 32;
const AREA_PAGES: u64 = 1 << AREA_ORDER;
/// How often to look for a lane that a count has promised, while others move lanes under our eyes.
const TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// Why memory could not be allocated. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No free block of that order: free something, or ask for a smaller order.
    NoBlock,
    /// The block asked for is not all free.
    Busy,
    /// There is no memory at that page number.
    Absent,
    /// The page number is not a multiple of the block's size.
    Misaligned,
    /// The block is free, but there is no memory for its descriptor or the allocator's tables: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for AllocError {
    fn from(_: OutOfMemory) -> Self {
        AllocError::OutOfMemory
    }
}

impl core::fmt::Display for AllocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            AllocError::NoBlock => "no free block of that order: free something or ask for less",
            AllocError::Busy => "the block is not free",
            AllocError::Absent => "no memory at that page number",
            AllocError::Misaligned => "the page number is not a multiple of the block's size",
            AllocError::OutOfMemory => "no memory for the descriptor of the block: free some and retry",
        })
    }
}
impl core::error::Error for AllocError {}

/// Pages that were given back are not taken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOwned;

impl core::fmt::Display for NotOwned {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the pages are free already")
    }
}
impl core::error::Error for NotOwned {}

/// Where a CPU takes its small pages.
struct Slot {
    /// Row it took from last, plus one; 0 for none. Its area is `RESERVED`, or was.
    ///
    /// Stored with Release by who reserved the area, and loaded with Acquire by who takes pages there: others than the
    /// one who opened the area (CPUs may share a slot) must know that its rows can be written.
    row: AtomicU64,
    /// Tree where its searches begin.
    home: AtomicU64,
}

/// Free pages that were taken without a descriptor: exactly those that [`Frames::give_claim`] gives back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the pages stay taken until they are given back"]
pub(crate) enum Claim {
    /// Pages of one map page, out of an area of small pages.
    Row(MapPage, u64),
    /// A whole free area: all its map pages.
    Area(MapPage),
}

impl Claim {
    /// All its map pages.
    pub(crate) fn map_pages(&self) -> Range<u64> {
        match self {
            Claim::Row(map_page, _) => map_page.0..map_page.0 + 1,
            Claim::Area(first) => first.0..first.0 + MAP_PAGES_PER_AREA,
        }
    }
}

/// The frame allocator over its tables.
pub(crate) struct Frames<M> {
    rows: Table<AtomicU64, M>,
    lanes: Lanes<M>,
    slots: [CachePadded<Slot>; SLOTS],
    /// Areas opened and closed: how many such moves have begun and ended. In between, free pages look taken.
    moves: [AtomicU64; 2],
}

impl<M: Mapping> Frames<M> {
    pub(crate) fn new(rows: Table<AtomicU64, M>, lanes: Lanes<M>) -> Self {
        let trees = lanes.trees().max(1);
        let slot = |index: usize| {
            // Spread the CPUs over the trees, so that they do not meet in one.
            let home = trees * (index as u64) / (SLOTS as u64);
            CachePadded(Slot { row: AtomicU64::new(0), home: AtomicU64::new(home) })
        };
        let moves = [AtomicU64::new(0), AtomicU64::new(0)];
        Self { rows, lanes, slots: core::array::from_fn(slot), moves }
    }

    /// How many entries the three tables need for `pages`: rows, lane words, tree words.
    pub(crate) fn table_lengths(pages: u64) -> (u64, u64, u64) {
        let areas = pages.div_ceil(AREA_PAGES);
        (areas * MAP_PAGES_PER_AREA, Lanes::<M>::words_for(areas), pages.div_ceil(1 << TREE_ORDER))
    }

    pub(crate) fn tables(
        rows: Table<AtomicU64, M>,
        words: Table<AtomicU64, M>,
        trees: Table<crate::sync::AtomicU32, M>,
    ) -> Self {
        Self::new(rows, Lanes::new(words, trees))
    }

    pub(crate) fn mappings(&self) -> [&M; 3] {
        let [lanes, trees] = self.lanes.mappings();
        [self.rows.mapping(), lanes, trees]
    }

    /// Takes a block of `order`. `cpu` says who asks, as [`crate::platform::Platform::cpu`].
    #[inline]
    pub(crate) fn alloc(&self, order: Order, cpu: usize) -> Result<Pfn, AllocError> {
        let Some(slot) = self.slots.get(cpu % SLOTS) else { return Err(AllocError::NoBlock) };
        // The common case: the row this CPU took from last has room.
        if order.get() <= MAP_PAGE_ORDER
            && let Some(row) = slot.row.load(Ordering::Acquire).checked_sub(1)
            && let Some(pfn) = self.take_in_row(row, order)
        {
            return Ok(pfn);
        }
        // Or the GiB it took from last has.
        if order.get() >= AREA_ORDER
            && let home = slot.home.load(Ordering::Relaxed)
            && let Some(pfn) = self.take_whole_in(home, 1 << (order.get() - AREA_ORDER))?
        {
            return Ok(pfn);
        }
        self.search(order, slot)
    }

    #[inline(never)]
    fn search(&self, order: Order, slot: &Slot) -> Result<Pfn, AllocError> {
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
        let [begun, ended] = &self.moves;
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

    /// Whether a block of `order` is free somewhere, whatever the counts say. Slow: it looks at every lane.
    fn has_block(&self, order: Order) -> bool {
        let areas = 1 << order.get().saturating_sub(AREA_ORDER);
        (0..self.lanes.trees()).filter(|&tree| self.lanes.is_online(tree)).any(|tree| {
            self.lanes.find_free_run(tree, areas).is_some()
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
        if order.get() <= MAP_PAGE_ORDER {
            let bit = (pfn.0 % PAGES_PER_MAP_PAGE) as u32;
            return self.free_mask(pfn.map_page(), rows::mask(bit, order.get()));
        }
        self.free_many(pfn, order)
    }

    #[inline(never)]
    fn free_many(&self, pfn: Pfn, order: Order) -> Result<(), NotOwned> {
        if order.get() >= AREA_ORDER {
            let (area, areas) = (Area(pfn.0 >> AREA_ORDER), 1 << (order.get() - AREA_ORDER));
            return self.free_whole(area, areas);
        }
        let rows = pfn.map_page().0..pfn.map_page().0 + order.map_pages();
        if rows.clone().any(|row| self.row(row) != rows::ALL) {
            return Err(NotOwned);
        }
        rows.map(MapPage).try_for_each(|row| self.free_mask(row, rows::ALL))
    }

    // ---- whole areas -------------------------------------------------------------------------------------------

    fn alloc_whole(&self, order: Order, slot: &Slot) -> Result<Pfn, AllocError> {
        let areas = 1 << (order.get() - AREA_ORDER);
        let trees = self.lanes.trees();
        let home = slot.home.load(Ordering::Relaxed);
        // First a tree near by that is broken already, so that whole GiB last.
        for tree in around(home, trees).take(NEAR as usize) {
            let free = self.lanes.count(tree, Set::Free);
            if free >= areas
                && free < AREAS_PER_TREE
                && let Some(pfn) = self.take_whole_in(tree, areas)?
            {
                return Ok(pfn);
            }
        }
        for tree in around(home, trees) {
            if self.lanes.count(tree, Set::Free) >= areas
                && let Some(pfn) = self.take_whole_in(tree, areas)?
            {
                slot.home.store(tree, Ordering::Relaxed);
                return Ok(pfn);
            }
        }
        Err(AllocError::NoBlock)
    }

    fn take_whole_in(&self, tree: u64, areas: u64) -> Result<Option<Pfn>, AllocError> {
        if !self.lanes.lower(tree, Set::Free, areas) {
            return Ok(None);
        }
        // A single lane is promised by the count; others may be moving while we look, so look more than once. A longer
        // run may not exist.
        for _ in 0..TRIES {
            let Some(area) = self.lanes.find_free_run(tree, areas) else {
                if areas > 1 {
                    break;
                }
                spin_loop();
                continue;
            };
            if let Err(out_of_memory) = self.lanes.ensure(tree) {
                self.lanes.raise(tree, Set::Free, areas);
                return Err(out_of_memory.into());
            }
            match self.lanes.take_free_run(area, areas) {
                Ok(()) => return Ok(Some(Pfn(area.0 << AREA_ORDER))),
                // Those that were isolated meanwhile are in the count no more: this attempt's promise is short of them.
                Err(0) => {}
                Err(gone) => {
                    self.lanes.raise(tree, Set::Free, areas - gone);
                    return Ok(None);
                }
            }
        }
        self.lanes.raise(tree, Set::Free, areas);
        Ok(None)
    }

    fn free_whole(&self, area: Area, areas: u64) -> Result<(), NotOwned> {
        if (area.0..area.0 + areas).any(|area| state(self.lanes.get(Area(area))) != WHOLE) {
            return Err(NotOwned);
        }
        let counted = self.lanes.give_run(area, areas);
        self.lanes.raise(area.tree(), Set::Free, counted);
        Ok(())
    }

    /// Gives an area back all of whose pages are the caller's, however they were taken.
    pub(crate) fn free_area(&self, pfn: Pfn) {
        let area = Area(pfn.0 >> AREA_ORDER);
        let given = match state(self.lanes.get(area)) {
            WHOLE => self.free_whole(area, 1),
            _ => (area.first_row()..area.first_row() + MAP_PAGES_PER_AREA)
                .try_for_each(|row| self.free_mask(MapPage(row), rows::ALL)),
        };
        debug_assert!(given.is_ok(), "{pfn} was not owned");
    }

    // ---- small pages -------------------------------------------------------------------------------------------

    fn alloc_small(&self, order: Order, slot: &Slot) -> Result<Pfn, AllocError> {
        loop {
            let hint = slot.row.load(Ordering::Acquire);
            if let Some(row) = hint.checked_sub(1) {
                if let Some(pfn) = self.take_in_area(row, order) {
                    let now = pfn.map_page().0;
                    if now != row {
                        // Only where to look first next time; losing the race loses nothing.
                        let _ =
                            slot.row.compare_exchange(hint, now + 1, Ordering::Relaxed, Ordering::Relaxed);
                    }
                    return Ok(pfn);
                }
                if slot.row.compare_exchange(hint, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    self.retire(Area(row / MAP_PAGES_PER_AREA));
                }
            }
            let area = self.reserve_area(order, slot)?;
            let hint = area.first_row() + 1;
            let taken = self.take_in_area(area.first_row(), order);
            if slot.row.compare_exchange(0, hint, Ordering::Release, Ordering::Relaxed).is_err() {
                // Somebody with the same slot was faster: one reserved area a slot is enough.
                self.retire(area);
            }
            if let Some(pfn) = taken {
                return Ok(pfn);
            }
        }
    }

    /// Takes `2^order` pages in the area of `row`, looking at `row` first.
    fn take_in_area(&self, row: u64, order: Order) -> Option<Pfn> {
        let first = row - row % MAP_PAGES_PER_AREA;
        let at = |index: u64| first + (row + index) % MAP_PAGES_PER_AREA;
        if order.get() <= MAP_PAGE_ORDER {
            return (0..MAP_PAGES_PER_AREA).find_map(|index| self.take_in_row(at(index), order));
        }
        let span = order.map_pages();
        (0..MAP_PAGES_PER_AREA / span)
            .map(|index| first + index * span)
            .find(|&start| self.take_rows(start..start + span))
            .map(|start| MapPage(start).first_pfn())
    }

    #[inline]
    fn take_in_row(&self, row: u64, order: Order) -> Option<Pfn> {
        let word = self.rows.get(row)?;
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let bit = rows::find(now, order.get())?;
            // Acquire: pairs with the Release by which the last owner freed the pages (`free_mask`).
            match word.compare_exchange(
                now,
                now | rows::mask(bit, order.get()),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(MapPage(row).first_pfn().plus(u64::from(bit))),
                Err(other) => now = other,
            }
        }
    }

    /// Takes all pages of all `rows`, or none.
    fn take_rows(&self, rows: Range<u64>) -> bool {
        for row in rows.clone() {
            if !self.swap_row(row, 0, rows::ALL) {
                for taken in rows.start..row {
                    self.store_row(taken, 0);
                }
                return false;
            }
        }
        true
    }

    fn swap_row(&self, row: u64, from: u64, to: u64) -> bool {
        // Acquire, as `take_in_row`. Release: see `despite_moves`.
        self.rows
            .get(row)
            .is_some_and(|word| word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Sets a row all of whose set bits are the caller's.
    fn store_row(&self, row: u64, value: u64) {
        if let Some(word) = self.rows.get(row) {
            // Release: what the owner did before giving back happens before the next owner. A swap keeps the release
            // sequence of the others' read-modify-writes.
            word.swap(value, Ordering::Release);
        }
    }

    fn row(&self, row: u64) -> u64 {
        self.rows.get(row).map_or(rows::ALL, |word| word.load(Ordering::Acquire))
    }

    fn area_rows(&self, area: Area) -> impl Iterator<Item = u64> + '_ {
        (area.first_row()..area.first_row() + MAP_PAGES_PER_AREA).map(|row| self.row(row))
    }

    /// An area for small pages, reserved for the caller, with room for `order`.
    fn reserve_area(&self, order: Order, slot: &Slot) -> Result<Area, AllocError> {
        let trees = self.lanes.trees();
        let home = slot.home.load(Ordering::Relaxed);
        for tree in around(home, trees).take(NEAR as usize) {
            if let Some(area) = self.reserve_open(tree, order) {
                return Ok(area);
            }
        }
        for tree in around(home, trees) {
            if let Some(area) = self.open_free(tree)? {
                slot.home.store(tree, Ordering::Relaxed);
                return Ok(area);
            }
        }
        // Nothing free, and nothing open near by: far away, then.
        around(home, trees).find_map(|tree| self.reserve_open(tree, order)).ok_or(AllocError::NoBlock)
    }

    fn reserve_open(&self, tree: u64, order: Order) -> Option<Area> {
        if !self.lanes.lower(tree, Set::Open, 1) {
            return None;
        }
        let mut areas = (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(Area);
        let found = areas.find(|&area| {
            self.lanes.get(area) == SMALL
                && self.has_room(area, order)
                && self.lanes.replace(area, SMALL, SMALL | RESERVED)
        });
        if found.is_none() {
            self.lanes.raise(tree, Set::Open, 1);
        }
        found
    }

    fn has_room(&self, area: Area, order: Order) -> bool {
        let mut clear = 0;
        let span = order.map_pages();
        self.area_rows(area).enumerate().any(|(index, row)| {
            if order.get() <= MAP_PAGE_ORDER {
                return rows::find(row, order.get()).is_some();
            }
            // Orders between a row and an area: `span` clear rows, aligned.
            clear = if (index as u64).is_multiple_of(span) { 0 } else { clear };
            clear += u64::from(row == 0);
            (index as u64 + 1).is_multiple_of(span) && clear == span
        })
    }

    /// Breaks a free area of `tree` into small pages, reserved for the caller.
    fn open_free(&self, tree: u64) -> Result<Option<Area>, AllocError> {
        if !self.lanes.lower(tree, Set::Free, 1) {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let Some(area) = self.lanes.find_free_run(tree, 1) else {
                spin_loop();
                continue;
            };
            match self.open(area) {
                Ok(true) => return Ok(Some(area)),
                Ok(false) => {}
                Err(out_of_memory) => {
                    self.lanes.raise(tree, Set::Free, 1);
                    return Err(out_of_memory.into());
                }
            }
        }
        self.lanes.raise(tree, Set::Free, 1);
        Ok(None)
    }

    /// `FREE` → `SMALL | RESERVED`, with empty rows. The free count has been lowered for it.
    fn open(&self, area: Area) -> Result<bool, OutOfMemory> {
        self.lanes.ensure(area.tree())?;
        self.rows.materialise(area.first_row()..area.first_row() + MAP_PAGES_PER_AREA)?;
        Ok(self.move_area(|| {
            let opened = self.lanes.update(area, |lane| (lane & !ONES == FREE).then_some(SMALL | RESERVED));
            if let Some(before) = opened
                && before & ONES != 0
            {
                for row in area.first_row()..area.first_row() + MAP_PAGES_PER_AREA {
                    self.store_row(row, 0);
                }
            }
            opened.is_some()
        }))
    }

    /// Ends a reservation: the area is open for others, or full, or empty and free again.
    fn retire(&self, area: Area) {
        let is_full = self.area_rows(area).all(|row| row == rows::ALL);
        let to = if is_full { SMALL | FULL } else { SMALL };
        // The reservation may be gone already (a drain, a collapse): then there is nothing to end.
        if !self.lanes.replace(area, SMALL | RESERVED, to) {
            return;
        }
        if !is_full {
            self.lanes.raise(area.tree(), Set::Open, 1);
        }
        // A page freed between the look and the change would not have told anyone.
        self.after_free(area);
    }

    /// A page of `area` was freed: keep the lane's hints true enough.
    #[inline(never)]
    fn after_free(&self, area: Area) {
        let mut lane = self.lanes.get(area);
        if lane == SMALL | FULL
            && self.area_rows(area).any(|row| row != rows::ALL)
            && self.lanes.replace(area, SMALL | FULL, SMALL)
        {
            self.lanes.raise(area.tree(), Set::Open, 1);
            lane = SMALL;
        }
        if lane == SMALL && self.area_rows(area).all(|row| row == 0) {
            self.close(area);
        }
    }

    /// `SMALL` and empty → `FREE`. Takes every page first, as any owner would, so that nobody can be in it.
    fn close(&self, area: Area) {
        self.move_area(|| self.take_and_close(area));
    }

    /// Counts an opening or a closing while it is under way.
    fn move_area<T>(&self, change: impl FnOnce() -> T) -> T {
        let [begun, ended] = &self.moves;
        // AcqRel: the beginning is seen by whoever finds a page taken by this, the end by whoever looks again.
        begun.fetch_add(1, Ordering::AcqRel);
        let done = change();
        ended.fetch_add(1, Ordering::AcqRel);
        done
    }

    fn take_and_close(&self, area: Area) {
        let tree = area.tree();
        if !self.lanes.lower(tree, Set::Open, 1) {
            return;
        }
        if !self.lanes.replace(area, SMALL, SMALL | RESERVED) {
            self.lanes.raise(tree, Set::Open, 1);
            return;
        }
        let rows = area.first_row()..area.first_row() + MAP_PAGES_PER_AREA;
        if !self.take_rows(rows.clone()) {
            if self.lanes.replace(area, SMALL | RESERVED, SMALL) {
                self.lanes.raise(tree, Set::Open, 1);
            }
            return;
        }
        // All rows are ones and ours. The lane may have been marked isolated meanwhile, or even have been opened again
        // by the end of an isolation.
        match self.leave_small(area, FREE | ONES) {
            Some(lane) if lane & ISOLATED == 0 => self.lanes.raise(tree, Set::Free, 1),
            Some(_) => {}
            None => rows.for_each(|row| self.store_row(row, 0)),
        }
    }

    /// `SMALL` → `to`. The caller owns every page of the area; the mark of isolation stays. Returns the lane as it was,
    /// or nothing if it is not `SMALL`.
    fn leave_small(&self, area: Area, to: u8) -> Option<u8> {
        loop {
            let lane = self.lanes.get(area);
            if state(lane) != SMALL {
                return None;
            }
            let is_open = lane & (FULL | RESERVED | ISOLATED) == 0;
            if is_open && !self.lanes.lower(area.tree(), Set::Open, 1) {
                // Somebody lowered the count and is about to find that this area is full.
                spin_loop();
                continue;
            }
            if self.lanes.replace(area, lane, to | lane & ISOLATED) {
                return Some(lane);
            }
            if is_open {
                self.lanes.raise(area.tree(), Set::Open, 1);
            }
        }
    }

    /// Gives pages of one map page back.
    #[inline]
    pub(crate) fn free_mask(&self, map_page: MapPage, mask: u64) -> Result<(), NotOwned> {
        let word = self.rows.get(map_page.0).ok_or(NotOwned)?;
        let mut before = word.load(Ordering::Relaxed);
        loop {
            if before & mask != mask {
                return Err(NotOwned);
            }
            // Release: pairs with the Acquire of the next owner.
            match word.compare_exchange(before, before & !mask, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => before = other,
            }
        }
        let area = Area(map_page.0 / MAP_PAGES_PER_AREA);
        // The common case needs no look at the other rows: some CPU still reserves the area, or it is open and not
        // empty.
        let lane = self.lanes.get(area);
        if lane == SMALL | FULL || (lane == SMALL && before & !mask == 0) {
            self.after_free(area);
        }
        Ok(())
    }

    /// Ends all reservations.
    pub(crate) fn drain(&self) {
        self.drain_areas(0..self.lanes.trees() * AREAS_PER_TREE);
    }

    /// Ends the reservations of `areas`.
    fn drain_areas(&self, areas: Range<u64>) {
        for slot in &self.slots {
            let row = slot.row.load(Ordering::Relaxed);
            if let Some(area) = row.checked_sub(1).map(|row| row / MAP_PAGES_PER_AREA)
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

    // ---- particular pages --------------------------------------------------------------------------------------

    /// Takes the block of `order` at `pfn`.
    pub(crate) fn alloc_at(&self, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        self.despite_moves(|| self.try_alloc_at(pfn, order))
    }

    fn try_alloc_at(&self, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        if !pfn.is_aligned(order) {
            return Err(AllocError::Misaligned);
        }
        let area = Area(pfn.0 >> AREA_ORDER);
        if order.get() >= AREA_ORDER {
            let areas = 1 << (order.get() - AREA_ORDER);
            return self.take_areas_at(area, areas);
        }
        if order.get() <= MAP_PAGE_ORDER {
            let bit = (pfn.0 % PAGES_PER_MAP_PAGE) as u32;
            return self.alloc_mask(pfn.map_page(), rows::mask(bit, order.get()));
        }
        self.make_small(area)?;
        let first = pfn.map_page().0;
        let taken = self.take_rows(first..first + order.map_pages());
        if taken { Ok(()) } else { Err(AllocError::Busy) }
    }

    fn take_areas_at(&self, area: Area, areas: u64) -> Result<(), AllocError> {
        match self.take_free_areas_at(area, areas) {
            Err(AllocError::Busy) => {
                // One of them may be empty, but reserved by a CPU for small pages.
                self.drain();
                self.take_free_areas_at(area, areas)
            }
            done => done,
        }
    }

    fn take_free_areas_at(&self, area: Area, areas: u64) -> Result<(), AllocError> {
        let tree = area.tree();
        if !self.lanes.lower(tree, Set::Free, areas) {
            return Err(if self.lanes.is_online(tree) { AllocError::Busy } else { AllocError::Absent });
        }
        if let Err(out_of_memory) = self.lanes.ensure(tree) {
            self.lanes.raise(tree, Set::Free, areas);
            return Err(out_of_memory.into());
        }
        let Err(gone) = self.lanes.take_free_run(area, areas) else { return Ok(()) };
        self.lanes.raise(tree, Set::Free, areas - gone);
        let absent = (area.0..area.0 + areas).any(|area| state(self.lanes.get(Area(area))) == ABSENT);
        Err(if absent { AllocError::Absent } else { AllocError::Busy })
    }

    /// Takes the pages of `mask` in one map page.
    pub(crate) fn alloc_mask(&self, map_page: MapPage, mask: u64) -> Result<(), AllocError> {
        self.make_small(Area(map_page.0 / MAP_PAGES_PER_AREA))?;
        let word = self.rows.get(map_page.0).ok_or(AllocError::Absent)?;
        let mut now = word.load(Ordering::Relaxed);
        while now & mask == 0 {
            // Acquire, as `take_in_row`.
            match word.compare_exchange(now, now | mask, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => now = other,
            }
        }
        // The area may have been opened for nothing.
        self.after_free(Area(map_page.0 / MAP_PAGES_PER_AREA));
        Err(AllocError::Busy)
    }

    /// Opens `area` if it is free, so that its pages can be taken one by one.
    fn make_small(&self, area: Area) -> Result<(), AllocError> {
        loop {
            let lane = self.lanes.get(area);
            match state(lane) {
                _ if lane & ISOLATED != 0 => return Err(AllocError::Busy),
                SMALL => return Ok(()),
                WHOLE => return Err(AllocError::Busy),
                FREE => {}
                _ => return Err(AllocError::Absent),
            }
            let tree = area.tree();
            if !self.lanes.is_online(tree) {
                return Err(AllocError::Absent);
            }
            if !self.lanes.lower(tree, Set::Free, 1) {
                // Others are about to take every free area of the tree; this one will show as theirs.
                spin_loop();
                continue;
            }
            match self.open(area) {
                Ok(true) => {
                    self.retire_opened(area);
                    return Ok(());
                }
                Ok(false) => self.lanes.raise(tree, Set::Free, 1),
                Err(out_of_memory) => {
                    self.lanes.raise(tree, Set::Free, 1);
                    return Err(out_of_memory.into());
                }
            }
        }
    }

    /// As [`retire`](Self::retire), for an area that was opened for particular pages and is still empty: it must not
    /// close at once.
    fn retire_opened(&self, area: Area) {
        if self.lanes.replace(area, SMALL | RESERVED, SMALL) {
            self.lanes.raise(area.tree(), Set::Open, 1);
        }
    }

    /// Takes every page of `map_page` but `except`, if all of them are free and all of `except` is taken; as part of its
    /// area if that is free whole (then `except` must be 0). Nothing where `except` is all there is: who took no page
    /// owns nothing.
    pub(crate) fn take_map_page(&self, map_page: MapPage, except: u64) -> Option<Claim> {
        let area = Area(map_page.0 / MAP_PAGES_PER_AREA);
        let taken = self.despite_moves(|| {
            let lane = self.lanes.get(area);
            match state(lane) {
                SMALL
                    if lane & ISOLATED == 0
                        && except != rows::ALL
                        && self.swap_row(map_page.0, except, rows::ALL) =>
                {
                    Ok(Claim::Row(map_page, rows::ALL & !except))
                }
                FREE if except == 0 => {
                    self.take_areas_at(area, 1).map(|()| Claim::Area(MapPage(area.first_row())))
                }
                _ => Err(AllocError::Busy),
            }
        });
        // Hardly ever for lack of memory: an area with something materialised was in use, and has its tables.
        taken.ok()
    }

    /// Takes some free page of `map_page`, or its whole area if that is free. Nothing if no page of it is free, or if it
    /// is isolated.
    pub(crate) fn take_any(&self, map_page: MapPage) -> Result<Option<Claim>, OutOfMemory> {
        let area = Area(map_page.0 / MAP_PAGES_PER_AREA);
        let taken = self.despite_moves(|| {
            let lane = self.lanes.get(area);
            match state(lane) {
                SMALL if lane & ISOLATED == 0 => self
                    .take_in_row(map_page.0, Order::ZERO)
                    .map(|pfn| Claim::Row(map_page, 1 << (pfn.0 % PAGES_PER_MAP_PAGE)))
                    .ok_or(AllocError::Busy),
                FREE => self.take_areas_at(area, 1).map(|()| Claim::Area(MapPage(area.first_row()))),
                _ => Err(AllocError::Busy),
            }
        });
        match taken {
            Ok(claim) => Ok(Some(claim)),
            Err(AllocError::OutOfMemory) => Err(OutOfMemory),
            // In use, or being allocated or freed just now.
            Err(_) => Ok(None),
        }
    }

    /// Takes the area that begins at `map_page`, if it is free as a whole just now.
    pub(crate) fn take_area(&self, map_page: MapPage) -> Option<Claim> {
        let area = Area(map_page.0 / MAP_PAGES_PER_AREA);
        let is_free = self.lanes.get(area) & !ONES == FREE;
        // As in `take_map_page`, no memory is needed where something is materialised; elsewhere there is nothing to fold.
        (is_free && self.take_free_areas_at(area, 1).is_ok()).then_some(Claim::Area(map_page))
    }

    /// Whether at least a quarter of the GiB around `map_page` is free, in whole areas.
    pub(crate) fn is_mostly_free(&self, map_page: MapPage) -> bool {
        let tree = Area(map_page.0 / MAP_PAGES_PER_AREA).tree();
        self.lanes.count(tree, Set::Free) * 4 >= AREAS_PER_TREE
    }

    /// Gives the pages of a claim back.
    pub(crate) fn give_claim(&self, claim: Claim) {
        let given = match claim {
            Claim::Row(map_page, pages) => self.free_mask(map_page, pages),
            Claim::Area(first) => self.free_whole(Area(first.0 / MAP_PAGES_PER_AREA), 1),
        };
        // A claim's pages are taken until here, whatever else happens in their area.
        debug_assert!(given.is_ok(), "not claimed");
    }

    // ---- broken pages ------------------------------------------------------------------------------------------

    /// Makes sure that no call below needs memory for pages of the area at `pfn`, now or when it comes online.
    pub(crate) fn prepare_withholding(&self, pfn: Pfn) -> Result<(), OutOfMemory> {
        let area = Area(pfn.0 >> AREA_ORDER);
        self.lanes.ensure_trees(area.tree()..area.tree() + 1)?;
        self.lanes.ensure(area.tree())?;
        self.rows.materialise(area.first_row()..area.first_row() + MAP_PAGES_PER_AREA)
    }

    /// Takes those pages of `mask` in one map page that are free. Returns them.
    pub(crate) fn take_free_of(&self, map_page: MapPage, mask: u64) -> u64 {
        (0..PAGES_PER_MAP_PAGE)
            .map(|bit| 1 << bit)
            .filter(|bit| mask & bit != 0)
            // Taken, isolated or gone: then it is not free. Its tables are there (see `prepare_withholding`).
            .filter(|&bit| self.despite_moves(|| self.alloc_mask(map_page, bit)).is_ok())
            .sum()
    }

    /// Gives back a block that the caller owns, but for pages that `keep` names for each map page. Those stay taken. Their
    /// tables are there.
    pub(crate) fn free_but(&self, pfn: Pfn, order: Order, keep: impl Fn(MapPage) -> u64) {
        if order.get() <= MAP_PAGE_ORDER {
            let bit = (pfn.0 % PAGES_PER_MAP_PAGE) as u32;
            return self.free_mask_but(pfn.map_page(), rows::mask(bit, order.get()), &keep);
        }
        let map_pages = pfn.map_page().0..pfn.map_page().0 + order.map_pages();
        if order.get() < AREA_ORDER {
            return map_pages.map(MapPage).for_each(|row| self.free_mask_but(row, rows::ALL, &keep));
        }
        for first in map_pages.step_by(MAP_PAGES_PER_AREA as usize).map(MapPage) {
            let rows = (first.0..first.0 + MAP_PAGES_PER_AREA).map(MapPage);
            if rows.clone().any(|row| keep(row) != 0) {
                self.split_whole(first.first_pfn(), Order::AREA);
                rows.for_each(|row| self.free_mask_but(row, rows::ALL, &keep));
            } else {
                self.give_claim(Claim::Area(first));
            }
        }
    }

    fn free_mask_but(&self, map_page: MapPage, mask: u64, keep: &impl Fn(MapPage) -> u64) {
        let mask = mask & !keep(map_page);
        if mask != 0 {
            self.give_claim(Claim::Row(map_page, mask));
        }
    }

    // ---- splitting and collapsing ------------------------------------------------------------------------------

    /// Makes sure that [`split_whole`](Self::split_whole) of the block cannot fail.
    pub(crate) fn prepare_split(&self, pfn: Pfn, order: Order) -> Result<(), OutOfMemory> {
        if order.get() < AREA_ORDER {
            return Ok(());
        }
        let first = pfn.map_page().0;
        self.rows.materialise(first..first + order.map_pages())
    }

    /// Turns the whole areas of a block that the caller owns into small pages that the caller owns.
    pub(crate) fn split_whole(&self, pfn: Pfn, order: Order) {
        if order.get() < AREA_ORDER {
            return;
        }
        let first = pfn.0 >> AREA_ORDER;
        for area in (first..first + (1 << (order.get() - AREA_ORDER))).map(Area) {
            if self.lanes.get(area) & ONES == 0 {
                for row in area.first_row()..area.first_row() + MAP_PAGES_PER_AREA {
                    self.store_row(row, rows::ALL);
                }
            }
            self.lanes.update(area, |lane| (state(lane) == WHOLE).then_some(SMALL | FULL | lane & ISOLATED));
        }
    }

    /// The inverse of [`split_whole`](Self::split_whole): the caller owns every page of the block, one by one.
    pub(crate) fn join_whole(&self, pfn: Pfn, order: Order) {
        if order.get() < AREA_ORDER {
            return;
        }
        let first = pfn.0 >> AREA_ORDER;
        for area in (first..first + (1 << (order.get() - AREA_ORDER))).map(Area) {
            self.leave_small(area, WHOLE | ONES);
        }
    }

    // ---- coming online, and counting ---------------------------------------------------------------------------

    /// As [`prepare_online`](Self::prepare_online), for whichever whole areas of `pages`.
    pub(crate) fn prepare_parts(&self, pages: &Range<u64>) -> Result<(), OutOfMemory> {
        self.prepare_online(pages)?;
        (pages.start >> TREE_ORDER..pages.end.div_ceil(1 << TREE_ORDER))
            .try_for_each(|tree| self.lanes.ensure(tree))
    }

    /// Makes sure that [`online`](Self::online) of `pages` has all tables it needs.
    pub(crate) fn prepare_online(&self, pages: &Range<u64>) -> Result<(), OutOfMemory> {
        let trees = pages.start >> TREE_ORDER..pages.end.div_ceil(1 << TREE_ORDER);
        self.lanes.ensure_trees(trees.clone())?;
        // Everything that can fail comes first: the tables of what is not covered whole, at either end.
        for edge in [pages.start, pages.end] {
            if edge % (1 << TREE_ORDER) != 0 {
                self.lanes.ensure(edge >> TREE_ORDER)?;
            }
            if edge % AREA_PAGES != 0 {
                let row = Area(edge >> AREA_ORDER).first_row();
                self.rows.materialise(row..row + MAP_PAGES_PER_AREA)?;
            }
        }
        Ok(())
    }

    /// Adds `pages` as free memory. The caller has prepared it, has made sure that nothing was online there, and is the
    /// only one who adds or removes memory in those GiB.
    pub(crate) fn online(&self, pages: Range<u64>) {
        self.begin(pages, FREE);
    }

    /// As [`online`](Self::online), but taken: all of it is the caller's. Whole areas only.
    pub(crate) fn online_taken(&self, pages: Range<u64>) {
        self.begin(pages, WHOLE);
    }

    fn begin(&self, pages: Range<u64>, as_state: u8) {
        if pages.start >= pages.end {
            return;
        }
        for tree in pages.start >> TREE_ORDER..pages.end.div_ceil(1 << TREE_ORDER) {
            let (covered, is_whole) = in_tree(tree, &pages);
            if !self.lanes.is_online(tree) {
                let all_free = is_whole && as_state == FREE;
                self.lanes.begin_online(tree, all_free);
                if all_free {
                    continue;
                }
            }
            for area in covered.start >> AREA_ORDER..covered.end.div_ceil(AREA_PAGES) {
                self.online_area(Area(area), &covered, as_state);
            }
        }
    }

    fn online_area(&self, area: Area, pages: &Range<u64>, as_state: u8) {
        let area_pages = area.0 << AREA_ORDER..(area.0 + 1) << AREA_ORDER;
        if pages.start <= area_pages.start && area_pages.end <= pages.end {
            let joined =
                self.lanes.update(area, |lane| (state(lane) == ABSENT).then_some(lane & ONES | as_state));
            if as_state == FREE {
                self.lanes.raise(area.tree(), Set::Free, u64::from(joined.is_some()));
            }
            return;
        }
        // Memory begins or ends inside the area: small pages, with the missing ones taken for ever.
        let rows = area.first_row()..area.first_row() + MAP_PAGES_PER_AREA;
        let is_new = state(self.lanes.get(area)) == ABSENT;
        for row in rows {
            let first = row * PAGES_PER_MAP_PAGE;
            let present = (0..PAGES_PER_MAP_PAGE)
                .filter(|bit| pages.contains(&(first + bit)))
                .fold(0u64, |mask, bit| mask | 1 << bit);
            if is_new {
                self.store_row(row, rows::ALL & !present);
            } else if let Some(word) = self.rows.get(row) {
                word.fetch_and(!present, Ordering::Release);
            }
        }
        if is_new {
            // Whatever the lane remembers of its rows (`ONES`): they were written just now.
            self.lanes.update(area, |lane| (state(lane) == ABSENT).then_some(SMALL | FULL));
        }
        self.after_free(area);
    }

    /// Free pages, counted. Exact while nothing moves.
    pub(crate) fn free_pages(&self) -> u64 {
        (0..self.lanes.trees())
            .filter(|&tree| self.lanes.is_online(tree))
            .map(|tree| match self.lanes.count(tree, Set::Free) {
                AREAS_PER_TREE => AREAS_PER_TREE * AREA_PAGES,
                _ => (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE)
                    .map(|area| self.free_in_area(Area(area)))
                    .sum(),
            })
            .sum()
    }

    /// Whether all of `pages` pages from `first` on (whole areas) lie in free areas.
    pub(crate) fn is_free(&self, first: Pfn, pages: u64) -> bool {
        let mut area = first.0 >> AREA_ORDER;
        let end = area + (pages >> AREA_ORDER);
        while area < end {
            let tree = Area(area).tree();
            let is_whole = self.lanes.count(tree, Set::Free) == AREAS_PER_TREE;
            if !is_whole && (!self.lanes.is_online(tree) || state(self.lanes.get(Area(area))) != FREE) {
                return false;
            }
            area = if is_whole { (tree + 1) * AREAS_PER_TREE } else { area + 1 };
        }
        true
    }

    fn free_in_area(&self, area: Area) -> u64 {
        match state(self.lanes.get(area)) {
            FREE => AREA_PAGES,
            SMALL => self.area_rows(area).map(|row| u64::from((!row & rows::ALL).count_ones())).sum(),
            _ => 0,
        }
    }

    /// Which pages of `map_page` are taken, as a mask; what has no memory counts as taken.
    pub(crate) fn taken_mask(&self, map_page: MapPage) -> u64 {
        let area = Area(map_page.0 / MAP_PAGES_PER_AREA);
        if !self.lanes.is_online(area.tree()) {
            return rows::ALL;
        }
        match state(self.lanes.get(area)) {
            FREE => 0,
            SMALL => self.row(map_page.0),
            _ => rows::ALL,
        }
    }

    /// Whether the allocator's own counts and hints fit its lanes and rows, with nothing moving. The first misfit.
    pub(crate) fn check(&self) -> Result<(), Misfit> {
        // A tree that is free as a whole is believed: its lanes may never have been written.
        let is_whole = |tree| self.lanes.count(tree, Set::Free) == AREAS_PER_TREE;
        for tree in (0..self.lanes.trees()).filter(|&tree| self.lanes.is_online(tree) && !is_whole(tree)) {
            let lanes = || {
                (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(|area| self.lanes.get(Area(area)))
            };
            let free = lanes().filter(|lane| lane & !ONES == FREE).count() as u64;
            let open = lanes().filter(|&lane| lane == SMALL).count() as u64;
            if free != self.lanes.count(tree, Set::Free) || open != self.lanes.count(tree, Set::Open) {
                return Err(Misfit::TreeCount { tree });
            }
            for area in (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(Area) {
                let lane = self.lanes.get(area);
                if lane == FREE {
                    continue;
                }
                let ones = self.area_rows(area).all(|row| row == rows::ALL);
                let zero = self.area_rows(area).all(|row| row == 0);
                let fits = match (state(lane), lane & ONES != 0) {
                    (FREE | WHOLE | ABSENT, true) => ones,
                    (FREE | WHOLE, false) => zero,
                    _ => true,
                };
                if !fits {
                    return Err(Misfit::Rows { first_pfn: area.0 << AREA_ORDER });
                }
            }
        }
        Ok(())
    }
}

/// How the allocator contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A tree's counts are not those of its lanes.
    TreeCount {
        /// The tree (GiB number).
        tree: u64,
    },
    /// An area's rows do not fit its lane.
    Rows {
        /// First page of the area.
        first_pfn: u64,
    },
}

/// All of `0..n` once, beginning at `start`.
fn around(start: u64, n: u64) -> impl Iterator<Item = u64> {
    let start = if start < n { start } else { 0 };
    (start..n).chain(0..start)
}

/// The part of `pages` in `tree`, and whether that is all of it.
fn in_tree(tree: u64, pages: &Range<u64>) -> (Range<u64>, bool) {
    let whole = tree << TREE_ORDER..(tree + 1) << TREE_ORDER;
    let covered = pages.start.max(whole.start)..pages.end.min(whole.end);
    let is_whole = covered == whole;
    (covered, is_whole)
}
