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
//! The layers: [`rows`] are bits, [`lanes`] are areas and trees, and [`tables`] is both with the CPUs' slots. On them stand
//! blocks below an area ([`small`]), areas and more ([`whole`]), pages asked for by number ([`particular`]), pages taken without
//! a descriptor ([`claim`]), and ranges taken out of circulation ([`isolate`]). Memory comes in by [`online`].

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
mod tables;
mod whole;

use core::ops::Range;

use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Order, PAGES_PER_ROW, Pfn, ROW_ORDER, Row};
use crate::mapping::Mapping;
use crate::sync::Ordering;
use error::{AllocError, NotOwned};
use lanes::{Area, ISOLATED, SMALL, state};
use tables::{CpuSlot, TRIES};
pub(crate) use tables::{Frames, SLOTS};

impl<M: Mapping> Frames<M> {
    /// Takes a block of `order`. `cpu` is the caller's CPU, as [`crate::platform::Platform::cpu`].
    ///
    /// `give_back` gets what was taken of a block of several rows or words of lanes that turned out not to be all free. Those
    /// who looked for these pages meanwhile (a folder, someone who records poison) have found them in use: it gives them back
    /// as one gives back what was in use.
    #[inline]
    pub(crate) fn alloc(
        &self,
        order: Order,
        cpu: usize,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<Pfn, AllocError> {
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
            && let Some(pfn) = self.take_whole_in(slot.home(), 1 << (order.get() - AREA_ORDER), give_back)?
        {
            slot.set_home(Area::of(pfn.row()));
            return Ok(pfn);
        }
        self.search(order, slot, give_back)
    }

    #[inline(never)]
    fn search(
        &self,
        order: Order,
        slot: &CpuSlot,
        give_back: impl Fn(Range<u64>) + Copy,
    ) -> Result<Pfn, AllocError> {
        let attempt = || {
            if order.get() < AREA_ORDER {
                self.alloc_small(order, slot, give_back)
            } else {
                self.alloc_whole(order, slot, give_back)
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
}
