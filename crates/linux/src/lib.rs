//! The engine's platform on Linux user space.
//!
//! * A table is a private anonymous reservation ([`Region`]); folding is `MADV_DONTNEED`, after which reads find the
//!   kernel's own read-only zero page: a zero descriptor for nothing.
//! * Grace periods use `membarrier(2)` ([`Membarrier`]), or fences where the kernel lacks it
//!   ([`YieldingFences`]).
//! * What everything costs is asked of the system ([`measure`]), not of our own counters.
//! * [`Preempted`] takes the CPU from walkers at the worst moment, for tests.
//! * [`StrictMode`] traps stray writes with userfaultfd and names the thread.
//!
//! A process that forks keeps its tables to itself: the child has none of them, and must not use the engine.

mod barrier;
mod budget;
mod error;
mod kept;
mod madvise;
pub mod measure;
mod preempted;
mod probe;
mod region;
mod strict;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagefold_engine::platform::{Barrier, Owner, Platform, TableKind};
use pagefold_engine::protocol::{Fold, Protocol};
use pagefold_engine::{Descriptors, OutOfMemory, Page64};

pub use barrier::{Membarrier, YieldingFences};
pub use budget::Budget;
pub use error::LinuxError;
use kept::Kept;
pub use preempted::{Preempted, Preemption, preempt_every};
pub use probe::{Missing, Support};
pub use region::Region;
pub use strict::{StrayWrite, StrictMode};

/// Linux user space as a platform: `B` is how grace periods reach readers, `O` what owners keep in descriptors, `R` the rules,
/// `D` what a descriptor is.
pub struct Linux<B, O = (), R = Fold, D = Page64> {
    barrier: B,
    support: Arc<Support>,
    budget: Arc<Budget>,
    kept: Arc<Kept>,
    strict: Option<Arc<StrictMode>>,
    _types: Types<O, R, D>,
}

/// Types that a platform only names.
type Types<O, R, D> = PhantomData<fn() -> (O, R, D)>;

impl<B: Barrier + Clone, O: Owner, R: Protocol, D: Descriptors> Linux<B, O, R, D> {
    /// A platform with that barrier.
    ///
    /// # Errors
    /// [`LinuxError::PageSize`] where pages are not 4 KiB, [`LinuxError::NoPopulate`] where the kernel cannot report a lack
    /// of memory as an error.
    pub fn new(barrier: B) -> Result<Self, LinuxError> {
        let support = Support::probe()?;
        Ok(Self {
            barrier,
            support: Arc::new(support),
            budget: Arc::new(Budget::unlimited()),
            kept: Arc::default(),
            strict: None,
            _types: PhantomData,
        })
    }

    /// Traps stray writes from now on. Call it before an engine is made.
    ///
    /// # Errors
    /// [`LinuxError::NoStrict`] where the kernel has no userfaultfd write protection for us.
    pub fn strict(mut self) -> Result<Self, LinuxError> {
        self.strict = Some(Arc::new(StrictMode::new()?));
        Ok(self)
    }

    /// The stray writes trapped so far, and whoever traps them.
    pub fn strict_mode(&self) -> Option<&StrictMode> {
        self.strict.as_deref()
    }

    /// What the kernel offers.
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// How much memory the tables may take, and how much they take by our own count.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl<B: Barrier + Clone, O: Owner, R: Protocol, D: Descriptors> Platform for Linux<B, O, R, D> {
    type Mapping = Region;
    type Barrier = B;
    type Owner = O;
    type Rules = R;
    type Descriptors = D;
    type Error = LinuxError;

    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<Region, LinuxError> {
        let strict = self.strict.clone().filter(|_| kind == TableKind::Map);
        let (budget, kept) = (Arc::clone(&self.budget), Arc::clone(&self.kept));
        Region::reserve(kind, bytes, Arc::clone(&self.support), budget, kept, strict)
    }

    fn set_aside(&self, frames: u64) -> Result<(), OutOfMemory> {
        if !self.budget.take(frames) {
            return Err(OutOfMemory);
        }
        self.kept.add(frames).inspect_err(|_| self.budget.give(frames))
    }

    fn end_set_aside(&self, frames: u64) {
        self.kept.give_back(frames);
        self.budget.give(frames);
    }

    fn barrier(&self) -> B {
        self.barrier.clone()
    }

    #[inline]
    fn cpu(&self) -> usize {
        thread_number()
    }
}

impl<B, O, R, D> std::fmt::Debug for Linux<B, O, R, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linux")
            .field("support", &self.support)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// A small number for the calling thread, counted up as threads ask. Better than the CPU it happens to run on: it costs
/// a thread-local load, and threads that run at the same time always differ.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) });
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// The README's example, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
