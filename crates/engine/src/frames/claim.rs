//! Free pages taken without a descriptor: by the folder, and by those who unfold free memory.

use core::ops::Range;

use super::error::AllocError;
use super::lanes::{Area, FREE, ISOLATED, ONES, SMALL, Set, state};
use super::tables::Frames;
use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Order, Pfn, ROW_ORDER, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::Ordering;

/// Free pages that were taken without a descriptor: exactly those that [`Frames::give_claim`] gives back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the pages stay taken until they are given back"]
pub(crate) enum Claim {
    /// Pages of one row, out of an area of small pages.
    Row(Row, u64),
    /// A whole free area.
    Area(Area),
}

impl Claim {
    /// The pages of all its rows. Of a row, the claim may have only some.
    pub(crate) fn pages(&self) -> Range<u64> {
        let (first, order) = match *self {
            Claim::Row(row, _) => (row.first_pfn().0, ROW_ORDER),
            Claim::Area(area) => (area.0 << AREA_ORDER, AREA_ORDER),
        };
        first..first + (1 << order)
    }
}

impl<M: Mapping> Frames<M> {
    /// Whether a page of `row` outside `except` has an owner. If so, the CPU that frees that page later sees what the caller
    /// did before this call. A plain load does not give that: each of the two could miss what the other has done.
    pub(crate) fn is_owned(&self, row: Row, except: u64) -> bool {
        let look = || match self.look(row) & !except {
            0 => Ok(()),
            _ => Err(AllocError::Busy),
        };
        self.despite_moves(look).is_err()
    }

    /// As [`taken_mask`](Self::taken_mask), by read-modify-writes.
    fn look(&self, row: Row) -> u64 {
        let area = Area::of(row);
        if !self.lanes.is_online(area.tree()) {
            return Row::ALL;
        }
        match state(self.lanes.look(area)) {
            FREE => 0,
            // AcqRel: pairs with `free_mask`, which reads what this wrote, or is seen here.
            SMALL => self.rows.get(row.0).map_or(Row::ALL, |word| word.fetch_or(0, Ordering::AcqRel)),
            _ => Row::ALL,
        }
    }

    /// Takes every page of `row` but `except`, if all of them are free and all of `except` is taken; as part of its
    /// area if that is free whole (then `except` must be 0). Nothing where `except` is all there is: a
    /// claim of no page would own nothing.
    pub(crate) fn take_row(&self, row: Row, except: u64) -> Option<Claim> {
        let area = Area::of(row);
        let taken = self.despite_moves(|| {
            let lane = self.lanes.get(area);
            match state(lane) {
                SMALL
                    if lane & ISOLATED == 0
                        && except != Row::ALL
                        && self.swap_row(row.0, except, Row::ALL) =>
                {
                    Ok(Claim::Row(row, Row::ALL & !except))
                }
                // One lane is taken, or not: there is never a part to give back.
                FREE if except == 0 => self.take_areas_at(area, 1, |_| ()).map(|()| Claim::Area(area)),
                _ => Err(AllocError::Busy),
            }
        });
        // Hardly ever for lack of memory: an area with something materialised was in use, and has its tables.
        taken.ok()
    }

    /// Takes some free page of `row`, or its whole area if that is free. Nothing if no page of it is free, or if it
    /// is isolated.
    pub(crate) fn take_any(&self, row: Row) -> Result<Option<Claim>, OutOfMemory> {
        let area = Area::of(row);
        let taken = self.despite_moves(|| {
            let lane = self.lanes.get(area);
            match state(lane) {
                SMALL if lane & ISOLATED == 0 => self
                    .take_in_row(row.0, Order::ZERO)
                    .map(|pfn| Claim::Row(row, pfn.bit()))
                    .ok_or(AllocError::Busy),
                FREE => self.take_areas_at(area, 1, |_| ()).map(|()| Claim::Area(area)),
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

    /// Takes the area that begins at `pfn`, if it is free as a whole just now.
    pub(crate) fn take_area(&self, pfn: Pfn) -> Option<Claim> {
        let area = Area::of(pfn.row());
        let is_free = self.lanes.get(area) & !ONES == FREE;
        // As in `take_row`, no memory is needed where something is materialised; elsewhere there is nothing to fold.
        (is_free && self.take_free_area(area).is_ok()).then_some(Claim::Area(area))
    }

    /// Whether at least a quarter of the GiB around `pfn` is free, in whole areas.
    pub(crate) fn is_mostly_free(&self, pfn: Pfn) -> bool {
        let tree = Area::of(pfn.row()).tree();
        self.lanes.count(tree, Set::Free) * 4 >= AREAS_PER_TREE
    }

    /// Gives the pages of a claim back.
    pub(crate) fn give_claim(&self, claim: Claim) {
        let given = match claim {
            Claim::Row(row, pages) => self.free_mask(row, pages),
            Claim::Area(area) => self.free_whole(area, 1),
        };
        // A claim's pages are taken until here, whatever else happens in their area.
        debug_assert!(given.is_ok(), "not claimed");
    }
}
