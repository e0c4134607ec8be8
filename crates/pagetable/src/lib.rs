//! Page tables that fold: ranges of addresses that read as zero, and cost nothing where they do.
//!
//! A [`Reservation`] is a range of addresses. *Folded*, every page of it is the *one* zeroed frame, read-only; and because 512
//! such entries are always the same page of entries, there is *one* page table of them, and *one* page directory of 512
//! times that ([`Shared`]). So 1 GiB that is folded costs one entry. Materialising a page makes what is missing on the way
//! down a table of its own; folding the last page under one makes it shared again. How many entries of a table are its
//! own stands in the entry that leads to it, in bits that the processor ignores. [`map`] is the other half: what a kernel
//! maps once and for good.
//!
//! The crate knows no architecture: [`Entry`] says what the bits of an entry mean ([`x86_64`] and [`aarch64`] are here),
//! and [`Mmu`] reads and writes entries, flushes TLBs and has frames. Both kernels of the project use it, and so do its
//! tests, on a machine of plain memory, and a model whose processors remember whatever they may.
//!
//! # One sequence a change
//!
//! A TLB may fill itself from any present entry at any time, and keeps what it has until it is flushed. So the danger is
//! never the entry, but what was remembered of it. arm64 forbids that two different translations of an address may be
//! remembered at once, where one of them can be written through or where their contents differ: the old one must have been
//! broken (made not present) and flushed before the new one is made. x86-64 allows to flush afterwards. What follows is
//! legal on both.
//!
//! | change | sequence | why it is legal |
//! |---|---|---|
//! | *fold*: a frame of its own gives way to the zeroed frame, a table of its own to a shared one | break all entries of the batch, **one** flush, make the new ones, give the frames back | break-before-make; nobody reads the range, since whoever calls has waited for a grace period |
//! | *materialise* a page whose entry no hardware has used | one compare-and-swap, from exactly that entry | an entry whose accessed flag is clear is in no TLB: there is nothing to break, and nothing to flush |
//! | the same, but the entry was used, and the range may be unreadable meanwhile | break, flush, make | break-before-make; the caller owns the page, nobody reads it |
//! | the same, in a range that must be readable at all times | a read-only entry for the new frame, which holds zeros; flush; make it writable; flush | two translations may be remembered while both are read-only and lead to the same content; afterwards only permissions change |
//! | a table of its own in place of a shared one, where the entry shows that no hardware has used it (x86-64) | one compare-and-swap | as for pages |
//! | the same where it was used, or where that cannot be seen (arm64 without FEAT_HAFT) | break, flush everything under it, make | break-before-make; everything under a shared table is folded, so nobody reads it |
//! | the same in a range that must be readable at all times | x86-64: one swap for a table that says the same, then a flush. arm64: never, such a range has all its tables from the start | [`Entry::TABLES_GIVE_WAY`]. Whether arm64 allows it depends on how strictly its rule is read, so it is not needed |
//!
//! After entries were made, [`Mmu::made`] has whatever the machine needs until every processor may use them: arm64 waits for
//! the stores to be seen by table walks, and flushes once more, since a walk from before may still be reported as a fault:
//! as a translation fault on cores without FEAT_ETS2, and as a permission fault on any, where the zeroed frame was there.

//! Ranges under a table that was replaced are flushed whole, not only the pages that change: what a TLB has remembered from
//! the shared table would otherwise outlive the accessed flags that speak of it. For the same reason a table of its own that is
//! given back leaves word of its entries' flags: where one is set, the entry of the shared table that takes its place counts as used.
//!
//! # Locks
//!
//! One lock a reservation, held while entries change and across the flush. Whoever flushes by interrupting others must keep
//! interrupts on in [`Mmu::flush`].

#![no_std]
#![deny(missing_docs)]

pub mod aarch64;
mod entry;
pub mod map;
mod mmu;
mod part;
mod reservation;
mod shared;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
pub mod x86_64;

pub use entry::{Access, Entry, Level};
pub use mmu::{Flush, Mmu, NoFrames, Slot};
pub use reservation::{Behind, Gap, Reservation};
pub use shared::{Counts, SHARED_FRAMES, Shared};

/// Bytes in a page, and in a table.
pub const PAGE: u64 = 4096;
/// Entries in a table.
pub const ENTRIES: usize = 512;
/// Bytes under one page table.
pub const LARGE: u64 = 2 << 20;
/// Bytes under one page directory. Reservations begin at multiples of it.
pub const HUGE: u64 = 1 << 30;
