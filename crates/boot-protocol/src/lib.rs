//! What `pagefold boot` and its guest say to each other.
//!
//! * On the kernel's command line: [`Options`], words as Linux has them.
//! * Over the second serial port: lines of JSON, a [`Request`] down and an [`Answer`] up. The guest says [`Answer::Hello`]
//!   once by itself; after that each request has one answer, but [`Request::Pages`], which has several. In between the
//!   host sends [`PULSE`]s, by which the guest knows that it is there.
//! * When the guest ends: an [`GuestExit`], through QEMU's `isa-debug-exit` device.
//!
//! The first serial port is for people, and has no form.

#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

extern crate alloc;
// What clap derives names it.
#[cfg(feature = "clap")]
extern crate std;

mod exit;
mod message;
mod options;

pub use exit::GuestExit;
pub use message::{
    Answer, Cycles, DeviceInfo, DeviceStatus, Flushes, FolioCounts, FrameCounts, Hello, LineError,
    MemoryReport, PULSE, PULSE_SECONDS, PageRun, Report, Request, Restart, SILENCE_SECONDS, Settled,
    TableReport, VERSION, Walks, from_line, to_line,
};
pub use options::{
    BarrierChoice, Break, DescriptorsChoice, LeftoversChoice, Options, OptionsError, ProtocolChoice,
};
