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
//! # Calling context
//!
//! Every item that may do more than look and swap says so in a line that begins with "Context". What may be in the way:
//!
//! | | calls of the machine's | where |
//! |---|---|---|
//! | *any* | [`Barrier::light`](platform::Barrier::light) | looking, references, sharing, freezing, freeing |
//! | *takes frames and changes page tables* | [`Mapping::materialise`](platform::Mapping::materialise) | allocating, unfolding, splitting, adding memory |
//! | *interrupts other CPUs* | [`Barrier::heavy`](platform::Barrier::heavy), [`Mapping::fold`](platform::Mapping::fold) | folding |
//! | *waits* for readers | [`Barrier::wait`](platform::Barrier::wait) | grace periods, taking memory offline |
//!
//! Freeing (dropping a [`Folio`] or [`Frozen`]) is *any*: it allocates nothing, waits for nothing, and leaves the memory map as
//! it is. (Where broken pages are kept back it may ask for memory behind tables that have it already.) What waits must not be called inside a section. A machine that can tell where it is
//! ([`Barrier::may_wait`](platform::Barrier::may_wait), [`Mapping::may_change`](platform::Mapping::may_change)) is stopped in
//! debug builds where a call does not belong.
//!
//! The protocol, its promises and why they hold: [`protocol`]. The grace periods: [`rcu`].

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

mod allocate;
mod audit;
mod barrier;
mod descriptors;
mod engine;
mod errors;
mod flat;
mod fold;
mod folder;
mod folio;
mod frames;
mod free;
pub mod geometry;
mod heap;
pub mod hotplug;
mod isolate;
mod map;
mod mapping;
mod marks;
mod online;
mod page;
pub mod platform;
mod poison;
pub mod protocol;
pub mod rcu;
mod reserve;
mod set_aside;
mod stock;
mod sync;
mod table;
mod walk;
mod zone;

pub use audit::{Audit, Violation};
pub use descriptors::memdesc::Memdesc;
pub use descriptors::page64::Page64;
pub use descriptors::seam::{Descriptors, Peek};
pub use engine::{Config, Engine};
pub use flat::Flat;
pub use fold::{FoldBatch, FoldReport, PushError};
pub use folder::Folder;
pub use folio::{Folio, Frozen, Pieces, RawFolio, ReshapeError, Saturated};
pub use frames::check::FrameMisfit;
pub use frames::error::{AllocError, FreeError};
pub use frames::isolate::IsolateError;
pub use frames::standalone::FrameAllocator;
pub use geometry::{Order, Pfn};
pub use heap::OutOfMemory;
pub use hotplug::{Hotplug, HotplugConfig};
pub use isolate::Isolated;
pub use map::Layout;
pub use online::AddError;
pub use page::{Kind, MAX_REFS, PageKind, State};
pub use platform::Platform;
pub use poison::{PoisonError, Poisoned};
pub use protocol::class::{Class, Miss};
pub use reserve::NewError;
pub use set_aside::{Reshape, SetAside};
pub use walk::Walker;
pub use zone::{BlockState, Zone};

/// The example of the guide for kernel authors, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernel-authors.md")]
struct KernelAuthors;
