//! What `boot.s` calls: the first Rust of the first processor. (That of those it starts is in [`run`].)

use core::arch::global_asm;

use super::interrupts;
use crate::run;

global_asm!(include_str!("boot.s"));

/// The first processor: on the boot stack and the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(tree: u64) -> ! {
    interrupts::load();
    run::start(tree)
}
