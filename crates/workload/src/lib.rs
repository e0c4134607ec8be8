//! What lives on an engine: walkers and owners that hammer it and notice when it breaks a promise, and workloads that fill
//! its memory and move out of it when asked.
//!
//! * [`Index`] is a page cache in miniature: slots that each hold one reference on a folio, looked up without a lock.
//! * [`WalkerTask`] is one walker of one [`WalkerKind`]; each kind does what a kind of walker in Linux does.
//! * [`OwnerTask`] allocates, frees, splits, collapses, folds and unfolds.
//! * [`CycleTask`] folds and unfolds the same folios, round after round.
//! * [`Population`] keeps the folios of [`Workload`]s, fragments and pins them, and moves them with their [`Contents`] when
//!   memory is to be unplugged. [`WorkloadArg`] is one of them on a command line.
//! * [`Log`] counts the violations they see and keeps the first of them.
//!
//! A task makes one step at a time, so that whoever has threads, or CPUs, decides how they run. `no_std`.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

extern crate alloc;

mod cycle;
mod index;
mod log;
mod owner;
mod population;
mod size;
mod stamp;
mod walker;
mod walker_kind;

pub use cycle::{CycleCounts, CycleTask};
pub use index::{Entry, Index, WINDOW};
pub use log::{BrokenPromise, Kept, Log};
pub use owner::{OwnerCounts, OwnerTask, Shape, share};
pub use population::{
    Change, Contents, Misfit, Mistake, Part, Population, PopulationError, Use, Workload, WorkloadArg, Wrong,
    slots,
};
pub use size::{SizeError, parse_bytes};
pub use stamp::Stamp;
pub use walker::{WalkerCounts, WalkerTask};
pub use walker_kind::WalkerKind;
