//! A small x86-64 kernel whose memory Pagefold keeps.
//!
//! It boots by PVH under QEMU, starts all processors, and grows and shrinks by virtio-mem devices while walkers look at
//! its pages. `pagefold boot` runs it; see `docs/guest.md` for what is where.

#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod frames;
mod heap;
mod layout;

use core::arch::global_asm;

use pagefold_boot_protocol::Exit;

global_asm!(include_str!("boot.s"));
pvh::xen_elfnote_phys32_entry!(pvh_start);

unsafe extern "C" {
    fn pvh_start() -> !;
}

/// The first Rust, on the boot stack and the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(start_info: u32) -> ! {
    console::init();
    say!("hello {start_info:x}");
    console::exit(Exit::Stopped)
}
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: u64) -> ! {
    loop {}
}
#[unsafe(no_mangle)]
static mut starting_cr3: u64 = 0;
#[unsafe(no_mangle)]
static mut starting_stack: u64 = 0;
#[unsafe(no_mangle)]
static mut starting_cpu: u64 = 0;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print_anyway(format_args!("panic: {info}\n"));
    console::exit(Exit::Panic)
}
