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

/// A byte of state for each unit.
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
        }
    }

    fn count_of(&self, state: S) -> Option<&AtomicU64> {
        self.counts.get(usize::from(state.number()))
    }

    /// Units in `state`.
    pub(crate) fn count(&self, state: S) -> u64 {
        self.count_of(state).map_or(0, |count| count.load(Relaxed))
    }

    /// The number of the first unit that has never been used, and of all after it.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// The first unit below `end` in `state`.
    // Inlined so that it compares with a constant: on a large device this loop is a third of what plugging a block costs.
    #[inline(always)]
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
