//! Memory that comes online.

use core::ops::Range;

use super::lanes::{ABSENT, Area, FREE, FULL, ONES, SMALL, Set, WHOLE, state};
use super::tables::{AREA_PAGES, Frames};
use crate::geometry::{AREA_ORDER, PAGES_PER_ROW, ROWS_PER_AREA, Row, TREE_ORDER};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::Ordering;

impl<M: Mapping> Frames<M> {
    /// Makes sure that any part of `pages` can be given back by itself.
    pub(super) fn prepare_rows(&self, pages: &Range<u64>) -> Result<(), OutOfMemory> {
        let areas = pages.start >> AREA_ORDER..pages.end.div_ceil(AREA_PAGES);
        self.rows.materialise(areas.start * ROWS_PER_AREA..areas.end * ROWS_PER_AREA)
    }

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
                self.rows.materialise(row..row + ROWS_PER_AREA)?;
            }
        }
        Ok(())
    }

    /// Adds `pages` as free memory. The caller has prepared it, has made sure that nothing was online there, and is the
    /// only one that adds or removes memory in those GiB.
    pub(crate) fn online(&self, pages: Range<u64>) {
        self.begin(pages, FREE);
    }

    /// As [`online`](Self::online), but taken: all of it is the caller's. Whole areas only.
    pub(crate) fn online_taken(&self, pages: Range<u64>) {
        self.begin(pages, WHOLE);
    }

    pub(super) fn begin(&self, pages: Range<u64>, as_state: u8) {
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
        let rows = area.row_numbers();
        let is_new = state(self.lanes.get(area)) == ABSENT;
        for row in rows {
            let first = row * PAGES_PER_ROW;
            let present = (0..PAGES_PER_ROW)
                .filter(|bit| pages.contains(&(first + bit)))
                .fold(0u64, |mask, bit| mask | 1 << bit);
            if is_new {
                self.store_row(row, Row::ALL & !present);
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
}

/// The part of `pages` in `tree`, and whether that is all of it.
fn in_tree(tree: u64, pages: &Range<u64>) -> (Range<u64>, bool) {
    let whole = tree << TREE_ORDER..(tree + 1) << TREE_ORDER;
    let covered = pages.start.max(whole.start)..pages.end.min(whole.end);
    let is_whole = covered == whole;
    (covered, is_whole)
}
