//! What `boot.s` calls: the first Rust of the first processor, and of those that it starts.

use core::arch::global_asm;

use super::interrupts;
use crate::cpu::Cpu;
use crate::{processors, run};

global_asm!(include_str!("boot.s"));

/// The first processor: on the boot stack and the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(tree: u64) -> ! {
    interrupts::load();
    run::start(tree)
}

/// A processor that was started: on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start::processor` for this processor alone.
    processors::enter(unsafe { &mut *cpu });
    run::processor()
}
