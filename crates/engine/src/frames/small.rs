//! Blocks below an area: bits in rows, inside areas that were opened for small pages.
//!
//! A CPU takes its small pages in an area that it has *reserved*. When the area has no room any more, or is drained, it is
//! *retired*: open for others again, or full, or empty. An area that is empty is *closed*: a free area again.

use core::ops::Range;

use super::error::{AllocError, NotOwned};
use super::lanes::{Area, FREE, FULL, ISOLATED, ONES, RESERVED, SMALL, Set, state};
use super::rows;
use super::tables::{CpuSlot, Frames, NEAR, TRIES, around};
use crate::geometry::{AREAS_PER_TREE, Order, Pfn, ROW_ORDER, ROWS_PER_AREA, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{Ordering, spin_loop};

impl<M: Mapping> Frames<M> {
    pub(super) fn alloc_small(
        &self,
        order: Order,
        slot: &CpuSlot,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<Pfn, AllocError> {
        loop {
            let hint = slot.row.load(Ordering::Acquire);
            if let Some(row) = hint.checked_sub(1) {
                if let Some(pfn) = self.take_in_area(row, order, give_back) {
                    let now = pfn.row().0;
                    if now != row {
                        // Only where to look first next time; losing the race loses nothing.
                        let _ =
                            slot.row.compare_exchange(hint, now + 1, Ordering::Relaxed, Ordering::Relaxed);
                    }
                    return Ok(pfn);
                }
                if slot.row.compare_exchange(hint, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    self.retire(Area(row / ROWS_PER_AREA));
                }
            }
            let area = self.reserve_area(order, slot)?;
            let hint = area.first_row() + 1;
            let taken = self.take_in_area(area.first_row(), order, give_back);
            if slot.row.compare_exchange(0, hint, Ordering::Release, Ordering::Relaxed).is_err() {
                // Another CPU with the same slot was faster: one reserved area a slot is enough.
                self.retire(area);
            }
            if let Some(pfn) = taken {
                return Ok(pfn);
            }
        }
    }

    /// Takes `2^order` pages in the area of `row`, looking at `row` first.
    fn take_in_area(&self, row: u64, order: Order, give_back: impl Fn(Range<u64>) + Copy) -> Option<Pfn> {
        let first = row - row % ROWS_PER_AREA;
        let at = |index: u64| first + (row + index) % ROWS_PER_AREA;
        if order.get() <= ROW_ORDER {
            return (0..ROWS_PER_AREA).find_map(|index| self.take_in_row(at(index), order));
        }
        let span = order.rows();
        let mut blocks = (0..ROWS_PER_AREA / span).map(|index| {
            let start = first + index * span;
            start..start + span
        });
        blocks.find_map(|rows| {
            // The swap looks at the first row itself.
            let is_free = rows.clone().skip(1).all(|row| self.row(row) == 0);
            if is_free { self.take_block_of_rows(rows, give_back) } else { None }
        })
    }

    /// Takes all pages of all `rows`, if they are free.
    pub(super) fn take_block_of_rows(&self, rows: Range<u64>, give_back: impl Fn(Range<u64>)) -> Option<Pfn> {
        let first = Row(rows.start).first_pfn();
        match self.take_rows(rows) {
            Ok(()) => Some(first),
            Err(taken) => {
                if !taken.is_empty() {
                    give_back(first.0..Row(taken.end).first_pfn().0);
                }
                None
            }
        }
    }

    #[inline]
    pub(super) fn take_in_row(&self, row: u64, order: Order) -> Option<Pfn> {
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
                Ok(_) => return Some(Row(row).first_pfn().plus(u64::from(bit))),
                Err(other) => now = other,
            }
        }
    }

    /// Takes all pages of all `rows`. If that fails, those rows that were taken until then, which are the caller's.
    fn take_rows(&self, rows: Range<u64>) -> Result<(), Range<u64>> {
        match rows.clone().find(|&row| !self.swap_row(row, 0, Row::ALL)) {
            None => Ok(()),
            Some(row) => Err(rows.start..row),
        }
    }

    pub(super) fn swap_row(&self, row: u64, from: u64, to: u64) -> bool {
        // Acquire, as `take_in_row`. Release: see `despite_moves`.
        self.rows
            .get(row)
            .is_some_and(|word| word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Sets a row all of whose set bits are the caller's.
    pub(super) fn store_row(&self, row: u64, value: u64) {
        if let Some(word) = self.rows.get(row) {
            // Release: what the owner did before giving back happens before the next owner. A swap keeps the release
            // sequence of the others' read-modify-writes.
            word.swap(value, Ordering::Release);
        }
    }

    pub(super) fn row(&self, row: u64) -> u64 {
        self.rows.get(row).map_or(Row::ALL, |word| word.load(Ordering::Acquire))
    }

    pub(super) fn area_rows(&self, area: Area) -> impl Iterator<Item = u64> + '_ {
        area.row_numbers().map(|row| self.row(row))
    }

    /// An area for small pages, reserved for the caller, with room for `order`.
    fn reserve_area(&self, order: Order, slot: &CpuSlot) -> Result<Area, AllocError> {
        let trees = self.lanes.trees();
        let home = slot.home();
        let all = |tree: u64| tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE;
        // On from the last one: what lies behind has had the time to be given back, page by page. Taking what has one page
        // only would cost a search a page.
        let behind = home.0.saturating_add(1);
        let near = core::iter::once(behind..all(home.tree()).end)
            .chain(around(home.tree(), trees).skip(1).take(NEAR as usize).map(all))
            .chain(core::iter::once(all(home.tree()).start..behind));
        for areas in near {
            if let Some(area) = self.reserve_open(areas, order) {
                slot.set_home(area);
                return Ok(area);
            }
        }
        for tree in around(home.tree(), trees) {
            let near = if tree == home.tree() { home } else { Area(all(tree).start) };
            if let Some(area) = self.open_free(near)? {
                slot.set_home(area);
                return Ok(area);
            }
        }
        // Nothing free, and nothing open near by: far away, then.
        let found = around(home.tree(), trees).find_map(|tree| self.reserve_open(all(tree), order));
        found.ok_or(AllocError::NoBlock)
    }

    /// Reserves an open one of `areas`, all of one tree, with room for `order`.
    fn reserve_open(&self, areas: Range<u64>, order: Order) -> Option<Area> {
        let tree = Area(areas.start).tree();
        if areas.is_empty() || !self.lanes.lower(tree, Set::Open, 1) {
            return None;
        }
        let found = areas.map(Area).find(|&area| {
            self.lanes.get(area) == SMALL
                && self.has_room(area, order)
                && self.lanes.replace(area, SMALL, SMALL | RESERVED)
        });
        if found.is_none() {
            self.lanes.raise(tree, Set::Open, 1);
        }
        found
    }

    pub(super) fn has_room(&self, area: Area, order: Order) -> bool {
        let mut clear = 0;
        let span = order.rows();
        self.area_rows(area).enumerate().any(|(index, row)| {
            if order.get() <= ROW_ORDER {
                return rows::find(row, order.get()).is_some();
            }
            // Orders between a row and an area: `span` clear rows, aligned.
            clear = if (index as u64).is_multiple_of(span) { 0 } else { clear };
            clear += u64::from(row == 0);
            (index as u64 + 1).is_multiple_of(span) && clear == span
        })
    }

    /// Breaks a free area of the tree of `near` into small pages, reserved for the caller. Looks at `near` first.
    fn open_free(&self, near: Area) -> Result<Option<Area>, AllocError> {
        let tree = near.tree();
        if !self.lanes.lower(tree, Set::Free, 1) {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let Some(area) = self.lanes.find_free_run(near, 1) else {
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
    pub(super) fn open(&self, area: Area) -> Result<bool, OutOfMemory> {
        self.lanes.ensure(area.tree())?;
        self.rows.materialise(area.row_numbers())?;
        Ok(self.move_area(|| {
            let opened = self.lanes.update(area, |lane| (lane & !ONES == FREE).then_some(SMALL | RESERVED));
            if let Some(before) = opened
                && before & ONES != 0
            {
                for row in area.row_numbers() {
                    self.store_row(row, 0);
                }
            }
            opened.is_some()
        }))
    }

    /// Ends a reservation: the area is open for others, or full, or empty and free again.
    pub(super) fn retire(&self, area: Area) {
        let is_full = self.area_rows(area).all(|row| row == Row::ALL);
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

    /// Ends all reservations.
    pub(crate) fn drain(&self) {
        self.drain_areas(0..self.lanes.trees() * AREAS_PER_TREE);
    }

    /// Ends the reservations of `areas`.
    pub(super) fn drain_areas(&self, areas: Range<u64>) {
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

    /// A page of `area` was freed: keep the lane's hints true enough.
    #[inline(never)]
    pub(super) fn after_free(&self, area: Area) {
        let mut lane = self.lanes.get(area);
        if lane == SMALL | FULL
            && self.area_rows(area).any(|row| row != Row::ALL)
            && self.lanes.replace(area, SMALL | FULL, SMALL)
        {
            self.lanes.raise(area.tree(), Set::Open, 1);
            lane = SMALL;
        }
        if lane == SMALL && self.area_rows(area).all(|row| row == 0) {
            self.close(area);
        }
    }

    /// `SMALL` and empty → `FREE`. Takes every page first, as any owner would, so that no other owner can be in it.
    fn close(&self, area: Area) {
        self.move_area(|| self.take_and_close(area));
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
        let rows = area.row_numbers();
        if let Err(taken) = self.take_rows(rows.clone()) {
            taken.for_each(|row| self.store_row(row, 0));
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
    pub(super) fn leave_small(&self, area: Area, to: u8) -> Option<u8> {
        loop {
            let lane = self.lanes.get(area);
            if state(lane) != SMALL {
                return None;
            }
            let is_open = lane & (FULL | RESERVED | ISOLATED) == 0;
            if is_open && !self.lanes.lower(area.tree(), Set::Open, 1) {
                // Another CPU lowered the count and is about to find that this area is full.
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

    /// Gives pages of one row back.
    #[inline]
    pub(crate) fn free_mask(&self, row: Row, mask: u64) -> Result<(), NotOwned> {
        let word = self.rows.get(row.0).ok_or(NotOwned)?;
        let mut before = word.load(Ordering::Relaxed);
        loop {
            if before & mask != mask {
                return Err(NotOwned);
            }
            // Release: pairs with the Acquire of the next owner. Acquire: pairs with `is_owned`, so that a hint that a
            // folder took before it found the page taken is seen to be gone.
            match word.compare_exchange(before, before & !mask, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => before = other,
            }
        }
        let area = Area::of(row);
        // The common case needs no look at the other rows: some CPU still reserves the area, or it is open and not
        // empty.
        let lane = self.lanes.get(area);
        if lane == SMALL | FULL || (lane == SMALL && before & !mask == 0) {
            self.after_free(area);
        }
        Ok(())
    }
}
