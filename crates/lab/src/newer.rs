//! The newer QEMU that `crates/lab/setup-qemu` brings, for x86-64 and arm64, and machines in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pagefold_qemu::Arch;

use crate::{Kernel, Vm, VmBuilder};

/// Where `crates/lab/setup-qemu` puts it.
const NEWER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/newer");

/// The newer QEMU for a kernel, where there is one.
pub fn qemu_for(kernel: &Kernel) -> Option<PathBuf> {
    qemu_of(kernel.arch())
}

/// The newer QEMU of an architecture, where there is one.
pub fn qemu_of(arch: Arch) -> Option<PathBuf> {
    Some(Path::new(NEWER).join("bin").join(arch.program())).filter(|path| path.exists())
}

/// As [`qemu_for`], where it must be there.
pub(crate) fn wanted_qemu_for(kernel: &Kernel) -> Result<PathBuf> {
    qemu_for(kernel).context("no newer QEMU: crates/lab/setup-qemu brings it")
}

/// A static busybox for guests on arm64.
pub(crate) fn busybox_for_arm64() -> PathBuf {
    Path::new(NEWER).join("busybox-arm64")
}

/// A machine on arm64, with so much memory in bytes and nothing else.
///
/// # Errors
/// There is no QEMU for arm64.
pub fn arm64_machine(kernel: &Kernel, memory: u64) -> Result<VmBuilder> {
    let qemu = wanted_qemu_for(kernel)?;
    Ok(machine_for(kernel).memory(memory).change_qemu(|it| it.program(qemu)))
}

/// A machine for a kernel of any architecture, in the QEMU that `PATH` has for it.
pub(crate) fn machine_for(kernel: &Kernel) -> VmBuilder {
    let builder = Vm::builder().kernel(kernel);
    match kernel.arch() {
        Arch::X86_64 => builder,
        Arch::Aarch64 => builder
            .change_qemu(|it| it.arch(Arch::Aarch64))
            .console_and_busybox("ttyAMA0", busybox_for_arm64()),
    }
}
