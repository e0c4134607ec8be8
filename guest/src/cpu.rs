//! Processors: what each has of its own. How they are started and interrupted: [`arch`].

use alloc::boxed::Box;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch;
use crate::layout::{PAGE, STACK_STRIDE};
use crate::paging::{self, MapError};

pub use crate::arch::cpu::this;

/// Processors that are started at most.
pub const MAX: usize = 64;
/// Frames that a processor takes when it is started: its stacks, and the page tables that map them.
pub const FRAMES: u64 = (STACK + arch::cpu::OTHER_STACKS) / PAGE + 4 * STACK_STRIDE / (2 << 20);
/// Bytes of a processor's stack.
const STACK: u64 = 160 << 10;
/// Interrupts of each processor's timer in a second.
pub const TIMER_HZ: u64 = 100;

/// A processor.
#[repr(C)]
pub struct Cpu {
    /// Where this is. First, so that an architecture may find it there.
    pub me: *const Cpu,
    /// Its number, from 0.
    pub number: usize,
    /// Where its stack is; those for exceptions not counted.
    pub stack: Range<u64>,
    /// What only its architecture has.
    pub own: arch::cpu::Own,
    /// Grows whenever its loop comes round.
    pub beats: AtomicU64,
    /// What the watchdog last saw of that, and when in its ticks.
    pub seen: AtomicU64,
    /// Since how many ticks nothing was seen.
    pub silent: AtomicU64,
}

/// The processors that run: bit by number. Release by who starts, Acquire by who asks.
static ONLINE: AtomicU64 = AtomicU64::new(0);
/// All of them, by number, for the code that looks after them.
static ALL: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

/// Processor `number`, if it runs.
pub fn get(number: usize) -> Option<&'static Cpu> {
    // Acquire: pairs with the Release of `enter`, so that all of it is seen.
    let at = ALL.get(number)?.load(Ordering::Acquire) as *const Cpu;
    // SAFETY: only ever zero or a `Cpu` that lives for ever.
    unsafe { at.as_ref() }
}

/// Bits of the processors that run.
pub fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// How many processors run.
pub fn count() -> usize {
    online().count_ones() as usize
}

/// A processor's own things.
pub fn make(number: usize, id: arch::cpu::Id) -> Result<&'static mut Cpu, MapError> {
    let own = arch::cpu::Own::new(id)?;
    let stack = paging::map_stack(STACK)?;
    let cpu = Box::leak(Box::new(Cpu {
        me: core::ptr::null(),
        number,
        stack: stack - STACK..stack,
        own,
        beats: AtomicU64::new(0),
        seen: AtomicU64::new(0),
        silent: AtomicU64::new(0),
    }));
    cpu.me = cpu;
    Ok(cpu)
}

/// This processor runs, on what was made for it.
pub fn enter(cpu: &'static mut Cpu) {
    let cpu: *mut Cpu = cpu;
    // SAFETY: the processor's own things, which live for ever and which nobody else uses yet.
    unsafe { arch::cpu::enter(cpu) };
    // SAFETY: set up whole; from here on it is shared.
    let cpu = unsafe { &*cpu };
    if let Some(slot) = ALL.get(cpu.number) {
        // Release: pairs with `get`.
        slot.store(core::ptr::from_ref(cpu) as u64, Ordering::Release);
    }
    ONLINE.fetch_or(1 << cpu.number, Ordering::Release);
}

/// Starts the other processors, one after the other. Those that do not come are said and left out.
pub fn start_others(ids: &[arch::cpu::Id]) -> Result<(), MapError> {
    arch::cpu::prepare_others();
    let others = ids.iter().filter(|&&id| id != this().own.id());
    for (number, &id) in others.take(MAX - 1).enumerate().map(|(at, id)| (at + 1, id)) {
        let cpu = make(number, id)?;
        arch::cpu::start(cpu, id);
        let deadline = crate::clock::now() + 2_000_000_000;
        while online() >> number & 1 == 0 {
            if crate::clock::now() > deadline {
                say!("processor {number} ({id:#x}) does not start");
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }
    Ok(())
}
