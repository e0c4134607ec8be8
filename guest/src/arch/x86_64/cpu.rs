//! What a processor has of its own: segments, and a local APIC, by which it interrupts others.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;

use x2apic::lapic::{IpiAllShorthand, LocalApic};
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::structures::gdt::GlobalDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use super::interrupts;

/// What names a processor: its local APIC's number. xAPICs name no more than 255.
pub type Id = u32;

/// What a processor has of its own.
#[repr(C)]
pub struct Own {
    /// Where this is. First, so that it is found there.
    pub(super) me: *const Own,
    pub(super) apic_id: Id,
    pub(super) apic: UnsafeCell<Option<LocalApic>>,
    pub(super) gdt: GlobalDescriptorTable,
    pub(super) tss: TaskStateSegment,
}

impl Own {
    /// Its local APIC's number.
    pub fn id(&self) -> Id {
        self.apic_id
    }
}

/// This processor's.
pub fn own() -> *const Own {
    const { assert!(offset_of!(Own, me) == 0) };
    let me: *const Own;
    // SAFETY: `start::enter` has set the base of gs to an `Own` that lives for ever, and `me` to its address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) me, options(nostack, preserves_flags, readonly)) };
    me
}

/// Does something with this processor's local APIC.
pub(super) fn with_apic(action: impl FnOnce(&mut LocalApic)) {
    without_interrupts(|| {
        // SAFETY: it lives for ever. Only this processor uses the cell, and with interrupts off nothing comes between.
        if let Some(apic) = unsafe { &mut *(*own()).apic.get() } {
            action(apic);
        }
    });
}

/// Tells the local APIC that an interrupt has been handled.
pub fn end_of_interrupt() {
    // SAFETY: called by the handler, once.
    with_apic(|apic| unsafe { apic.end_of_interrupt() });
}

/// Interrupts all other processors: they [serve](crate::remote::serve).
pub fn interrupt_others() {
    // SAFETY: the vector has a handler on all of them.
    with_apic(|apic| unsafe { apic.send_ipi_all(interrupts::REMOTE, IpiAllShorthand::AllExcludingSelf) });
}

/// Stops all other processors, whatever they do.
pub fn stop_others() {
    // SAFETY: the handler of non-maskable interrupts never returns.
    with_apic(|apic| unsafe { apic.send_nmi_all(IpiAllShorthand::AllExcludingSelf) });
}
