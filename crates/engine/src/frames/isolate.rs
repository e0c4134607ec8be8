//! Taking a range out of circulation: nothing new is handed out in it, and what is free, or becomes free, is collected.
//!
//! It is the first step of taking memory away from the allocator: offlining, unplugging, or assembling one contiguous
//! block. What is still in use stays with its owners; they free it (or are asked to move it) and
//! [`collect`](Isolation::collect) picks it up.

use alloc::alloc::alloc_zeroed;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt;
use core::ops::Range;

use super::lanes::{ABSENT, Area, FREE, FULL, ISOLATED, ONES, RESERVED, SMALL, Set, WHOLE, state};
use super::{AREA_PAGES, Frames};
use crate::geometry::{ROWS_PER_AREA, Row};
use crate::mapping::Mapping;
use crate::sync::{Ordering, spin_loop};

/// Why a range could not be isolated. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolateError {
    /// The range is empty, ends beyond the machine, does not begin and end at multiples of 2 MiB, or lies in several zones.
    BadRange,
    /// No memory to note what is collected: free some and retry.
    OutOfMemory,
    /// A part of the range is isolated already, or being taken offline: retry when that is over.
    Isolated,
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IsolateError::BadRange => {
                "the range must lie in one zone of the machine and be a multiple of 2 MiB"
            }
            IsolateError::Isolated => "a part of the range is isolated already: retry later",
            IsolateError::OutOfMemory => "no memory to note what is collected: free some and retry",
        })
    }
}
impl core::error::Error for IsolateError {}

/// A range of areas nothing new is handed out in. Dropping it gives back what was collected.
pub(crate) struct Isolation<'f, M: Mapping> {
    frames: &'f Frames<M>,
    areas: Range<u64>,
    /// A bit a page: collected. Whole rows for areas that were taken whole.
    collected: Vec<u64>,
    /// A bit an area, from the first one on: marked by this isolation. What had no memory then may have some by now, and
    /// may be part of another isolation.
    marked: Vec<u64>,
}

impl<M: Mapping> Frames<M> {
    /// Isolates `areas` (area numbers), collecting what is free there now.
    pub(crate) fn isolate(&self, areas: Range<u64>) -> Result<Isolation<'_, M>, IsolateError> {
        let count = areas.end.saturating_sub(areas.start);
        let collected = zeros(count.saturating_mul(ROWS_PER_AREA))?;
        let marked = zeros(count.div_ceil(64))?;
        // A CPU that takes its small pages there would not notice.
        self.drain_areas(areas.clone());
        let mut isolation = Isolation { frames: self, areas, collected, marked };
        for area in isolation.areas.clone() {
            if !isolation.begin(Area(area))? {
                // What was begun so far ends with it.
                return Err(IsolateError::Isolated);
            }
        }
        isolation.collect();
        Ok(isolation)
    }
}

/// So many zeros, or an error. The memory is not touched: most of a large range may be absent.
fn zeros(count: u64) -> Result<Vec<u64>, IsolateError> {
    let count = usize::try_from(count).map_err(|_| IsolateError::OutOfMemory)?;
    let layout = Layout::array::<u64>(count).map_err(|_| IsolateError::OutOfMemory)?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout is not empty.
    let words = unsafe { alloc_zeroed(layout) }.cast::<u64>();
    if words.is_null() {
        return Err(IsolateError::OutOfMemory);
    }
    // SAFETY: the global allocator gave the block just now, with the layout of `count` words, all of them zero.
    Ok(unsafe { Vec::from_raw_parts(words, count, count) })
}

impl<M: Mapping> Isolation<'_, M> {
    /// Marks one area, and takes it out of the set it was counted in. Whether it was not marked before. Nothing is
    /// changed on an error.
    fn begin(&mut self, area: Area) -> Result<bool, IsolateError> {
        let lanes = &self.frames.lanes;
        // Where the zone never had memory its lanes say nothing: they read as free, and were never counted.
        if !lanes.is_online(area.tree()) {
            return Ok(true);
        }
        // A tree that came online as a whole has nothing behind its lanes yet. This comes after the look at `is_online`,
        // since the tree may come online at any moment.
        lanes.ensure(area.tree()).map_err(|_| IsolateError::OutOfMemory)?;
        loop {
            let lane = lanes.get(area);
            let set = match (state(lane), lane & (FULL | RESERVED)) {
                (ABSENT, _) => return Ok(true),
                _ if lane & ISOLATED != 0 => return Ok(false),
                (FREE, _) => Some(Set::Free),
                (SMALL, 0) => Some(Set::Open),
                _ => None,
            };
            if let Some(set) = set
                && !lanes.lower(area.tree(), set, 1)
            {
                // Another CPU is about to take this lane, or another one of its set: look again.
                spin_loop();
                continue;
            }
            if lanes.replace(area, lane, lane | ISOLATED) {
                let index = area.0 - self.areas.start;
                if let Some(word) = self.marked.get_mut((index / 64) as usize) {
                    *word |= 1 << (index % 64);
                }
                return Ok(true);
            }
            if let Some(set) = set {
                lanes.raise(area.tree(), set, 1);
            }
        }
    }

    /// Whether this isolation has marked `area`, so that the area had memory then, and has it until the isolation ends.
    fn has_marked(&self, area: u64) -> bool {
        let index = area.wrapping_sub(self.areas.start);
        self.areas.contains(&area)
            && self.marked.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// Areas of the range that have memory.
    pub(crate) fn areas_with_memory(&self) -> impl Iterator<Item = u64> + '_ {
        self.areas.clone().filter(|&area| self.has_marked(area))
    }

    /// Their rows.
    pub(crate) fn rows_with_memory(&self) -> impl Iterator<Item = Row> + '_ {
        self.areas_with_memory().flat_map(|area| Area(area).rows())
    }

    /// Collects what has become free since the last time. Returns the pages that were not collected so far.
    pub(crate) fn collect(&mut self) -> u64 {
        self.frames.drain_areas(self.areas.clone());
        let mut busy = 0;
        for area in self.areas.clone().map(Area) {
            busy += self.collect_area(area);
        }
        busy
    }

    fn collected_of(&mut self, area: Area) -> &mut [u64] {
        let first = ((area.0 - self.areas.start) * ROWS_PER_AREA) as usize;
        // Always there: a row for each area that the isolation was made for.
        self.collected.get_mut(first..first + ROWS_PER_AREA as usize).unwrap_or_default()
    }

    fn collect_area(&mut self, area: Area) -> u64 {
        if !self.has_marked(area.0) {
            return 0;
        }
        let frames = self.frames;
        let lane = frames.lanes.get(area);
        if state(lane) == FREE {
            let taken = frames.lanes.update(area, |lane| (state(lane) == FREE).then_some(lane | WHOLE));
            if taken.is_some() {
                self.collected_of(area).fill(Row::ALL);
            }
            return if taken.is_some() { 0 } else { AREA_PAGES };
        }
        if state(lane) == SMALL {
            let first = area.first_row();
            for (row, collected) in (first..).zip(self.collected_of(area)) {
                if let Some(word) = frames.rows.get(row) {
                    // Acquire, as any taking: what the last owner did happens before.
                    let before = word.fetch_or(Row::ALL, Ordering::Acquire);
                    *collected |= Row::ALL & !before;
                }
            }
        }
        self.collected_of(area).iter().map(|row| u64::from((Row::ALL & !row).count_ones())).sum()
    }

    /// Pages collected so far.
    pub(crate) fn collected_pages(&self) -> u64 {
        self.collected.iter().map(|row| u64::from(row.count_ones())).sum()
    }

    /// Pages of the row that were not collected: in use, withheld, or without memory. None in areas without memory.
    pub(crate) fn missing(&self, row: Row) -> u64 {
        if !self.has_marked(row.0 / ROWS_PER_AREA) {
            return 0;
        }
        let first = self.areas.start * ROWS_PER_AREA;
        Row::ALL & !self.collected.get((row.0 - first) as usize).copied().unwrap_or(Row::ALL)
    }

    /// Pages of the range that were not collected.
    pub(crate) fn missing_pages(&self) -> u64 {
        self.rows_with_memory().map(|row| u64::from(self.missing(row).count_ones())).sum()
    }

    /// Takes the memory of the range away from the allocator for good. Every page of it is the caller's: collected, or
    /// owned otherwise.
    pub(crate) fn remove(&mut self) {
        for area in self.areas_with_memory().map(Area) {
            // The rows of small pages are all ones: collecting took them.
            self.frames.lanes.update(area, |lane| {
                let ones = if state(lane) == SMALL { ONES } else { lane & ONES };
                Some(ABSENT | ones)
            });
        }
        self.areas = 0..0;
    }

    /// Ends the isolation, but keeps what was collected: it stays taken, and is the caller's from now on.
    pub(crate) fn keep(&mut self) {
        for area in self.areas_with_memory().map(Area) {
            self.frames.lanes.update(area, |lane| {
                Some(match state(lane) {
                    SMALL => SMALL | FULL,
                    other => other | lane & ONES,
                })
            });
        }
        self.areas = 0..0;
    }

    /// Puts the range back into circulation, with all that was collected.
    pub(crate) fn end(&mut self) {
        for area in self.areas.clone() {
            if self.has_marked(area) {
                self.end_area(Area(area));
            }
        }
        self.areas = 0..0;
    }

    fn end_area(&mut self, area: Area) {
        let frames = self.frames;
        let first = area.first_row();
        let lane = frames.lanes.get(area);
        let is_collected_whole =
            state(lane) == WHOLE && self.collected_of(area).iter().all(|&row| row == Row::ALL);
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
