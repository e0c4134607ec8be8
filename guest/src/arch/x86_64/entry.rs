//! What `boot.s` calls: the first Rust of the first processor, and of those that it starts.

use core::arch::global_asm;

use crate::cpu::Cpu;
use crate::{processors, run};

global_asm!(include_str!("boot.s"));
pvh::xen_elfnote_phys32_entry!(pvh_start);

unsafe extern "C" {
    fn pvh_start() -> !;
}

/// The first processor: on the boot stack and the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(start_info: u32) -> ! {
    run::start(start_info.into())
}

/// A processor that was started: on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start::processor` for this processor alone.
    processors::enter(unsafe { &mut *cpu });
    run::processor()
}
