//! The state of every unit of one kind, with a count of the units in each state.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use pagefold_engine::OutOfMemory;

/// A state that is stored as a byte: its place in `ALL`. The default is the state of units that were never used, number 0.
pub(crate) trait UnitState: Copy + Default + PartialEq + 'static {
    const ALL: &'static [Self];

    fn number(self) -> u8;

    fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

/// A byte of state for each unit. Only the driver takes a unit into use, or out of it; others change states of units in use.
pub(crate) struct States<S> {
    numbers: Box<[AtomicU8]>,
    /// Units in each state, so that a search without a result is not made.
    counts: [AtomicU64; 8],
    /// All units from here on are unused.
    used: AtomicU64,
    state: PhantomData<S>,
}

impl<S: UnitState> States<S> {
    /// `units` unused units.
    pub(crate) fn new(units: u64) -> Result<Self, OutOfMemory> {
        let counts: [AtomicU64; 8] = Default::default();
        if let Some(unused) = counts.first() {
            unused.store(units, Relaxed);
        }
        Ok(Self {
            numbers: zeroed(units, || AtomicU8::new(0))?,
            counts,
            used: AtomicU64::new(0),
            state: PhantomData,
        })
    }

    pub(crate) fn get(&self, unit: u64) -> S {
        S::from_number(self.numbers.get(unit as usize).map_or(0, |number| number.load(Relaxed)))
    }

    /// Whether the unit is in any other state than the first.
    pub(crate) fn is_used(&self, unit: u64) -> bool {
        self.get(unit) != S::default()
    }

    pub(crate) fn set(&self, unit: u64, state: S) {
        let Some(number) = self.numbers.get(unit as usize) else { return };
        let before = S::from_number(number.swap(state.number(), Relaxed));
        self.count_of(before).map(|count| count.fetch_sub(1, Relaxed));
        self.count_of(state).map(|count| count.fetch_add(1, Relaxed));
        if state.number() != 0 {
            self.used.fetch_max(unit + 1, Relaxed);
        } else if unit + 1 == self.used() {
            let last = (0..unit).rev().find(|&unit| self.is_used(unit));
            self.used.store(last.map_or(0, |last| last + 1), Relaxed);
        }
    }

    fn count_of(&self, state: S) -> Option<&AtomicU64> {
        self.counts.get(usize::from(state.number()))
    }

    /// Units in `state`.
    pub(crate) fn count(&self, state: S) -> u64 {
        self.count_of(state).map_or(0, |count| count.load(Relaxed))
    }

    /// All units from this one on are unused.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// The first unused unit below `end`.
    pub(crate) fn first_unused(&self, end: u64) -> Option<u64> {
        let used = self.used();
        let behind = self.numbers.len() as u64 - used;
        // On a large device most of which is plugged, looking at every unit would be a third of what plugging a block costs.
        let is_gap = self.count(S::default()) > behind;
        let gap = if is_gap { self.first(end.min(used), S::default()) } else { None };
        gap.or((used < end).then_some(used))
    }

    /// The first unit below `end` in `state`.
    pub(crate) fn first(&self, end: u64, state: S) -> Option<u64> {
        let number = state.number();
        let mut units = (0..).zip(self.numbers.iter().take(end as usize));
        units.find(|(_, at)| at.load(Relaxed) == number).map(|(unit, _)| unit)
    }

    /// The last unit below `end` in `state`.
    pub(crate) fn last(&self, end: u64, state: S) -> Option<u64> {
        let (numbers, number) = (self.numbers.get(..end as usize)?, state.number());
        numbers.iter().rposition(|at| at.load(Relaxed) == number).map(|unit| unit as u64)
    }
}

/// `len` items, each made by `zero`.
pub(crate) fn zeroed<T>(len: u64, zero: impl Fn() -> T) -> Result<Box<[T]>, OutOfMemory> {
    let len = usize::try_from(len).map_err(|_| OutOfMemory)?;
    let mut items = Vec::new();
    items.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    items.resize_with(len, zero);
    Ok(items.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sub::state::SubState::{self, Kernel, Plugged, Unused};

    #[test]
    fn unused_units_are_found_wherever_they_are() {
        let states = States::<SubState>::new(6).unwrap();
        assert_eq!((states.used(), states.first_unused(6), states.first_unused(0)), (0, Some(0), None));
        (0..4).for_each(|unit| states.set(unit, Kernel));
        assert_eq!((states.used(), states.first_unused(6), states.first_unused(4)), (4, Some(4), None));
        states.set(1, Unused);
        assert_eq!((states.used(), states.first_unused(6), states.first_unused(1)), (4, Some(1), None));
        // The last one in use goes: so do the unused ones below it.
        states.set(2, Unused);
        states.set(3, Unused);
        assert_eq!((states.used(), states.first_unused(6)), (1, Some(1)));
        states.set(5, Plugged);
        assert_eq!((states.used(), states.first_unused(6), states.count(Unused)), (6, Some(1), 4));
        (1..5).for_each(|unit| states.set(unit, Kernel));
        assert_eq!((states.used(), states.first_unused(6)), (6, None));
        (0..6).rev().for_each(|unit| states.set(unit, Unused));
        assert_eq!((states.used(), states.first_unused(6)), (0, Some(0)));
    }
}
