//! A QEMU process with virtio-mem devices, driven from outside.
//!
//! A [`QemuBuilder`] says what the machine has; [`QemuBuilder::spawn`] starts it as a child with a console that is collected, the
//! machine protocol ([`Qmp`]) and any further serial ports over inherited socket pairs, so that nothing is left behind in
//! the file system and no other process can connect. Dropping a [`Qemu`] ends it, and so does the end of this process, however
//! it comes ([`spawn_bound`]). What the machine boots is up to the caller.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pagefold_qemu::{QemuBuilder, Exit, GIB, MIB, VirtioMem};
//!
//! # fn main() -> Result<(), pagefold_qemu::QemuError> {
//! let mut qemu = QemuBuilder::new()
//!     .kernel("guest/kernel")
//!     .memory(64 * MIB)
//!     .cpus(4)
//!     .virtio_mem(VirtioMem::new(64 * GIB))
//!     .serial("report")
//!     .debug_exit()
//!     .spawn()?;
//! qemu.qmp().resize(0, GIB)?;
//! qemu.qmp().wait_for_plugged(0, GIB, Duration::from_secs(60))?;
//! qemu.qmp().resize(0, 0)?;
//! assert_eq!(qemu.wait(Duration::from_secs(60))?, Exit::Guest(16));
//! # Ok(())
//! # }
//! ```
//!
//! Everything is emulated (TCG), so it needs no rights and no virtualisation. Whatever waits has a deadline.

mod arch;
mod builder;
mod child;
mod console;
mod counters;
mod devices;
mod error;
mod exit;
mod process;
mod qmp;
mod repeat;
mod settle;
mod version;

pub use arch::Arch;
pub use builder::QemuBuilder;
pub use child::spawn_bound;
pub use console::Console;
pub use counters::{Executed, InstructionCounters};
pub use devices::{NumaNode, VirtioMem};
pub use error::QemuError;
pub use exit::Exit;
pub use process::Qemu;
pub use qmp::Qmp;
pub use repeat::is_repeated;
pub use settle::ResizeFigures;
pub use version::Version;

/// QEMU's name, as Debian's package qemu-system-x86 installs it.
pub const QEMU: &str = "qemu-system-x86_64";

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;
