//! Taking a range out of circulation: nothing new is handed out in it, and what is free, or becomes free, is collected.
//!
//! It is the first step of taking memory away from the allocator: offlining, unplugging, or assembling one contiguous
//! block. What is still in use stays with its owners; they free it (or are asked to move it) and
//! [`collect`](Isolation::collect) picks it up.

use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::FromZeros;

use super::lanes::{ABSENT, Area, FREE, FULL, GROUP, ISOLATED, ONES, RESERVED, SMALL, Set, WHOLE, state};
use super::tables::{AREA_PAGES, Frames};
use crate::errors::{error_texts, from_out_of_memory};
use crate::geometry::{ROWS_PER_AREA, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{Ordering, spin_loop};

/// Why a range could not be isolated. It is in circulation as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolateError {
    /// The range is empty, ends beyond the machine, does not begin and end at multiples of 2 MiB, or lies in several zones.
    BadRange,
    /// No memory to note what is collected: free some and retry.
    OutOfMemory,
    /// A part of the range is isolated already, or being taken offline: retry when that is over.
    Isolated,
}

error_texts!(IsolateError {
    BadRange => "the range must lie in one zone of the machine and be a multiple of 2 MiB",
    Isolated => "a part of the range is isolated already: retry later",
    OutOfMemory => "no memory to note what is collected: free some and retry",
});

from_out_of_memory!(IsolateError);

/// Areas of a range in which nothing new is handed out. Dropping it gives back what was collected. Folders, and CPUs that record
/// poison, have found these pages in use meanwhile: the caller looks for poison again and tells folders.
pub(crate) struct Isolation<'f, M: Mapping> {
    frames: &'f Frames<M>,
    areas: Range<u64>,
    /// A bit an area, from the first one on: marked by this isolation. What had no memory then may have some by now, and
    /// may be part of another isolation.
    marked: Vec<u64>,
    /// Marked areas that were not free as a whole, in ascending order. The others were collected when they were marked.
    used: Vec<Used>,
}

/// An area that was in use when it was marked.
struct Used {
    area: Area,
    /// A bit a page: collected.
    rows: [u64; ROWS_PER_AREA as usize],
}

impl Used {
    fn missing(&self) -> u64 {
        self.rows.iter().map(|row| u64::from((Row::ALL & !row).count_ones())).sum()
    }
}

/// What marking one area came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    Marked,
    /// There is no memory.
    Absent,
    /// Another isolation has it.
    Isolated,
    /// It is in use, and only free areas are wanted.
    InUse,
}

impl<M: Mapping> Frames<M> {
    /// An isolation that may come to have areas of `areas` (area numbers), and has none so far.
    pub(crate) fn isolation(&self, areas: Range<u64>) -> Result<Isolation<'_, M>, OutOfMemory> {
        let count = areas.end.saturating_sub(areas.start);
        let words = usize::try_from(count.div_ceil(64)).map_err(|_| OutOfMemory)?;
        // The memory is not touched: most of a large range may be absent.
        let marked = u64::new_vec_zeroed(words).map_err(|_| OutOfMemory)?;
        // A CPU that takes its small pages there would not notice. And what it has emptied is free as a whole then.
        self.drain_areas(areas.clone());
        Ok(Isolation { frames: self, areas, marked, used: Vec::new() })
    }

    /// Whether all of `areas` are free just now.
    fn are_free(&self, mut areas: Range<u64>) -> bool {
        areas.all(|area| {
            let lane = self.lanes.get(Area(area));
            self.lanes.is_online(Area(area).tree()) && lane & !ONES == FREE
        })
    }
}

impl<M: Mapping> Isolation<'_, M> {
    /// Isolates all areas of its range that have memory, and collects what is free there now. What was isolated until an
    /// error stays so.
    pub(crate) fn isolate_all(&mut self) -> Result<(), IsolateError> {
        let mut is_all = true;
        self.mark(self.areas.clone(), false, |begun| {
            is_all = begun != Begun::Isolated;
            is_all
        })?;
        if !is_all {
            return Err(IsolateError::Isolated);
        }
        self.collect();
        Ok(())
    }

    /// Isolates what can be isolated of `parts` (ascending, not empty, of its range), and collects what is free there now.
    /// `only_free`: no more than pieces of `piece` areas (of which each part is a whole number) that are free as a whole.
    /// What was isolated until an error stays so.
    pub(crate) fn isolate_parts(
        &mut self,
        parts: &[Range<u64>],
        piece: u64,
        only_free: bool,
    ) -> Result<(), OutOfMemory> {
        for part in parts {
            if !only_free || piece <= 1 {
                self.mark(part.clone(), only_free, |_| true)?;
                continue;
            }
            let mut first = part.start;
            while first < part.end {
                let areas = first..first.saturating_add(piece).min(part.end);
                if self.frames.are_free(areas.clone()) {
                    self.mark(areas.clone(), true, |_| true)?;
                }
                first = areas.end;
            }
        }
        self.collect();
        Ok(())
    }

    /// Marks `areas`, which come after all that were marked before, and collects what is free. `go_on` hears what each came
    /// to that was not free, and may end it. What was marked until an error stays marked.
    fn mark(
        &mut self,
        areas: Range<u64>,
        only_free: bool,
        mut go_on: impl FnMut(Begun) -> bool,
    ) -> Result<(), OutOfMemory> {
        let frames = self.frames;
        let lanes = &frames.lanes;
        let mut next = areas.start;
        while next < areas.end {
            let group = Area(next)..Area(areas.end.min((next / GROUP + 1) * GROUP));
            // Where the zone never had memory its lanes say nothing: they read as free, and were never counted.
            if !lanes.is_online(group.start.tree()) {
                next = group.end.0;
                if !go_on(Begun::Absent) {
                    return Ok(());
                }
                continue;
            }
            // A tree that came online as a whole has nothing behind its lanes yet. This comes after the look at
            // `is_online`, since the tree may come online at any moment.
            lanes.ensure(group.start.tree())?;
            let free = lanes.isolate_free(group.clone());
            let is_free = |area: &u64| free >> (area - next) & 1 != 0;
            let areas = next..group.end.0;
            // All of them first: what is marked and not noted would stay so.
            areas.clone().filter(is_free).for_each(|area| self.note(Area(area)));
            for area in areas.filter(|area| !is_free(area)) {
                if !go_on(self.begin(Area(area), only_free)?) {
                    return Ok(());
                }
            }
            next = group.end.0;
        }
        Ok(())
    }

    fn note(&mut self, area: Area) {
        let index = area.0 - self.areas.start;
        if let Some(word) = self.marked.get_mut((index / 64) as usize) {
            *word |= 1 << (index % 64);
        }
    }

    /// Marks one area, and takes it out of the set it was counted in. Nothing is changed on an error.
    fn begin(&mut self, area: Area, only_free: bool) -> Result<Begun, OutOfMemory> {
        let frames = self.frames;
        let lanes = &frames.lanes;
        // Room to note what is collected of it comes before it is marked.
        self.used.try_reserve(1).map_err(|_| OutOfMemory)?;
        loop {
            let lane = lanes.get(area);
            let set = match (state(lane), lane & (FULL | RESERVED)) {
                (ABSENT, _) => return Ok(Begun::Absent),
                _ if lane & ISOLATED != 0 => return Ok(Begun::Isolated),
                (FREE, _) => Some(Set::Free),
                _ if only_free => return Ok(Begun::InUse),
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
            let is_free = state(lane) == FREE;
            if lanes.replace(area, lane, lane | ISOLATED | if is_free { WHOLE } else { 0 }) {
                self.note(area);
                if !is_free {
                    self.used.push(Used { area, rows: [0; ROWS_PER_AREA as usize] });
                }
                return Ok(Begun::Marked);
            }
            if let Some(set) = set {
                lanes.raise(area.tree(), set, 1);
            }
        }
    }

    /// Whether this isolation has marked `area`, so that the area had memory then, and has it until the isolation ends.
    pub(crate) fn has_marked(&self, area: u64) -> bool {
        let index = area.wrapping_sub(self.areas.start);
        self.areas.contains(&area)
            && self.marked.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// Areas of the range that have memory.
    pub(crate) fn areas_with_memory(&self) -> impl Iterator<Item = u64> + '_ {
        self.areas.clone().filter(|&area| self.has_marked(area))
    }

    /// Rows with pages that were not collected, and those pages: in use, withheld, or without memory.
    pub(crate) fn missing(&self) -> impl Iterator<Item = (Row, u64)> + '_ {
        self.used.iter().flat_map(rows_missing)
    }

    /// As [`missing`](Self::missing), of one area.
    pub(crate) fn missing_in(&self, area: u64) -> impl Iterator<Item = (Row, u64)> + '_ {
        let at = self.used.binary_search_by_key(&area, |used| used.area.0);
        at.ok().and_then(|at| self.used.get(at)).into_iter().flat_map(rows_missing)
    }

    /// Collects what has become free since the last time.
    pub(crate) fn collect(&mut self) {
        if self.used.is_empty() {
            return;
        }
        self.frames.drain_areas(self.areas.clone());
        for used in &mut self.used {
            collect_area(self.frames, used);
        }
    }

    /// Pages collected so far.
    pub(crate) fn collected_pages(&self) -> u64 {
        let missing: u64 = self.used.iter().map(Used::missing).sum();
        self.areas_with_memory().count() as u64 * AREA_PAGES - missing
    }

    /// Takes the memory of the marked areas away from the allocator for good. Every page of it is the caller's: collected, or
    /// owned otherwise.
    pub(crate) fn remove(&mut self) {
        self.change_marked(|lane| {
            // The rows of small pages are all ones: collecting took them.
            let ones = if state(lane) == SMALL { ONES } else { lane & ONES };
            ABSENT | ones
        });
    }

    /// Ends the isolation, but keeps what was collected: it stays taken, and is the caller's from now on.
    pub(crate) fn keep(&mut self) {
        self.change_marked(|lane| match state(lane) {
            SMALL => SMALL | FULL,
            other => other | lane & ONES,
        });
    }

    /// Changes all marked lanes, which are no lanes of this isolation any more.
    fn change_marked(&mut self, change: impl Fn(u8) -> u8) {
        let mut next = self.areas.start;
        while next < self.areas.end {
            let end = self.areas.end.min((next / GROUP + 1) * GROUP);
            let marked = (next..end)
                .filter(|&area| self.has_marked(area))
                .fold(0, |marked, area| marked | 1 << (area - next));
            if marked != 0 {
                self.frames.lanes.change(Area(next), marked, &change);
            }
            next = end;
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.areas = 0..0;
        self.used.clear();
    }

    /// Puts all areas but those that `stays` names back into circulation, with all that was collected of them. (All that stay
    /// are collected.)
    pub(crate) fn give_back(&mut self, mut stays: impl FnMut(u64) -> bool) {
        let mut used = core::mem::take(&mut self.used).into_iter().peekable();
        for area in self.areas.clone() {
            let was_used = used.next_if(|used| used.area.0 == area);
            if !self.has_marked(area) || stays(area) {
                continue;
            }
            let index = area - self.areas.start;
            if let Some(word) = self.marked.get_mut((index / 64) as usize) {
                *word &= !(1 << (index % 64));
            }
            end_area(self.frames, Area(area), was_used.as_ref());
        }
    }

    /// Puts everything back into circulation.
    pub(crate) fn end(&mut self) {
        self.give_back(|_| false);
        self.forget();
    }
}

fn rows_missing(used: &Used) -> impl Iterator<Item = (Row, u64)> + '_ {
    let rows = used.area.rows().zip(&used.rows).map(|(row, collected)| (row, Row::ALL & !collected));
    rows.filter(|&(_, missing)| missing != 0)
}

fn collect_area<M: Mapping>(frames: &Frames<M>, used: &mut Used) {
    let area = used.area;
    let lane = frames.lanes.get(area);
    if state(lane) == FREE {
        let taken = frames.lanes.update(area, |lane| (state(lane) == FREE).then_some(lane | WHOLE));
        if taken.is_some() {
            used.rows.fill(Row::ALL);
        }
    } else if state(lane) == SMALL {
        for (row, collected) in area.row_numbers().zip(&mut used.rows) {
            if *collected != Row::ALL
                && let Some(word) = frames.rows.get(row)
            {
                // Acquire, as any taking: what the last owner did happens before.
                let before = word.fetch_or(Row::ALL, Ordering::Acquire);
                *collected |= Row::ALL & !before;
            }
        }
    }
}

/// Puts an area back into circulation: `used` is what was collected of it, all of it if nothing is said.
fn end_area<M: Mapping>(frames: &Frames<M>, area: Area, used: Option<&Used>) {
    let lane = frames.lanes.get(area);
    let is_whole = used.is_none_or(|used| used.rows.iter().all(|&row| row == Row::ALL));
    if state(lane) == WHOLE && is_whole {
        if frames.lanes.replace(area, lane, FREE | lane & ONES) {
            frames.lanes.raise(area.tree(), Set::Free, 1);
        }
        return;
    }
    if state(lane) == SMALL {
        for (row, collected) in area.row_numbers().zip(used.iter().flat_map(|used| &used.rows)) {
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

impl<M: Mapping> Drop for Isolation<'_, M> {
    fn drop(&mut self) {
        self.end();
    }
}
