//! A virtio-mem driver: memory that a hypervisor plugs and unplugs, a few MiB at a time, while the machine runs.
//!
//! ```text
//!  host ── requested size ──▶ device ◀── PLUG, UNPLUG, STATE ── Channel ◀── Driver ──▶ Hotplug ──▶ zones, memory map
//!                                                                             ▲           │
//!                                                                    Tracking ◀── Watch ◀──┘ (events)
//! ```
//!
//! * [`Driver`] follows the requested size in both directions, step by step, and says why when it falls short.
//! * [`Channel`] is how it talks to its device. [`VirtioChannel`] does it over any transport of the `virtio-drivers`
//!   crate; tests do it without one.
//! * In *sub-block mode* it plugs and unplugs parts of memory blocks; what is not plugged of an online block is
//!   fake-offline. In *big-block mode*, for devices with large blocks, it plugs and unplugs several whole memory blocks.
//!
//! The crate is `no_std` (with `alloc`), never logs and never panics. It has no clock: a step that should be tried again
//! later says how much later.
//!
//! States, orders and fallbacks are those of Linux (`drivers/virtio/virtio_mem.c`); where this driver differs on
//! purpose: it asks the device for the state of blocks after a restart or an odd answer instead of giving up, it retries
//! after 100 ms rather than 50 s, and no answer of the device ends it.

#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]

extern crate alloc;

mod backoff;
mod big;
mod channel;
mod config;
mod driver;
mod ends;
mod progress;
mod state;
mod sub;
mod sync;
mod tracking;
mod watch;

pub use channel::{Answer, Channel, ChannelError, VirtioChannel, interpret};
pub use config::{ConfigError, Geometry, Limits, Mode};
pub use driver::{Driver, ProbeError, Settings, Step};
pub use ends::{Leftovers, Remains, Removed, Sleep, SuspendError};
pub use progress::{Progress, Shortfall, Status};
pub use state::{BigState, SubState, Trigger};
