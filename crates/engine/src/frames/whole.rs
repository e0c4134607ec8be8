//! Blocks of an area (2 MiB) and more: runs of lanes.

use core::ops::Range;

use super::error::{AllocError, NotOwned};
use super::lanes::{ABSENT, Area, FULL, ISOLATED, ONES, SMALL, Set, WHOLE, state};
use super::tables::{CpuSlot, Frames, NEAR, TRIES, around};
use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Order, Pfn, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::stock::{Source, frames_for};
use crate::sync::spin_loop;

impl<M: Mapping> Frames<M> {
    /// The state of the area that `pfn` lies in.
    #[inline]
    pub(super) fn area_state(&self, pfn: Pfn) -> u8 {
        state(self.lanes.get(Area(pfn.0 >> AREA_ORDER)))
    }

    pub(super) fn alloc_whole(
        &self,
        order: Order,
        slot: &CpuSlot,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<Pfn, AllocError> {
        let areas = 1 << (order.get() - AREA_ORDER);
        let trees = self.lanes.trees();
        let home = slot.home().tree();
        let first = |tree: u64| Area(tree * AREAS_PER_TREE);
        // First a tree near by that is broken already, so that whole GiB last.
        let near = around(home, trees).take(NEAR as usize).map(|tree| (tree, AREAS_PER_TREE - 1));
        for (tree, most) in near.chain(around(home, trees).map(|tree| (tree, AREAS_PER_TREE))) {
            if (areas..=most).contains(&self.lanes.count(tree, Set::Free))
                && let Some(pfn) = self.take_whole_in(first(tree), areas, give_back)?
            {
                slot.set_home(Area::of(pfn.row()));
                return Ok(pfn);
            }
        }
        Err(AllocError::NoBlock)
    }

    /// Takes `areas` adjacent areas in the tree of `near`, looking there first.
    #[inline]
    pub(super) fn take_whole_in(
        &self,
        near: Area,
        areas: u64,
        give_back: impl Fn(Range<u64>),
    ) -> Result<Option<Pfn>, AllocError> {
        let tree = near.tree();
        if !self.lanes.lower(tree, Set::Free, areas) {
            return Ok(None);
        }
        if areas == 1
            && self.lanes.are_writable(tree)
            && let Some(area) = self.lanes.take_near(near)
        {
            return Ok(Some(area.first_pfn()));
        }
        // A single lane is promised by the count; others may be moving while we look, so look more than once. A longer
        // run may not exist.
        for _ in 0..TRIES {
            let Some(area) = self.lanes.find_free_run(near, areas) else {
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
                Ok(()) => return Ok(Some(area.first_pfn())),
                Err(0) => {}
                Err(done) => {
                    self.give_part(area, areas, done, give_back);
                    return Ok(None);
                }
            }
        }
        self.lanes.raise(tree, Set::Free, areas);
        Ok(None)
    }

    /// Gives back the first `done` areas of a run, for which the free count was lowered: the others could not be taken.
    #[cold]
    fn give_part(&self, area: Area, areas: u64, done: u64, give_back: impl Fn(Range<u64>)) {
        self.lanes.raise(area.tree(), Set::Free, areas - done);
        if done > 0 {
            give_back(area.first_pfn().0..Area(area.0 + done).first_pfn().0);
        }
    }

    #[inline]
    pub(super) fn free_whole(&self, area: Area, areas: u64) -> Result<(), NotOwned> {
        let counted = if areas == 1 {
            self.lanes.give_one(area).ok_or(NotOwned)?
        } else if (area.0..area.0 + areas).any(|area| state(self.lanes.get(Area(area))) != WHOLE) {
            return Err(NotOwned);
        } else {
            self.lanes.give_run(area, areas)
        };
        self.lanes.raise(area.tree(), Set::Free, counted);
        Ok(())
    }

    pub(super) fn take_areas_at(
        &self,
        area: Area,
        areas: u64,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<(), AllocError> {
        match self.take_free_areas_at(area, areas, give_back) {
            Err(AllocError::Busy) => {
                // One of them may be empty, but reserved by a CPU for small pages.
                self.drain();
                self.take_free_areas_at(area, areas, give_back)
            }
            done => done,
        }
    }

    fn take_free_areas_at(
        &self,
        area: Area,
        areas: u64,
        give_back: impl Fn(Range<u64>),
    ) -> Result<(), AllocError> {
        let tree = area.tree();
        if !self.lanes.lower(tree, Set::Free, areas) {
            return Err(if self.lanes.is_online(tree) { AllocError::Busy } else { AllocError::Absent });
        }
        if let Err(out_of_memory) = self.lanes.ensure(tree) {
            self.lanes.raise(tree, Set::Free, areas);
            return Err(out_of_memory.into());
        }
        let Err(done) = self.lanes.take_free_run(area, areas) else { return Ok(()) };
        self.give_part(area, areas, done, give_back);
        let absent = (area.0..area.0 + areas).any(|area| state(self.lanes.get(Area(area))) == ABSENT);
        Err(if absent { AllocError::Absent } else { AllocError::Busy })
    }

    /// Takes one area, if it is free; [`take_areas_at`](Self::take_areas_at) drains the CPUs' slots for it, too.
    pub(super) fn take_free_area(&self, area: Area) -> Result<(), AllocError> {
        // One lane is taken, or not.
        self.take_free_areas_at(area, 1, |_| ())
    }

    /// Makes sure that [`split_whole`](Self::split_whole) of the block cannot fail.
    pub(crate) fn prepare_split(
        &self,
        pfn: Pfn,
        order: Order,
        source: &mut Source<'_>,
    ) -> Result<(), OutOfMemory> {
        if order.get() < AREA_ORDER {
            return Ok(());
        }
        let first = pfn.row().0;
        self.rows.materialise_from(first..first + order.rows(), source)
    }

    /// Frames that [`prepare_split`](Self::prepare_split) of a folio of that order takes at most.
    pub(crate) fn frames_for_split(&self, order: Order) -> u64 {
        match order.get() < AREA_ORDER {
            true => 0,
            false => frames_for(self.rows.mapping(), &self.rows.bytes_of(0..order.rows())),
        }
    }

    /// Turns the whole areas of a block that the caller owns into small pages that the caller owns.
    pub(crate) fn split_whole(&self, pfn: Pfn, order: Order) {
        if order.get() < AREA_ORDER {
            return;
        }
        let first = pfn.0 >> AREA_ORDER;
        for area in (first..first + (1 << (order.get() - AREA_ORDER))).map(Area) {
            if self.lanes.get(area) & ONES == 0 {
                for row in area.row_numbers() {
                    self.store_row(row, Row::ALL);
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
}
