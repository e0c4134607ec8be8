//! Processors: their exception stacks and timers, and how the others are started.

use alloc::boxed::Box;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::registers::{get, set};
use super::{gic, psci};
use crate::cpu::{Cpu, TIMER_HZ};
use crate::paging::{self, MapError};

/// What names a processor: its affinity, as in MPIDR_EL1.
pub type Id = u64;

/// Bytes of the stack for exceptions.
pub const OTHER_STACKS: u64 = 32 << 10;

/// The virtual timer's interrupt, as the device tree has it. Relaxed: noted at boot.
static TIMER: AtomicU32 = AtomicU32::new(27);
/// Ticks of the counter between two of its interrupts.
static PERIOD: AtomicU64 = AtomicU64::new(u64::MAX);

/// What a processor has of its own.
pub struct Own {
    id: Id,
    /// Where its stack for exceptions ends.
    exceptions: u64,
}

impl Own {
    /// For the processor with this affinity.
    pub fn new(id: Id) -> Result<Own, MapError> {
        Ok(Own { id, exceptions: paging::map_stack(OTHER_STACKS)? })
    }

    /// Its affinity.
    pub fn id(&self) -> Id {
        self.id
    }
}

/// The affinity of the processor that runs this.
pub fn my_id() -> Id {
    get!("mpidr_el1") & 0xff_00ff_ffff
}

/// Notes the timer's interrupt.
pub fn init(timer: u32) {
    TIMER.store(timer, Ordering::Relaxed);
    PERIOD.store(get!("cntfrq_el0") / TIMER_HZ, Ordering::Relaxed);
}

/// The processor that runs this.
pub fn this() -> &'static Cpu {
    let at = get!("tpidr_el1") as *const Cpu;
    // SAFETY: `enter` has put the address of a `Cpu` there that lives for ever.
    unsafe { &*at }
}

/// Whether this processor has entered.
pub fn has_entered() -> bool {
    get!("tpidr_el1") != 0
}

/// The timer's interrupt.
pub fn timer() -> u32 {
    TIMER.load(Ordering::Relaxed)
}

/// The next tick comes a period from now.
pub fn set_timer() {
    // SAFETY: the virtual timer is this kernel's; enabled, not masked.
    unsafe {
        set!("cntv_tval_el0", PERIOD.load(Ordering::Relaxed));
        set!("cntv_ctl_el0", 1);
    }
}

/// Takes the vectors and the stack for exceptions into use, and turns interrupts on at the controller.
///
/// # Safety
/// Made for this processor; nobody else uses it yet; it lives for ever. Interrupts are off.
pub unsafe fn enter(cpu: *mut Cpu) {
    super::interrupts::load();
    // SAFETY: the caller's promise. Code runs on SP_EL0, so SP_EL1 is free.
    unsafe {
        set!("tpidr_el1", cpu as u64);
        asm!("msr spsel, #1", "mov sp, {}", "msr spsel, #0", in(reg) (*cpu).own.exceptions);
    }
    gic::enter(timer());
    set_timer();
    // What stops all processors, and errors, are never masked outside of handlers.
    // SAFETY: FIQ and SError have handlers.
    unsafe { asm!("msr daifclr, #5", options(nostack)) };
}

/// Interrupts all other processors: they [serve](crate::remote::serve).
pub fn interrupt_others() {
    gic::interrupt_others(gic::ASK);
}

/// Stops all other processors, whatever they do.
pub fn stop_others() {
    gic::interrupt_others(gic::STOP);
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
pub fn start(cpu: &'static mut Cpu, id: Id) {
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

/// A processor has started: what `boot.s` calls, on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start` for this processor alone.
    crate::cpu::enter(unsafe { &mut *cpu });
    crate::run::processor()
}
