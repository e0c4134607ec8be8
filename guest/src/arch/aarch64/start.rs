//! Starting: what processors share, the clock, and the processors one after the other.

use alloc::boxed::Box;
use core::arch::asm;

use super::cpu::{self, Id, Own};
use super::firmware::Firmware;
use super::registers::{get, set};
use super::{flush, gic, interrupts, psci};
use crate::clock;
use crate::cpu::{Cpu, TIMER_HZ};
use crate::paging::{self, MapError};

/// Bytes of the stack for exceptions.
pub const OTHER_STACKS: u64 = 32 << 10;

/// The affinity of the processor that runs this.
fn my_id() -> Id {
    get!("mpidr_el1") & 0xff_00ff_ffff
}

/// Sets up what all processors share, once there are page tables; the name of the one that runs this.
pub fn init(firmware: &Firmware) -> Result<Id, MapError> {
    if !gic::is_possible(firmware.gic) {
        say!("an interrupt controller that the processor does not know");
        return Err(MapError::Taken);
    }
    flush::init();
    psci::init(firmware.is_smc);
    cpu::init(firmware.timer, get!("cntfrq_el0") / TIMER_HZ);
    let gic::Place { distributor, other, .. } = firmware.gic;
    let distributor = paging::map_device(distributor.0, distributor.1)?;
    gic::init(firmware.gic, distributor, paging::map_device(other.0, other.1)?);
    Ok(my_id())
}

/// The counter's speed; the ticks have begun already.
pub fn start_clock() {
    clock::set_rate(get!("cntfrq_el0") / 1000);
}

/// What the processor with this affinity has of its own.
pub fn make(id: Id) -> Result<Own, MapError> {
    Ok(Own { id, exceptions: paging::map_stack(OTHER_STACKS)? })
}

/// Takes the vectors and the stack for exceptions into use, and turns interrupts on at the controller. From here on
/// [`own`](cpu::own) finds what this processor has.
///
/// # Safety
/// Made for this processor; nobody else uses it yet; it lives for ever. Interrupts are off.
pub unsafe fn enter(own: *mut Own) {
    interrupts::load();
    // SAFETY: the caller's promise. Code runs on SP_EL0, so SP_EL1 is free.
    unsafe {
        set!("tpidr_el1", own as u64);
        asm!("msr spsel, #1", "mov sp, {}", "msr spsel, #0", in(reg) (*own).exceptions);
    }
    gic::enter(cpu::timer());
    cpu::set_timer();
    // What stops all processors, and errors, are never masked outside of handlers.
    // SAFETY: FIQ and SError have handlers.
    unsafe { asm!("msr daifclr, #5", options(nostack)) };
}

/// Nothing: the others begin in the image.
pub fn prepare_others() {}

/// What a processor is given when it starts. Mind `boot.s`.
#[repr(C)]
struct Begin {
    root: u64,
    stack: u64,
    exceptions: u64,
    cpu: *mut Cpu,
}

/// Starts a processor, on what was made for it.
pub fn processor(cpu: &'static mut Cpu, id: Id) {
    unsafe extern "C" {
        fn processor_entry();
    }
    let begin = Begin {
        root: paging::root(),
        stack: cpu.stack.end,
        exceptions: cpu.own.exceptions,
        cpu: core::ptr::from_mut(cpu),
    };
    // In the direct map, within what the boot page tables have too: read with caches on, so none has to be cleaned.
    let begin = Box::leak(Box::new(begin));
    if let Err(error) =
        psci::start(id, processor_entry as *const () as u64, core::ptr::from_mut(begin) as u64)
    {
        say!("processor {id:#x}: PSCI says {error:?}");
    }
}
