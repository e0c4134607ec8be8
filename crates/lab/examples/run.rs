//! Boots a kernel, plugs some memory, runs commands in the guest, and prints what they say:
//! `cargo run -p pagefold-lab --example run -- 6.12 64 'cat /proc/iomem'`.

use std::env;

use anyhow::{Context, Result};
use pagefold_lab::{GIB, Kernel, MIB, Vm, static_pagefold};

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let release = arguments.next().context("which kernel? Its release begins with ...")?;
    let plugged: u64 = arguments.next().context("how many MiB to plug?")?.parse()?;
    let kernels = Kernel::all()?;
    let kernel = kernels.iter().rfind(|kernel| kernel.release().starts_with(&release));
    let mut machine = Vm::builder()
        .kernel(kernel.context("no such kernel; crates/lab/setup brings some")?)
        .virtio_mem(4 * GIB)
        .command_line("memhp_default_state=online_movable")
        .file("/bin/pagefold", static_pagefold()?)
        .boot()?;
    machine.qmp().resize(0, plugged * MIB)?;
    machine.qmp().wait_for_plugged(0, plugged * MIB, std::time::Duration::from_secs(60))?;
    for command in arguments {
        print!("{}", machine.run(&command)?);
    }
    Ok(())
}
