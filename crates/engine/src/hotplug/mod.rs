//! Memory that comes and goes: memory blocks are added, go online into a zone, offline, and are removed, under walkers.
//!
//! # States of a memory block
//!
//! | state | class of its map pages | who has its pages |
//! |---|---|---|
//! | not added | `Absent` | nobody |
//! | offline | `Offline` | nobody |
//! | online | `Free`, `Mapped`, `Tail` where memory is; `Offline` where a listener says that none is | its zone's allocator |
//!
//! | from | by | to | on the way |
//! |---|---|---|---|
//! | not added | [`Hotplug::add`] | offline | nothing is materialised |
//! | offline | [`Hotplug::online`] | online | `GoingOnline` (veto: `CancelOnline`), then `Online` |
//! | online | [`Hotplug::offline`] | offline | `GoingOffline` (veto or busy: `CancelOffline`), then `Offline` |
//! | offline | [`Hotplug::remove`] | not added | nothing: everything is folded already |
//!
//! Each step does all of its work or none. Whatever can run out of memory is tried before anything can be seen.
//!
//! # Fake-offline
//!
//! Inside an online block, areas may be *fake-offline*: present, but without memory behind them, since a hypervisor took
//! it. There are two ways to keep them, see [`FakeOffline`].
//!
//! # Walkers
//!
//! Walkers do not know about memory blocks. A stale page number in memory that went away finds the class `Offline` or `Absent`; a
//! read of the descriptor still finds zeros. The memory of descriptors goes after a grace period, as everywhere.
//!
//! Terms, states and the order of notifications are those of Linux (`mm/memory_hotplug.c`, `drivers/base/memory.c`).

mod block;
mod classic;
mod clear;
mod error;
mod fake;
mod lock;
mod migrate;
mod notify;
mod policy;
mod steps;
mod withdraw;

pub use block::{BlockId, BlockInfo, FakeOffline, HotplugConfig, OnlineTo};
pub use clear::Fate;
pub use error::{BadPart, BlockError, Busy, HeldPage, HotplugError, Veto};
pub use lock::Hotplug;
pub use migrate::{Migrate, Migration, Unmovable};
pub use notify::{BlockChange, Event, Listener};
pub use policy::{DEFAULT_RATIO, Group, OnlinePolicy, ZoneInfo};
pub use withdraw::{Wanted, Withdrawn};
