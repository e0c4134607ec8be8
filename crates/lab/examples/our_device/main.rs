//! Our virtio-mem device beside QEMU's own: the same QEMU, the same kernel, the same driver. Prints what 128 MiB cost to plug
//! and to unplug, and which requests two drivers make, Linux's and Pagefold's, on both devices.
//!
//! `cargo run --profile measure -p pagefold-lab --example our_device -- [pairs]`; without pairs (0) the requests only.

mod requests;
mod speed;

use anyhow::{Context, Result};
use pagefold_lab::Kernel;
use pagefold_lab::our_device::qemu_for;

fn main() -> Result<()> {
    let pairs = std::env::args().nth(1).map_or(Ok(20), |text| text.parse())?;
    let kernels = Kernel::newer()?;
    let kernel = kernels.iter().rfind(|kernel| !kernel.is_arm64() && qemu_for(kernel).is_some());
    let kernel = kernel.context("no kernel or no QEMU: crates/lab/setup-qemu brings them")?;
    println!("Linux {}, device blocks of 2 MiB, one CPU", kernel.release());
    if pairs > 0 {
        speed::measure(kernel, pairs)?;
    }
    requests::compare(kernel)
}
