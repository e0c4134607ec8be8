//! Real Linux kernels in QEMU, to compare with what Pagefold says of them.
//!
//! A [`Vm`] boots a Debian kernel ([`Kernel`]) with an initial RAM disk that holds busybox, the kernel's own virtio
//! modules, any files the caller adds, and a small agent that runs commands. QEMU emulates the CPU (TCG): slow, the same
//! everywhere, and no rights are needed. A boot takes three to four seconds.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use pagefold_lab::{GIB, Kernel, MIB, Vm};
//!
//! let kernels = Kernel::all()?;
//! let mut machine = Vm::builder()
//!     .kernel(&kernels[0])
//!     .memory(GIB)
//!     .virtio_mem(4 * GIB)
//!     .command_line("memhp_default_state=online_movable")
//!     .boot()?;
//! machine.qmp().resize(0, 2 * MIB)?;
//! print!("{}", machine.run("dmesg | grep virtio_mem")?);
//! # Ok(())
//! # }
//! ```
//!
//! Everything that waits has a deadline; an error says what did not happen, and ends with the console's last lines.
//! `crates/lab/setup` brings QEMU, busybox and kernels.

mod agent;
pub mod beside;
mod binary;
mod initramfs;
mod kernel;
mod machine;
pub mod newer;
pub mod our_device;

pub use binary::{
    counting_plugin, newer_counting_plugin, static_kexec, static_pagefold, static_pagefold_arm64, static_pin,
    static_pin_arm64,
};
pub use initramfs::BUSYBOX;
pub use kernel::Kernel;
pub use machine::{Vm, VmBuilder};
pub use pagefold_qemu::{Arch, GIB, MIB, QEMU, Qmp, Version};
