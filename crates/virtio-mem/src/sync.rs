//! The atomics the driver's tables are made of. They are changed under the exclusive borrow of memory hotplug only; they
//! are atomics because two objects share them (the driver and its listener), so Relaxed is enough everywhere.

pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

pub(crate) const RELAXED: core::sync::atomic::Ordering = core::sync::atomic::Ordering::Relaxed;
