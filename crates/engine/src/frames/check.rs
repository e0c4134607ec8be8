//! What is free, counted; and whether counts, hints, lanes and rows fit together.

use super::lanes::{ABSENT, Area, FREE, ONES, SMALL, Set, WHOLE, state};
use super::tables::{AREA_PAGES, Frames};
use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Pfn, Row};
use crate::mapping::Mapping;

impl<M: Mapping> Frames<M> {
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
            SMALL => self.area_rows(area).map(|row| u64::from((!row & Row::ALL).count_ones())).sum(),
            _ => 0,
        }
    }

    /// Which pages of `row` are taken, as a mask; what has no memory counts as taken.
    pub(crate) fn taken_mask(&self, row: Row) -> u64 {
        let area = Area::of(row);
        if !self.lanes.is_online(area.tree()) {
            return Row::ALL;
        }
        match state(self.lanes.get(area)) {
            FREE => 0,
            SMALL => self.row(row.0),
            _ => Row::ALL,
        }
    }

    /// Whether the allocator's own counts and hints fit its lanes and rows, with nothing moving. The first misfit.
    pub(crate) fn check(&self) -> Result<(), FrameMisfit> {
        // A tree that is free as a whole is believed: its lanes may never have been written.
        let is_whole = |tree| self.lanes.count(tree, Set::Free) == AREAS_PER_TREE;
        for tree in (0..self.lanes.trees()).filter(|&tree| self.lanes.is_online(tree) && !is_whole(tree)) {
            let lanes = || {
                (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(|area| self.lanes.get(Area(area)))
            };
            let free = lanes().filter(|lane| lane & !ONES == FREE).count() as u64;
            let open = lanes().filter(|&lane| lane == SMALL).count() as u64;
            if free != self.lanes.count(tree, Set::Free) || open != self.lanes.count(tree, Set::Open) {
                return Err(FrameMisfit::TreeCount { tree });
            }
            for area in (tree * AREAS_PER_TREE..(tree + 1) * AREAS_PER_TREE).map(Area) {
                let lane = self.lanes.get(area);
                if lane == FREE {
                    continue;
                }
                let ones = self.area_rows(area).all(|row| row == Row::ALL);
                let zero = self.area_rows(area).all(|row| row == 0);
                let fits = match (state(lane), lane & ONES != 0) {
                    (FREE | WHOLE | ABSENT, true) => ones,
                    (FREE | WHOLE, false) => zero,
                    _ => true,
                };
                if !fits {
                    return Err(FrameMisfit::Rows { first_pfn: area.0 << AREA_ORDER });
                }
            }
        }
        Ok(())
    }
}

/// How the allocator contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameMisfit {
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
