//! Lanes (a byte an area) and tree words (counts a GiB).
//!
//! # States of a lane
//!
//! | lane | the area's pages | its rows |
//! |---|---|---|
//! | `FREE` | all free | not read; all zero, or all ones with the flag `ONES` |
//! | `SMALL` | taken one by one | one bit a page, set when taken |
//! | `WHOLE` | all taken by one owner | as for `FREE` |
//! | `ABSENT` | no memory | not read |
//!
//! Flags of a `SMALL` lane: `FULL` (no clear bit was found; it may have become stale, which only hides free pages until
//! the next one is freed), `RESERVED` (some CPU takes its small pages here). `SMALL` with neither is *open*. Any lane
//! may be `ISOLATED`: nothing new may be taken in it.
//!
//! Rows outside `SMALL` are all ones if the area was `SMALL` before: a CPU that still remembers the area finds nothing
//! to take. (No CPU remembers an area that never was `SMALL`.) So a bit belongs to the CPU that set it, and
//! no check of the lane has to follow.
//!
//! # Tree words
//!
//! Bits 0-9 count lanes that are `FREE` and not isolated, bits 16-25 lanes that are open. A count is lowered before a
//! lane leaves the set and raised after a lane has joined it. So it never promises more than there is, and the
//! CPU that lowered it will find a lane.

use core::ops::Range;

use crate::geometry::{AREAS_PER_TREE, ROWS_PER_AREA, Row};
use crate::heap::OutOfMemory;
use crate::mapping::Mapping;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::Table;

pub(crate) const FREE: u8 = 0;
pub(crate) const SMALL: u8 = 1;
pub(crate) const WHOLE: u8 = 2;
pub(crate) const ABSENT: u8 = 3;
const STATE: u8 = 0x0f;

pub(crate) const FULL: u8 = 0x10;
pub(crate) const RESERVED: u8 = 0x20;
pub(crate) const ISOLATED: u8 = 0x40;
pub(crate) const ONES: u8 = 0x80;

/// The state of a lane without its flags.
pub(crate) const fn state(lane: u8) -> u8 {
    lane & STATE
}

/// Lanes in one atomic word.
const LANES: u64 = 8;
/// Lanes in one atomic word that belong to one tree.
pub(crate) const GROUP: u64 = if AREAS_PER_TREE < LANES { AREAS_PER_TREE } else { LANES };

const FREE_COUNT: u32 = 1;
const OPEN_COUNT: u32 = 1 << 16;
const COUNT_MASK: u32 = 0x3ff;
/// The tree's lanes have been set up: those without memory are `ABSENT`.
const ONLINE: u32 = 1 << 31;
/// Memory is behind the tree's lanes.
const WRITABLE: u32 = 1 << 30;

/// One set of lanes that a tree word counts.
#[derive(Clone, Copy)]
pub(crate) enum Set {
    Free,
    Open,
}

impl Set {
    const fn unit(self) -> u32 {
        match self {
            Set::Free => FREE_COUNT,
            Set::Open => OPEN_COUNT,
        }
    }
}

/// Index of an area: page number divided by 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Area(pub(crate) u64);

impl Area {
    pub(crate) const fn tree(self) -> u64 {
        self.0 / AREAS_PER_TREE
    }
    /// The area that `row` lies in.
    pub(crate) const fn of(row: Row) -> Area {
        Area(row.0 / ROWS_PER_AREA)
    }
    pub(crate) const fn first_row(self) -> u64 {
        self.0 * ROWS_PER_AREA
    }
    pub(crate) const fn row_numbers(self) -> Range<u64> {
        self.first_row()..self.first_row() + ROWS_PER_AREA
    }
    pub(crate) fn rows(self) -> impl Iterator<Item = Row> {
        self.row_numbers().map(Row)
    }
    const fn word(self) -> u64 {
        self.0 / LANES
    }
    const fn shift(self) -> u32 {
        (self.0 % LANES * 8) as u32
    }
}

pub(crate) struct Lanes<M> {
    words: Table<AtomicU64, M>,
    trees: Table<AtomicU32, M>,
}

impl<M: Mapping> Lanes<M> {
    pub(crate) fn new(words: Table<AtomicU64, M>, trees: Table<AtomicU32, M>) -> Self {
        Self { words, trees }
    }

    pub(crate) fn mappings(&self) -> [&M; 2] {
        [self.words.mapping(), self.trees.mapping()]
    }

    pub(crate) fn trees(&self) -> u64 {
        self.trees.len()
    }

    /// The lane of `area`; absent beyond the end.
    #[inline]
    pub(crate) fn get(&self, area: Area) -> u8 {
        match self.words.get(area.word()) {
            Some(word) => (word.load(Ordering::Acquire) >> area.shift()) as u8,
            None => ABSENT,
        }
    }

    /// Changes one lane by `change`, which may refuse. Returns the lane as it was before a change that was made.
    pub(crate) fn update(&self, area: Area, mut change: impl FnMut(u8) -> Option<u8>) -> Option<u8> {
        let word = self.words.get(area.word())?;
        let mut now = word.load(Ordering::Acquire);
        loop {
            let lane = (now >> area.shift()) as u8;
            let new = change(lane)?;
            let next = now & !(0xff << area.shift()) | u64::from(new) << area.shift();
            // AcqRel: taking a lane acquires what its last owner released, and the other way round. Every change of a
            // lane word is a read-modify-write, so the chain is never cut.
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(lane),
                Err(other) => now = other,
            }
        }
    }

    /// `from` → `to`, exactly.
    pub(crate) fn replace(&self, area: Area, from: u8, to: u8) -> bool {
        self.update(area, |lane| (lane == from).then_some(to)).is_some()
    }

    /// Makes the lanes of `tree` writable.
    #[inline]
    pub(crate) fn ensure(&self, tree: u64) -> Result<(), OutOfMemory> {
        let Some(word) = self.trees.get(tree) else { return Ok(()) };
        if word.load(Ordering::Acquire) & WRITABLE != 0 {
            return Ok(());
        }
        let first = tree * AREAS_PER_TREE;
        self.words.materialise(first / LANES..(first + AREAS_PER_TREE).div_ceil(LANES))?;
        // AcqRel: a CPU that sees the flag may write.
        word.fetch_or(WRITABLE, Ordering::AcqRel);
        Ok(())
    }

    /// Takes `areas` lanes (a power of two, aligned) that are all free, word by word, or none of them. The caller has
    /// lowered the free count and ensured the lanes.
    ///
    /// # Errors
    /// None was taken. So many of the lanes are free but isolated now, since they were isolated meanwhile: they are in
    /// no count any more, and the caller raises the free count by as much less.
    pub(crate) fn take_free_run(&self, first: Area, areas: u64) -> Result<(), u64> {
        let mut done = 0;
        while done < areas {
            let (area, lanes) = (Area(first.0 + done), LANES.min(areas));
            if !self.take_in_word(area, lanes) {
                let counted = self.give_run(first, done);
                return Err(done - counted);
            }
            done += lanes;
        }
        Ok(())
    }

    fn take_in_word(&self, first: Area, lanes: u64) -> bool {
        let Some(word) = self.words.get(first.word()) else { return false };
        let group = group(first, lanes);
        let mut now = word.load(Ordering::Acquire);
        // Free lanes are 0, with or without ONES, so setting the WHOLE bit keeps everything else.
        while now & group & !spread(ONES) == 0 {
            let next = now | spread(WHOLE) & group;
            // AcqRel as in `update`.
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Gives `areas` whole lanes back; returns how many of them are free for all again (isolated ones are not).
    pub(crate) fn give_run(&self, first: Area, areas: u64) -> u64 {
        let mut counted = 0;
        let mut done = 0;
        while done < areas {
            let (area, lanes) = (Area(first.0 + done), LANES.min(areas));
            if let Some(word) = self.words.get(area.word()) {
                let group = group(area, lanes);
                // AcqRel as in `update`. Only the WHOLE bit goes; the flags stay.
                let before = word.fetch_and(!(spread(WHOLE) & group), Ordering::AcqRel);
                counted += lanes - u64::from((before & group & spread(ISOLATED)).count_ones());
            }
            done += lanes;
        }
        counted
    }

    /// Takes those of `areas` (of one [`GROUP`]) that are free whole, marks them as isolated, and lowers the free count by as
    /// many. A bit each, from the first one on.
    pub(crate) fn isolate_free(&self, areas: Range<Area>) -> u64 {
        let first = areas.start;
        let Some(word) = self.words.get(first.word()) else { return 0 };
        let mut now = word.load(Ordering::Acquire);
        loop {
            let is_free = |index: &u64| (now >> Area(first.0 + index).shift()) as u8 & !ONES == FREE;
            let free = (0..areas.end.0 - first.0).filter(is_free);
            let (free, flags) = free.fold((0, 0), |(free, flags), index| {
                (free | 1u64 << index, flags | u64::from(WHOLE | ISOLATED) << Area(first.0 + index).shift())
            });
            let count = u64::from(free.count_ones());
            // A count that is too low is one that others have lowered, for lanes that they are about to take.
            if count == 0 || !self.lower(first.tree(), Set::Free, count) {
                return 0;
            }
            // AcqRel as in `update`.
            match word.compare_exchange(now, now | flags, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return free,
                Err(other) => {
                    self.raise(first.tree(), Set::Free, count);
                    now = other;
                }
            }
        }
    }

    /// Changes those lanes from `first` on (of one [`GROUP`]) that `which` has bits for.
    pub(crate) fn change(&self, first: Area, which: u64, change: impl Fn(u8) -> u8) {
        let Some(word) = self.words.get(first.word()) else { return };
        let mut now = word.load(Ordering::Acquire);
        loop {
            let next = (0..GROUP).filter(|index| which >> index & 1 != 0).fold(now, |next, index| {
                let shift = Area(first.0 + index).shift();
                next & !(0xff << shift) | u64::from(change((now >> shift) as u8)) << shift
            });
            // AcqRel as in `update`.
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
    }

    /// The first of `areas` (a power of two) adjacent free lanes of `tree`, aligned; a snapshot, no promise.
    pub(crate) fn find_free_run(&self, tree: u64, areas: u64) -> Option<Area> {
        let first = tree * AREAS_PER_TREE;
        let mut area = first;
        let mut run = 0;
        while area < first + AREAS_PER_TREE {
            let word = self.words.get(Area(area).word())?.load(Ordering::Acquire);
            if areas < LANES {
                let in_word = LANES.min(first + AREAS_PER_TREE - area);
                let mut lane = 0;
                while lane < in_word {
                    if word & group(Area(area + lane), areas) & !spread(ONES) == 0 {
                        return Some(Area(area + lane));
                    }
                    lane += areas;
                }
                area += in_word;
            } else {
                run = if word & !spread(ONES) == 0 { run + LANES } else { 0 };
                area += LANES;
                if (area - first).is_multiple_of(areas) {
                    if run >= areas {
                        return Some(Area(area - areas));
                    }
                    run = 0;
                }
            }
        }
        None
    }

    /// Lowers a count by `n` if it is at least that.
    pub(crate) fn lower(&self, tree: u64, set: Set, n: u64) -> bool {
        let Some(word) = self.trees.get(tree) else { return false };
        // Acquire: a CPU that sees a count of a tree that just came online may write its word.
        let mut now = word.load(Ordering::Acquire);
        while u64::from((now / set.unit()) & COUNT_MASK) >= n {
            let next = now - n as u32 * set.unit();
            // Acquire: pairs with the Release of `raise`, so that the lane this promises is seen.
            match word.compare_exchange(now, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Raises a count by `n`.
    pub(crate) fn raise(&self, tree: u64, set: Set, n: u64) {
        if n > 0
            && let Some(word) = self.trees.get(tree)
        {
            word.fetch_add(n as u32 * set.unit(), Ordering::Release);
        }
    }

    pub(crate) fn count(&self, tree: u64, set: Set) -> u64 {
        let word = self.trees.get(tree).map_or(0, |word| word.load(Ordering::Relaxed));
        u64::from((word / set.unit()) & COUNT_MASK)
    }

    pub(crate) fn is_online(&self, tree: u64) -> bool {
        self.trees.get(tree).is_some_and(|word| word.load(Ordering::Acquire) & ONLINE != 0)
    }

    /// Makes the tree word writable.
    pub(crate) fn ensure_trees(&self, trees: Range<u64>) -> Result<(), OutOfMemory> {
        self.trees.materialise(trees)
    }

    /// Sets up a tree that has no memory yet: either all free at once (and no lane written), or all absent (and its lanes
    /// have been ensured).
    pub(crate) fn begin_online(&self, tree: u64, all_free: bool) {
        if !all_free {
            let first = Area(tree * AREAS_PER_TREE);
            for area in first.0..first.0 + AREAS_PER_TREE {
                self.update(Area(area), |_| Some(ABSENT));
            }
        }
        if let Some(word) = self.trees.get(tree) {
            let free = if all_free { AREAS_PER_TREE as u32 * FREE_COUNT } else { 0 };
            // The counts are 0 so far, and only the flag of writable lanes may be set.
            word.fetch_or(ONLINE | free, Ordering::AcqRel);
        }
    }
}

/// `flag` in all eight lanes.
const fn spread(flag: u8) -> u64 {
    flag as u64 * 0x0101_0101_0101_0101
}

/// The bits of `lanes` lanes from `first` on.
const fn group(first: Area, lanes: u64) -> u64 {
    if lanes >= LANES { u64::MAX } else { ((1 << (lanes * 8)) - 1) << first.shift() }
}
