//! Page metadata that folds away.
//!
//! Every memory manager keeps a descriptor per page: 64 bytes for each 4 KiB, a sixty-fourth of all memory, for memory
//! that is free, unplugged, or one huge page just the same. This engine gives descriptors back while lock-free walkers
//! are still looking, and makes them again when they are needed.
//!
//! * [`Engine`] is one machine's memory: [`online`](Engine::online) adds some, [`alloc`](Engine::alloc) takes a
//!   [`Frozen`] folio out of it, [`Frozen::share`] makes it a [`Folio`] that others can find.
//! * [`Walker::try_get`] is how they find it: from a page number that may be stale, without a lock, to a reference that
//!   is not.
//! * [`FoldBatch`] folds the descriptors of huge folios' tails, [`Folder`] those of free memory. Free memory is born
//!   folded, and large folios too.
//! * [`Engine::audit`] checks every promise, for tests.
//!
//! The crate is `no_std` (with `alloc`), never logs and never panics. It reaches the machine through two traits,
//! [`platform::Mapping`] and [`platform::Barrier`]. `pagefold-linux` implements them for Linux user space.
//!
//! The protocol, its promises and why they hold: [`map`]. The grace periods: [`rcu`].

#![cfg_attr(not(any(test, loom)), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]
#![deny(clippy::std_instead_of_core, clippy::std_instead_of_alloc)]
#![allow(clippy::module_name_repetitions)]

extern crate alloc;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("page numbers and the ranges of address space behind them need 64-bit pointers");

mod audit;
mod class;
mod engine;
mod fold;
mod folio;
mod frames;
pub mod geometry;
mod heap;
pub mod hotplug;
mod isolate;
pub mod map;
mod marks;
mod page;
pub mod platform;
pub mod protocol;
pub mod rcu;
mod sync;
mod table;
mod walk;
mod zone;

pub use audit::{Audit, Violation};
pub use class::Class;
pub use engine::{AddError, Config, Engine, NewError};
pub use fold::{FoldBatch, FoldReport, Folder, PushError};
pub use folio::{Folio, Frozen, Pieces, RawFolio, ReshapeError, Saturated};
pub use frames::{AllocError, FrameAllocator, IsolateError, Misfit, NotOwned};
pub use geometry::{Order, Pfn};
pub use heap::OutOfMemory;
pub use hotplug::{Hotplug, HotplugConfig};
pub use isolate::Isolated;
pub use map::{Layout, Miss};
pub use page::{Kind, MAX_REFS, PageKind, State};
pub use platform::Platform;
pub use walk::{Peek, PoisonError, Poisoned, Walker};
pub use zone::{BlockState, Zone};

/// The example of the guide for kernel authors, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernel-authors.md")]
struct KernelAuthors;
