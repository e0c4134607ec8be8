//! Taking a range out of circulation: nothing new is handed out in it, and what is free, or becomes free, is collected.
//!
//! It is the first step of taking memory away from the allocator: offlining, unplugging, or assembling one contiguous
//! block. What is still in use stays with its owners; they free it (or are asked to move it) and
//! [`collect`](Isolation::collect) picks it up.

use alloc::vec::Vec;
use core::ops::Range;

use super::lanes::{ABSENT, Area, FREE, FULL, ISOLATED, ONES, RESERVED, SMALL, Set, WHOLE, state};
use super::{AREA_PAGES, Frames, rows};
use crate::geometry::MAP_PAGES_PER_AREA;
use crate::platform::Mapping;
use crate::rcu::OutOfMemory;
use crate::sync::{Ordering, spin_loop};

/// A range of areas nothing new is handed out in. Dropping it gives back what was collected.
pub(crate) struct Isolation<'f, M: Mapping> {
    frames: &'f Frames<M>,
    areas: Range<u64>,
    /// A bit a page: collected. Whole rows for areas that were taken whole.
    collected: Vec<u64>,
}

impl<M: Mapping> Frames<M> {
    /// Isolates `areas` (area numbers), collecting what is free there now.
    pub(crate) fn isolate(&self, areas: Range<u64>) -> Result<Isolation<'_, M>, OutOfMemory> {
        let rows = areas.end.saturating_sub(areas.start).saturating_mul(MAP_PAGES_PER_AREA) as usize;
        let mut collected = Vec::new();
        collected.try_reserve_exact(rows).map_err(|_| OutOfMemory)?;
        collected.resize(rows, 0);
        let mut isolation = Isolation { frames: self, areas, collected };
        for area in isolation.areas.clone() {
            isolation.begin(Area(area));
        }
        isolation.collect();
        Ok(isolation)
    }
}

impl<M: Mapping> Isolation<'_, M> {
    /// Marks one area, and takes it out of the set it was counted in.
    fn begin(&mut self, area: Area) {
        let lanes = &self.frames.lanes;
        loop {
            let lane = lanes.get(area);
            let set = match (state(lane), lane & (FULL | RESERVED)) {
                (ABSENT, _) => return,
                _ if lane & ISOLATED != 0 => return,
                (FREE, _) => Some(Set::Free),
                (SMALL, 0) => Some(Set::Open),
                _ => None,
            };
            if let Some(set) = set
                && !lanes.lower(area.tree(), set, 1)
            {
                // Somebody is about to take this lane, or another one of its set: look again.
                spin_loop();
                continue;
            }
            if lanes.replace(area, lane, lane | ISOLATED) {
                return;
            }
            if let Some(set) = set {
                lanes.raise(area.tree(), set, 1);
            }
        }
    }

    /// Collects what has become free since the last time. Returns the pages that are still in use.
    pub(crate) fn collect(&mut self) -> u64 {
        let mut busy = 0;
        for area in self.areas.clone().map(Area) {
            busy += self.collect_area(area);
        }
        busy
    }

    fn collected_of(&mut self, area: Area) -> &mut [u64] {
        let first = ((area.0 - self.areas.start) * MAP_PAGES_PER_AREA) as usize;
        self.collected.get_mut(first..first + MAP_PAGES_PER_AREA as usize).unwrap_or_default()
    }

    fn collect_area(&mut self, area: Area) -> u64 {
        let frames = self.frames;
        let lane = frames.lanes.get(area);
        if state(lane) == ABSENT || lane & ISOLATED == 0 {
            return 0;
        }
        if state(lane) == FREE {
            let taken = frames.lanes.update(area, |lane| (state(lane) == FREE).then_some(lane | WHOLE));
            if taken.is_some() {
                self.collected_of(area).fill(rows::ALL);
            }
            return if taken.is_some() { 0 } else { AREA_PAGES };
        }
        if state(lane) == SMALL {
            let first = area.first_row();
            for (row, collected) in (first..).zip(self.collected_of(area)) {
                if let Some(word) = frames.rows.get(row) {
                    // Acquire, as any taking: what the last owner did happens before.
                    let before = word.fetch_or(rows::ALL, Ordering::Acquire);
                    *collected |= rows::ALL & !before;
                }
            }
        }
        self.collected_of(area).iter().map(|row| u64::from((rows::ALL & !row).count_ones())).sum()
    }

    /// Pages collected so far, as `(map page, mask)`, those with none left out.
    pub(crate) fn collected(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (self.areas.start * MAP_PAGES_PER_AREA..)
            .zip(self.collected.iter().copied())
            .filter(|&(_, mask)| mask != 0)
    }

    /// Puts the range back into circulation, with all that was collected.
    pub(crate) fn end(&mut self) {
        for area in self.areas.clone().map(Area) {
            let lane = self.frames.lanes.get(area);
            if state(lane) == ABSENT || lane & ISOLATED == 0 {
                continue;
            }
            self.end_area(area);
        }
        self.areas = 0..0;
    }

    fn end_area(&mut self, area: Area) {
        let frames = self.frames;
        let first = area.first_row();
        let lane = frames.lanes.get(area);
        let is_collected_whole =
            state(lane) == WHOLE && self.collected_of(area).iter().all(|&row| row == rows::ALL);
        if is_collected_whole {
            if frames.lanes.replace(area, lane, FREE | lane & ONES) {
                frames.lanes.raise(area.tree(), Set::Free, 1);
            }
            return;
        }
        if state(lane) == SMALL {
            for (row, collected) in (first..).zip(self.collected_of(area)) {
                if let Some(word) = frames.rows.get(row) {
                    word.fetch_and(!*collected, Ordering::Release);
                }
            }
        }
        // Its hints start afresh: `FULL` for small pages (looked at again right below), none for others.
        let ended = frames.lanes.update(area, |lane| {
            Some(match state(lane) {
                SMALL => SMALL | FULL,
                other => other | lane & ONES,
            })
        });
        if ended.is_some_and(|lane| state(lane) == FREE) {
            // Freed whole after the last collection.
            frames.lanes.raise(area.tree(), Set::Free, 1);
        }
        frames.after_free(area);
    }
}

impl<M: Mapping> Drop for Isolation<'_, M> {
    fn drop(&mut self) {
        self.end();
    }
}
