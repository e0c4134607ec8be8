//! What the driver knows of each unit: a byte of state, and a bit for each sub-block.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use pagefold_engine::OutOfMemory;
use pagefold_engine::geometry::PAGE_SHIFT;

use crate::config::{Geometry, Mode};
use crate::state::{BigState, SubState, Trigger};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, RELAXED};

/// Shared by the driver and its listener.
#[derive(Debug)]
pub(crate) struct Tracking {
    pub(crate) geometry: Geometry,
    states: Box<[AtomicU8]>,
    /// Set where a sub-block is plugged; whole words for each unit.
    bits: Box<[AtomicU64]>,
    words: u64,
    /// Units in each state, so that searches that cannot find anything are not made.
    counts: [AtomicU64; 8],
    plugged: AtomicU64,
    /// Units below here have been used.
    next: AtomicU64,
    /// The driver does not know its blocks yet, or is gone: nothing may change.
    pub(crate) closed: AtomicBool,
    /// A unit whose state is not known, plus one: an answer was odd. Nothing of it may change before the device was asked.
    doubtful: AtomicU64,
    /// What goes offline does so by the driver itself, which settles what is not known of it.
    pub(crate) settles: AtomicBool,
    /// Something happened that may let the driver do more.
    pub(crate) woken: AtomicBool,
}

/// See [`Tracking::begin_settling`].
pub(crate) struct Settles(Arc<Tracking>);

impl Drop for Settles {
    fn drop(&mut self) {
        self.0.settles.store(false, RELAXED);
    }
}

impl Tracking {
    pub(crate) fn new(geometry: Geometry) -> Result<Self, OutOfMemory> {
        let words = match geometry.mode {
            Mode::SubBlock { .. } => geometry.per_unit().div_ceil(64),
            Mode::BigBlock { .. } => 0,
        };
        let counts: [AtomicU64; 8] = Default::default();
        if let Some(unused) = counts.first() {
            unused.store(geometry.units, RELAXED);
        }
        Ok(Self {
            states: zeroed(geometry.units, || AtomicU8::new(0))?,
            bits: zeroed(geometry.units.saturating_mul(words), || AtomicU64::new(0))?,
            geometry,
            words,
            counts,
            plugged: AtomicU64::new(0),
            next: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            doubtful: AtomicU64::new(0),
            settles: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        })
    }

    /// Until the guard goes, also by a panic of an owner's, what happens to memory blocks is the driver's own doing.
    pub(crate) fn begin_settling(self: &Arc<Self>) -> Settles {
        self.settles.store(true, RELAXED);
        Settles(Arc::clone(self))
    }

    pub(crate) fn doubtful(&self) -> Option<u64> {
        self.doubtful.load(RELAXED).checked_sub(1)
    }

    pub(crate) fn set_doubtful(&self, unit: Option<u64>) {
        self.doubtful.store(unit.map_or(0, |unit| unit + 1), RELAXED);
    }

    // ---- states ------------------------------------------------------------------------------------------------

    fn number(&self, unit: u64) -> u8 {
        self.states.get(unit as usize).map_or(0, |state| state.load(RELAXED))
    }

    fn set_number(&self, unit: u64, number: u8) {
        let Some(state) = self.states.get(unit as usize) else { return };
        let before = state.swap(number, RELAXED);
        if let Some(count) = self.counts.get(usize::from(before)) {
            count.fetch_sub(1, RELAXED);
        }
        if let Some(count) = self.counts.get(usize::from(number)) {
            count.fetch_add(1, RELAXED);
        }
        if number != 0 {
            self.next.fetch_max(unit + 1, RELAXED);
        }
    }

    fn count(&self, number: u8) -> u64 {
        self.counts.get(usize::from(number)).map_or(0, |count| count.load(RELAXED))
    }

    /// Units that have been used so far; all others are unused.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(RELAXED)
    }

    /// Whether the unit is more than unused.
    pub(crate) fn is_used(&self, unit: u64) -> bool {
        self.number(unit) != 0
    }

    pub(crate) fn sub_state(&self, unit: u64) -> SubState {
        SubState::from_number(self.number(unit))
    }

    pub(crate) fn set_sub_state(&self, unit: u64, state: SubState) {
        self.set_number(unit, state as u8);
    }

    /// Moves a unit on. A trigger that cannot be leaves it where it is.
    pub(crate) fn apply(&self, unit: u64, trigger: Trigger) {
        if let Some(state) = self.sub_state(unit).after(trigger) {
            self.set_sub_state(unit, state);
        } else {
            debug_assert!(false, "{:?} and {trigger:?}", self.sub_state(unit));
        }
    }

    pub(crate) fn sub_count(&self, state: SubState) -> u64 {
        self.count(state as u8)
    }

    pub(crate) fn big_state(&self, unit: u64) -> BigState {
        BigState::from_number(self.number(unit))
    }

    pub(crate) fn set_big_state(&self, unit: u64, state: BigState) {
        let is_plugged = |state| state != BigState::Unused;
        match (is_plugged(self.big_state(unit)), is_plugged(state)) {
            (false, true) => drop(self.plugged.fetch_add(1, RELAXED)),
            (true, false) => drop(self.plugged.fetch_sub(1, RELAXED)),
            _ => {}
        }
        self.set_number(unit, state as u8);
    }

    pub(crate) fn big_count(&self, state: BigState) -> u64 {
        self.count(state as u8)
    }

    /// The first unit below `end` for which `is` holds.
    pub(crate) fn first(&self, end: u64, is: impl Fn(u8) -> bool) -> Option<u64> {
        (0..)
            .zip(self.states.iter().take(end as usize))
            .find(|(_, state)| is(state.load(RELAXED)))
            .map(|(unit, _)| unit)
    }

    /// The last unit below `end` for which `is` holds.
    pub(crate) fn last(&self, end: u64, is: impl Fn(u8) -> bool) -> Option<u64> {
        let states = self.states.get(..end as usize)?;
        states.iter().rposition(|state| is(state.load(RELAXED))).map(|unit| unit as u64)
    }

    // ---- sub-blocks --------------------------------------------------------------------------------------------

    /// Bytes plugged, by our own count.
    pub(crate) fn plugged_bytes(&self) -> u64 {
        self.plugged.load(RELAXED) * self.geometry.sub_block()
    }

    fn word(&self, unit: u64, sub: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.bits.get((unit * self.words + sub / 64) as usize)?;
        Some((word, 1 << (sub % 64)))
    }

    pub(crate) fn is_plugged(&self, unit: u64, sub: u64) -> bool {
        self.word(unit, sub).is_some_and(|(word, bit)| word.load(RELAXED) & bit != 0)
    }

    pub(crate) fn set_plugged(&self, unit: u64, subs: Range<u64>, is_plugged: bool) {
        for sub in subs {
            let Some((word, bit)) = self.word(unit, sub) else { continue };
            let before = if is_plugged { word.fetch_or(bit, RELAXED) } else { word.fetch_and(!bit, RELAXED) };
            match (before & bit != 0, is_plugged) {
                (false, true) => drop(self.plugged.fetch_add(1, RELAXED)),
                (true, false) => drop(self.plugged.fetch_sub(1, RELAXED)),
                _ => {}
            }
        }
    }

    /// Plugged sub-blocks of `unit`.
    pub(crate) fn plugged_in(&self, unit: u64) -> u64 {
        let first = unit * self.words;
        let words = self.bits.get(first as usize..(first + self.words) as usize).unwrap_or_default();
        words.iter().map(|word| u64::from(word.load(RELAXED).count_ones())).sum()
    }

    pub(crate) fn is_full(&self, unit: u64) -> bool {
        self.plugged_in(unit) == self.geometry.per_unit()
    }

    /// The first run of sub-blocks from `from` on that are all plugged, or all not.
    pub(crate) fn run(&self, unit: u64, from: u64, is_plugged: bool) -> Option<Range<u64>> {
        let end = self.geometry.per_unit();
        let start = (from..end).find(|&sub| self.is_plugged(unit, sub) == is_plugged)?;
        let end = (start..end).find(|&sub| self.is_plugged(unit, sub) != is_plugged).unwrap_or(end);
        Some(start..end)
    }

    /// All such runs.
    pub(crate) fn runs(&self, unit: u64, is_plugged: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let run = self.run(unit, from, is_plugged)?;
            from = run.end;
            Some(run)
        })
    }

    /// The last run below `end`.
    pub(crate) fn last_run(&self, unit: u64, end: u64, is_plugged: bool) -> Option<Range<u64>> {
        let last = (0..end).rev().find(|&sub| self.is_plugged(unit, sub) == is_plugged)?;
        let start =
            (0..last).rev().find(|&sub| self.is_plugged(unit, sub) != is_plugged).map_or(0, |sub| sub + 1);
        Some(start..last + 1)
    }

    /// The unit all of `pages` lie in.
    pub(crate) fn unit_of(&self, pages: &Range<u64>) -> Option<u64> {
        let unit = self.geometry.unit_of(pages.start)?;
        let end = self.geometry.address(unit + 1, 0) >> PAGE_SHIFT;
        (pages.end <= end).then_some(unit)
    }
}

fn zeroed<T>(len: u64, zero: impl Fn() -> T) -> Result<Box<[T]>, OutOfMemory> {
    let len = usize::try_from(len).map_err(|_| OutOfMemory)?;
    let mut items = Vec::new();
    items.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    items.resize_with(len, zero);
    Ok(items.into_boxed_slice())
}
