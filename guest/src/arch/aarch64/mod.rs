//! arm64: QEMU's board "virt", or one like it, told by a device tree.

pub mod cpu;
mod dispatch;
mod entry;
pub mod firmware;
pub mod flush;
pub mod gic;
pub mod interrupts;
mod its;
pub mod lines;
pub mod messages;
mod psci;
mod registers;
pub mod serial;
pub mod start;
pub mod tlb;

use core::arch::asm;

use pagefold_boot_protocol::GuestExit;
use pagefold_pagetable::aarch64::ArmEntry;

use registers::{get, set};

/// What entries look like.
pub type Format = ArmEntry;
/// The value of that.
pub const FORMAT: Format = ArmEntry;
/// Physical addresses that boot's own page tables map end here.
pub const BOOT_MAPPED: u64 = 1 << 32;
/// Whether waiting for walkers interrupts processors, where the command line does not say. A flush interrupts nobody here,
/// so a fold would interrupt processors for this alone; a barrier in each section is cheap.
pub const BARRIER_INTERRUPTS: bool = false;
/// The board's serial port, for the first words; everything else is told by the device tree.
const PL011: u64 = 0x0900_0000;
/// Device registers that are mapped where they are.
pub const EARLY_DEVICES: &[u64] = &[PL011];

/// Why this processor cannot run this kernel, if it cannot. Takes no lock.
pub fn unsuitable() -> Option<&'static str> {
    let is_missing = cfg!(target_feature = "lse") && !registers::has_atomics();
    is_missing
        .then_some("the processor has no atomic instructions: boot the kernel that was built without them")
}

/// The virtual counter.
pub fn ticks() -> u64 {
    get!("cntvct_el0")
}

/// Switches to the kernel's own page tables. They say the same of the image and of memory as those of boot, so nothing has
/// to be broken.
///
/// # Safety
/// They map the image where it runs, its data with the boot stack in it, and all memory that is used.
pub unsafe fn activate(root: u64) {
    // Tables are written before they are walked.
    flush::finish_stores();
    // SAFETY: the caller's promise. Afterwards nothing of the old tables is remembered.
    unsafe {
        set!("ttbr0_el1", root);
        set!("ttbr1_el1", root);
        asm!("isb", "tlbi vmalle1", "dsb nsh", "isb", options(nostack));
    }
}

/// Whether pages of 1 GiB can be mapped: always, with tables of 4 KiB.
pub fn has_huge_pages() -> bool {
    true
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
        asm!(
            "mov sp, {stack}",
            "mov x29, xzr",
            "mov x30, xzr",
            "br {next}",
            stack = in(reg) stack,
            next = in(reg) next,
            in("x0") core::ptr::from_mut(argument),
            options(noreturn),
        )
    }
}

/// Ends the machine: by semihosting, which has exit codes, and without it by PSCI.
pub fn exit(how: GuestExit) -> ! {
    const SYS_EXIT_EXTENDED: u64 = 0x20;
    const APPLICATION_EXIT: u64 = 0x2_0026;
    interrupts::disable();
    interrupts::begin_exit();
    let block = [APPLICATION_EXIT, how.qemu_code() as u64];
    // SAFETY: a call of the debugger's, which reads the block; without one it is an exception, which ends the machine as well.
    unsafe { asm!("hlt #0xf000", in("x0") SYS_EXIT_EXTENDED, in("x1") &raw const block) };
    psci::off();
    halt()
}

/// Stands still for ever.
pub fn halt() -> ! {
    interrupts::disable();
    loop {
        // SAFETY: waits.
        unsafe { asm!("wfi", options(nostack)) };
    }
}

/// Causes an exception while one is handled.
pub fn double_fault() {
    // SAFETY: an exception on the stack for exceptions; this ends here.
    unsafe { asm!("msr spsel, #1", "brk #2") };
}
