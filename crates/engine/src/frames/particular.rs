//! Pages that are asked for by number: for owners who must have these, and for poisoned pages that are kept back.

use core::ops::Range;

use super::claim::Claim;
use super::error::AllocError;
use super::lanes::{Area, FREE, ISOLATED, RESERVED, SMALL, Set, WHOLE, state};
use super::rows;
use super::tables::Frames;
use crate::geometry::{AREA_ORDER, Order, PAGES_PER_ROW, Pfn, ROW_ORDER, Row, areas_of};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{Ordering, spin_loop};

impl<M: Mapping> Frames<M> {
    /// Takes the block of `order` at `pfn`. `give_back` as for [`alloc`](Self::alloc).
    pub(crate) fn alloc_at(
        &self,
        pfn: Pfn,
        order: Order,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<(), AllocError> {
        self.despite_moves(|| self.try_alloc_at(pfn, order, give_back))
    }

    fn try_alloc_at(
        &self,
        pfn: Pfn,
        order: Order,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<(), AllocError> {
        if !pfn.is_aligned(order) {
            return Err(AllocError::Misaligned);
        }
        let area = Area(pfn.0 >> AREA_ORDER);
        if order.get() >= AREA_ORDER {
            let areas = 1 << (order.get() - AREA_ORDER);
            return self.take_areas_at(area, areas, give_back);
        }
        if order.get() <= ROW_ORDER {
            let bit = (pfn.0 % PAGES_PER_ROW) as u32;
            return self.alloc_mask(pfn.row(), rows::mask(bit, order.get()));
        }
        self.make_small(area)?;
        let first = pfn.row().0;
        let taken = self.take_block_of_rows(first..first + order.rows(), give_back);
        taken.map(drop).ok_or(AllocError::Busy)
    }

    /// Takes the pages of `mask` in one row.
    pub(crate) fn alloc_mask(&self, row: Row, mask: u64) -> Result<(), AllocError> {
        self.make_small(Area::of(row))?;
        let word = self.rows.get(row.0).ok_or(AllocError::Absent)?;
        let mut now = word.load(Ordering::Relaxed);
        while now & mask == 0 {
            // Acquire, as `take_in_row`.
            match word.compare_exchange(now, now | mask, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => now = other,
            }
        }
        // The area may have been opened for nothing.
        self.after_free(Area::of(row));
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

    /// Gives an area back all of whose pages are the caller's, however they were taken.
    pub(crate) fn free_area(&self, pfn: Pfn) {
        let area = Area(pfn.0 >> AREA_ORDER);
        let given = match state(self.lanes.get(area)) {
            WHOLE => self.free_whole(area, 1),
            _ => area.row_numbers().try_for_each(|row| self.free_mask(Row(row), Row::ALL)),
        };
        debug_assert!(given.is_ok(), "{pfn} was not owned");
    }

    /// Makes sure that no call below needs memory for pages of the area at `pfn`, now or when it comes online.
    pub(crate) fn prepare_withholding(&self, pfn: Pfn) -> Result<(), OutOfMemory> {
        let area = Area(pfn.0 >> AREA_ORDER);
        self.lanes.ensure_trees(area.tree()..area.tree() + 1)?;
        self.lanes.ensure(area.tree())?;
        self.rows.materialise(area.row_numbers())
    }

    /// Takes those pages of `mask` in one row that are free. Returns them. A CPU that gives one of the others back later, or
    /// adds it, sees what the caller did before this call.
    pub(crate) fn take_free_of(&self, row: Row, mask: u64) -> u64 {
        (0..PAGES_PER_ROW)
            .map(|bit| 1 << bit)
            .filter(|bit| mask & bit != 0)
            // Taken, isolated or gone: then it is not free. Its tables are there (see `prepare_withholding`).
            .filter(|&bit| self.despite_moves(|| self.take_page(row, bit)).is_ok())
            .sum()
    }

    fn take_page(&self, row: Row, bit: u64) -> Result<(), AllocError> {
        loop {
            match self.alloc_mask(row, bit) {
                // `alloc_mask` looks by plain loads. They may be stale: another CPU may have given the page back since.
                Err(AllocError::Busy | AllocError::Absent) if self.looks_free(row, bit) => spin_loop(),
                done => return done,
            }
        }
    }

    /// Whether a page is free and in circulation, by read-modify-writes, as [`is_owned`](Self::is_owned).
    fn looks_free(&self, row: Row, bit: u64) -> bool {
        let area = Area::of(row);
        if !self.lanes.is_online(area.tree()) && !self.lanes.look_online(area.tree()) {
            return false;
        }
        let lane = self.lanes.look(area);
        match state(lane) {
            _ if lane & ISOLATED != 0 => false,
            FREE => true,
            // AcqRel: pairs with `free_mask`, which reads what this wrote, or is seen here.
            SMALL => self.rows.get(row.0).is_some_and(|word| word.fetch_or(0, Ordering::AcqRel) & bit == 0),
            _ => false,
        }
    }

    /// Gives back a block that the caller owns, but for pages that `keep` names for each row. Those stay taken. Their
    /// tables are there.
    pub(crate) fn free_but(&self, pfn: Pfn, order: Order, keep: impl Fn(Row) -> u64) {
        if order.get() <= ROW_ORDER {
            let bit = (pfn.0 % PAGES_PER_ROW) as u32;
            return self.free_mask_but(pfn.row(), rows::mask(bit, order.get()), &keep);
        }
        let pages = pfn.0..pfn.0 + order.pages();
        if order.get() < AREA_ORDER {
            return Row::covering(&pages).for_each(|row| self.free_mask_but(row, Row::ALL, &keep));
        }
        for area in areas_of(&pages).map(Area) {
            if area.rows().any(|row| keep(row) != 0) {
                self.split_whole(area.first_pfn(), Order::AREA);
                area.rows().for_each(|row| self.free_mask_but(row, Row::ALL, &keep));
            } else {
                self.give_claim(Claim::Area(area));
            }
        }
    }

    fn free_mask_but(&self, row: Row, mask: u64, keep: &impl Fn(Row) -> u64) {
        let mask = mask & !keep(row);
        if mask != 0 {
            self.give_claim(Claim::Row(row, mask));
        }
    }
}
