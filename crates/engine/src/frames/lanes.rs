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
//! CPU that lowered it will find a lane. CPUs that take memory in different trees write different cache lines: a tree has one
//! to itself (where trees are few), and its lanes have eight.

use core::ops::Range;

use crate::geometry::{AREA_ORDER, AREAS_PER_TREE, Pfn, ROWS_PER_AREA, Row, words_per_tree};
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
    pub(crate) const fn first_pfn(self) -> Pfn {
        Pfn(self.0 << AREA_ORDER)
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
    /// Words of `trees` for each tree.
    stride: u64,
}

impl<M: Mapping> Lanes<M> {
    pub(crate) fn new(words: Table<AtomicU64, M>, trees: Table<AtomicU32, M>) -> Self {
        // A word has the lanes of one tree, but under loom, where each tree has one word of the table.
        let count = if GROUP == LANES { (words.len() * LANES).div_ceil(AREAS_PER_TREE) } else { trees.len() };
        Self { words, trees, stride: words_per_tree(count) }
    }

    pub(crate) fn mappings(&self) -> [&M; 2] {
        [self.words.mapping(), self.trees.mapping()]
    }

    pub(crate) fn trees(&self) -> u64 {
        self.trees.len() / self.stride
    }

    #[inline]
    fn tree(&self, tree: u64) -> Option<&AtomicU32> {
        self.trees.get(tree.saturating_mul(self.stride))
    }

    /// The lane of `area`; absent beyond the end.
    #[inline]
    pub(crate) fn get(&self, area: Area) -> u8 {
        match self.words.get(area.word()) {
            Some(word) => (word.load(Ordering::Acquire) >> area.shift()) as u8,
            None => ABSENT,
        }
    }

    /// As [`get`](Self::get). A CPU that changes the lane later sees what the caller did before this call.
    pub(crate) fn look(&self, area: Area) -> u8 {
        let Some(word) = self.words.get(area.word()) else { return ABSENT };
        let lane = |word: u64| (word >> area.shift()) as u8;
        match lane(word.load(Ordering::Acquire)) {
            // Free, and there may be no memory to write to.
            0 => 0,
            // AcqRel: pairs with `update` and `give_one`, which read what this wrote, or are seen here.
            _ => lane(word.fetch_or(0, Ordering::AcqRel)),
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

    /// Whether the lanes of `tree` are writable.
    #[inline]
    pub(crate) fn are_writable(&self, tree: u64) -> bool {
        // Acquire: pairs with the Release of `ensure`, so that memory is behind the lanes.
        self.tree(tree).is_some_and(|word| word.load(Ordering::Acquire) & WRITABLE != 0)
    }

    /// Makes the lanes of `tree` writable.
    #[inline]
    pub(crate) fn ensure(&self, tree: u64) -> Result<(), OutOfMemory> {
        let Some(word) = self.tree(tree) else { return Ok(()) };
        if word.load(Ordering::Acquire) & WRITABLE != 0 {
            return Ok(());
        }
        let first = tree * AREAS_PER_TREE;
        self.words.materialise(first / LANES..(first + AREAS_PER_TREE).div_ceil(LANES))?;
        // AcqRel: a CPU that sees the flag may write.
        word.fetch_or(WRITABLE, Ordering::AcqRel);
        Ok(())
    }

    /// Takes `areas` lanes (a power of two, aligned) that are all free, word by word. The caller has lowered the free count and
    /// ensured the lanes.
    ///
    /// # Errors
    /// So many of the lanes, from the first one on, were taken, and are the caller's: none, unless another CPU takes some of
    /// the lanes meanwhile.
    pub(crate) fn take_free_run(&self, first: Area, areas: u64) -> Result<(), u64> {
        // One word is taken as a whole, or not at all.
        if areas > GROUP && self.free_run_in(first, areas).is_none() {
            return Err(0);
        }
        let mut done = 0;
        while done < areas {
            let (area, lanes) = (Area(first.0 + done), LANES.min(areas));
            if !self.take_in_word(area, lanes) {
                return Err(done);
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

    /// As [`give_run`](Self::give_run), of one lane; `None` if it is not `WHOLE`.
    #[inline]
    pub(crate) fn give_one(&self, area: Area) -> Option<u64> {
        let word = self.words.get(area.word())?;
        if state((word.load(Ordering::Acquire) >> area.shift()) as u8) != WHOLE {
            return None;
        }
        // AcqRel as in `update`. Only the WHOLE bit goes; the flags stay.
        let before = word.fetch_and(!(u64::from(WHOLE) << area.shift()), Ordering::AcqRel);
        Some(u64::from((before >> area.shift()) as u8 & ISOLATED == 0))
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

    /// Takes a free lane in the word of `near`, if there is one. The caller has lowered the free count and ensured the lanes.
    #[inline]
    pub(crate) fn take_near(&self, near: Area) -> Option<Area> {
        let first = Area(near.0 & !(GROUP - 1));
        let word = self.words.get(first.word())?;
        let mut now = word.load(Ordering::Acquire);
        loop {
            let free = !taken_lanes(now) & group(first, GROUP) & spread(ONES);
            if free == 0 {
                return None;
            }
            let lane = free.trailing_zeros() / 8;
            let next = now | u64::from(WHOLE) << (lane * 8);
            // AcqRel as in `update`.
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Area((first.0 & !(LANES - 1)) + u64::from(lane))),
                Err(other) => now = other,
            }
        }
    }

    /// `areas` (a power of two) adjacent free lanes of the tree of `near`, aligned: the first ones from about there on, and
    /// then from the tree's beginning. A snapshot, no promise.
    #[inline]
    pub(crate) fn find_free_run(&self, near: Area, areas: u64) -> Option<Area> {
        let first = near.tree() * AREAS_PER_TREE;
        let span = areas.max(GROUP);
        let (start, count) = ((near.0 - first) / span, AREAS_PER_TREE / span);
        (start..count).chain(0..start).find_map(|index| self.free_run_in(Area(first + index * span), areas))
    }

    /// As [`find_free_run`](Self::find_free_run), among as many lanes from `first` on, or a [`GROUP`].
    #[inline]
    fn free_run_in(&self, first: Area, areas: u64) -> Option<Area> {
        let busy = |area: Area| Some(self.words.get(area.word())?.load(Ordering::Acquire) & !spread(ONES));
        if areas >= GROUP {
            let mut groups = (first.0..first.0 + areas).step_by(GROUP as usize).map(Area);
            let is_free = |area: Area| busy(area).is_some_and(|busy| busy & group(area, GROUP) == 0);
            return groups.all(is_free).then_some(first);
        }
        let taken = taken_lanes(busy(first)?);
        let mut runs = (0..GROUP).step_by(areas as usize).map(|index| Area(first.0 + index));
        runs.find(|&run| taken & group(run, areas) & spread(ONES) == 0)
    }

    /// Lowers a count by `n` if it is at least that.
    pub(crate) fn lower(&self, tree: u64, set: Set, n: u64) -> bool {
        let Some(word) = self.tree(tree) else { return false };
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
            && let Some(word) = self.tree(tree)
        {
            word.fetch_add(n as u32 * set.unit(), Ordering::Release);
        }
    }

    pub(crate) fn count(&self, tree: u64, set: Set) -> u64 {
        let word = self.tree(tree).map_or(0, |word| word.load(Ordering::Relaxed));
        u64::from((word / set.unit()) & COUNT_MASK)
    }

    pub(crate) fn is_online(&self, tree: u64) -> bool {
        self.tree(tree).is_some_and(|word| word.load(Ordering::Acquire) & ONLINE != 0)
    }

    /// As [`is_online`](Self::is_online), of a tree whose word is writable. A CPU that brings the tree online later sees what
    /// the caller did before this call.
    pub(crate) fn look_online(&self, tree: u64) -> bool {
        // AcqRel: pairs with `begin_online`, which reads what this wrote, or is seen here.
        self.tree(tree).is_some_and(|word| word.fetch_or(0, Ordering::AcqRel) & ONLINE != 0)
    }

    /// Makes the tree word writable.
    pub(crate) fn ensure_trees(&self, trees: Range<u64>) -> Result<(), OutOfMemory> {
        self.trees.materialise(trees.start * self.stride..trees.end * self.stride)
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
        if let Some(word) = self.tree(tree) {
            let free = if all_free { AREAS_PER_TREE as u32 * FREE_COUNT } else { 0 };
            // The counts are 0 so far, and only the flag of writable lanes may be set.
            word.fetch_or(ONLINE | free, Ordering::AcqRel);
        }
    }
}

/// The highest bit of each lane that is not free; the others say nothing.
const fn taken_lanes(word: u64) -> u64 {
    // Without the flag `ONES` no lane has its highest bit, so no sum carries over.
    (word & !spread(ONES)) + spread(!ONES)
}

/// `flag` in all eight lanes.
const fn spread(flag: u8) -> u64 {
    flag as u64 * 0x0101_0101_0101_0101
}

/// The bits of `lanes` lanes from `first` on.
const fn group(first: Area, lanes: u64) -> u64 {
    if lanes >= LANES { u64::MAX } else { ((1 << (lanes * 8)) - 1) << first.shift() }
}
