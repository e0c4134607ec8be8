//! A small kernel whose memory Pagefold keeps, for x86-64 and arm64.
//!
//! It boots under QEMU, starts all processors, and grows and shrinks by virtio-mem devices while walkers look at
//! its pages. `pagefold boot` runs it; `docs/guest.md` says what is where.

#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;

mod arch;
mod breaks;
mod clock;
mod contents;
mod cpu;
mod crew;
mod devices;
mod dump;
mod exercise;
mod fault;
mod frames;
mod heap;
mod host;
mod interrupted;
mod kernel;
mod layout;
mod machine;
mod messages;
mod mmu;
mod pages;
mod paging;
mod processors;
mod remote;
mod report;
mod run;
mod serve;
mod tables;
mod watchdog;

use pagefold_boot_protocol::GuestExit;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print_anyway(format_args!("{info}\n"));
    arch::exit(GuestExit::Panic)
}
