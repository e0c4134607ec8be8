//! x86-64: a PC as QEMU makes it, booted by PVH.

pub mod cpu;
mod dispatch;
mod entry;
pub mod firmware;
pub mod flush;
pub mod interrupts;
pub mod lines;
pub mod messages;
pub mod pit;
pub mod serial;
pub mod start;
pub mod tlb;

use pagefold_boot_protocol::GuestExit;
use pagefold_pagetable::x86_64::X86Entry;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::paging::PhysFrame;
use x86_64::{PhysAddr, VirtAddr};

/// What entries look like.
pub type Format = X86Entry;
/// The value of that.
pub const FORMAT: Format = X86Entry;
/// Physical addresses that boot's own page tables map end here.
pub const BOOT_MAPPED: u64 = 1 << 32;
/// Whether waiting for walkers interrupts processors, where the command line does not say. It costs walkers nothing.
pub const BARRIER_INTERRUPTS: bool = true;
/// Device registers that are mapped where they are.
pub const EARLY_DEVICES: &[u64] = &[];
/// QEMU's `isa-debug-exit`.
const EXIT_PORT: u16 = 0xf4;

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Switches to the kernel's own page tables.
///
/// # Safety
/// They map the image where it runs, its data with the boot stack in it, and all memory that is used.
pub unsafe fn activate(root: u64) {
    // SAFETY: the caller's promise.
    unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(root)), Cr3Flags::empty()) };
}

/// Whether pages of 1 GiB can be mapped.
pub fn has_huge_pages() -> bool {
    let features = raw_cpuid::CpuId::new().get_extended_processor_and_feature_identifiers();
    features.is_some_and(|features| features.has_1gib_pages())
}

/// Why this processor cannot run this kernel, if it cannot.
pub fn unsuitable() -> Option<&'static str> {
    None
}

/// Goes on with `next` on another stack, and never comes back.
///
/// # Safety
/// The stack ends there, and nobody else uses it.
pub unsafe fn on_stack<T>(
    stack: u64,
    next: extern "C" fn(&'static mut T) -> !,
    argument: &'static mut T,
) -> ! {
    // SAFETY: the caller's promise; the stack that is left is left for good.
    unsafe {
        core::arch::asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {next}",
            "ud2",
            stack = in(reg) stack,
            next = in(reg) next,
            in("rdi") core::ptr::from_mut(argument),
            options(noreturn),
        )
    }
}

/// Ends the machine.
pub fn exit(how: GuestExit) -> ! {
    interrupts::disable();
    // SAFETY: the port is QEMU's debug exit device or nothing.
    unsafe { Port::<u32>::new(EXIT_PORT).write(how as u32) };
    // Not QEMU, or not asked for.
    halt()
}

/// Stands still for ever.
pub fn halt() -> ! {
    interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}

/// Causes an exception that cannot be delivered.
pub fn double_fault() {
    // With exceptions above 8 cut off, a general protection fault cannot be delivered but as a double fault.
    let DescriptorTablePointer { base, .. } = sidt();
    // SAFETY: the table is as it was, only shorter; this ends here.
    unsafe {
        lidt(&DescriptorTablePointer { limit: 9 * 16 - 1, base: VirtAddr::new(base.as_u64()) });
        core::arch::asm!("int 0x20");
    }
}
