//! Things to break on purpose, to see that each is noticed and told.

use core::sync::atomic::{AtomicBool, Ordering};

use pagefold_boot_protocol::Break;
use pagefold_engine::platform::{Mapping, TableKind};
use pagefold_engine::{Engine, geometry::PAGE_SIZE};

use crate::arch::{self, interrupts};
use crate::machine::{Choice, GuestPlatform};
use crate::{cpu, mmu};

/// The last processor is to hang.
static HANG: AtomicBool = AtomicBool::new(false);

/// Breaks it.
pub fn now<C: Choice>(what: Break, engine: &Engine<GuestPlatform<C>>) {
    match what {
        Break::Write => {
            let map = engine.tables().find(|(kind, _)| *kind == TableKind::Map);
            if let Some((_, map)) = map {
                let last = map.len().saturating_sub(PAGE_SIZE);
                // SAFETY: none: this is the write that must not happen. The page is folded, and the write traps.
                unsafe { map.base().add(last as usize).cast::<u64>().write_volatile(1) };
            }
        }
        Break::Stack => {
            core::hint::black_box(deeper(0));
        }
        Break::DoubleFault => arch::double_fault(),
        Break::NoFlush => mmu::break_flushes(false),
        Break::LocalFlush => mmu::break_flushes(true),
        Break::Hang => {
            HANG.store(true, Ordering::Release);
            may_hang();
        }
    }
}

/// Hangs, if this is the processor that is to.
pub fn may_hang() {
    if HANG.load(Ordering::Acquire) && cpu::this().number + 1 == cpu::count() {
        interrupts::disable();
        loop {
            core::hint::spin_loop();
        }
    }
}

/// Uses up the stack.
#[inline(never)]
#[allow(unconditional_recursion, reason = "that is what it is for")]
fn deeper(level: u64) -> u64 {
    let here = core::hint::black_box([level; 64]);
    deeper(level + 1) + here.iter().sum::<u64>()
}
