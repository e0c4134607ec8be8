//! A small x86-64 kernel whose memory Pagefold keeps.
//!
//! It boots by PVH under QEMU, starts all processors, and grows and shrinks by virtio-mem devices while walkers look at
//! its pages. `pagefold boot` runs it; `docs/guest.md` says what is where.

#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;

mod breaks;
mod clock;
mod contents;
mod cpu;
mod crew;
mod devices;
mod exercise;
mod fault;
mod firmware;
mod frames;
mod heap;
mod host;
mod interrupted;
mod interrupts;
mod kernel;
mod layout;
mod machine;
mod pages;
mod paging;
mod remote;
mod report;
mod run;
mod tables;
mod watchdog;

use core::arch::global_asm;

use pagefold_boot_protocol::GuestExit;

global_asm!(include_str!("boot.s"));
pvh::xen_elfnote_phys32_entry!(pvh_start);

unsafe extern "C" {
    fn pvh_start() -> !;
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print_anyway(format_args!("{info}\n"));
    console::exit(GuestExit::Panic)
}
