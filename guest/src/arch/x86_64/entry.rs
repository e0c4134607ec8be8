//! What `boot.s` calls: the first Rust of the first processor. (That of those it starts is in [`run`].)

use core::arch::global_asm;

use crate::run;

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
