//! Making processors and starting them: what each gets of its own, and one after the other.

use alloc::boxed::Box;
use core::sync::atomic::AtomicU64;

use crate::arch::cpu::Id;
use crate::arch::start;
use crate::cpu::Cpu;
use crate::layout::{PAGE, STACK_STRIDE};
use crate::paging::{self, MapError};
use crate::{clock, cpu};

/// Frames that a processor takes when it is started: its stacks, and the page tables that map them.
pub const FRAMES: u64 = (STACK + start::OTHER_STACKS) / PAGE + 4 * STACK_STRIDE / (2 << 20);
/// Bytes of a processor's stack.
const STACK: u64 = 160 << 10;

/// A processor's own things.
pub fn make(number: usize, id: Id) -> Result<&'static mut Cpu, MapError> {
    let own = start::make(id)?;
    let stack = paging::map_stack(STACK)?;
    Ok(Box::leak(Box::new(Cpu {
        own,
        number,
        stack: stack - STACK..stack,
        beats: AtomicU64::new(0),
        seen: AtomicU64::new(0),
        silent: AtomicU64::new(0),
    })))
}

/// This processor runs, on what was made for it.
pub fn enter(cpu: &'static mut Cpu) {
    let cpu: *mut Cpu = cpu;
    // SAFETY: the processor's own things, which live for ever and which nobody else uses yet.
    unsafe { start::enter(&raw mut (*cpu).own) };
    // SAFETY: set up whole; from here on it is shared.
    cpu::note(unsafe { &*cpu });
}

/// Starts the other processors, one after the other. Those that do not come are said and left out.
pub fn start_others(ids: &[Id]) -> Result<(), MapError> {
    start::prepare_others();
    let others = ids.iter().filter(|&&id| id != cpu::this().own.id());
    for (number, &id) in others.take(cpu::MAX - 1).enumerate().map(|(at, id)| (at + 1, id)) {
        let cpu = make(number, id)?;
        start::processor(cpu, id);
        let deadline = clock::now() + 2_000_000_000;
        while cpu::online() >> number & 1 == 0 {
            if clock::now() > deadline {
                say!("processor {number} ({id:#x}) does not start");
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }
    Ok(())
}
