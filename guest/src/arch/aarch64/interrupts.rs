//! Interrupts and exceptions: on, off, the vectors, and what a processor had in its registers.

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::registers::{get, set};

global_asm!(include_str!("vectors.s"));

/// What the vectors have saved, lowest address first.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
    /// Why (ESR_EL1).
    pub syndrome: u64,
    /// At which address (FAR_EL1).
    pub address: u64,
    /// Which vector.
    pub kind: u64,
    _even: u64,
}

/// The machine is being ended by a call that may be none.
static IS_EXITING: AtomicBool = AtomicBool::new(false);

/// Loads the vectors on this processor.
pub fn load() {
    unsafe extern "C" {
        static vectors: u8;
    }
    // SAFETY: the vectors save everything, and exceptions have a stack.
    unsafe {
        set!("vbar_el1", &raw const vectors as u64);
        asm!("isb", options(nostack));
    }
}

/// Whether interrupts are on.
pub fn are_enabled() -> bool {
    const MASKED: u64 = 1 << 7;
    get!("daif") & MASKED == 0
}

/// Turns interrupts on.
pub fn enable() {
    // SAFETY: every interrupt has a handler.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Turns interrupts off, but for what stops everything.
pub fn disable() {
    // SAFETY: a processor with interrupts off runs on as before; what it is asked meanwhile stays pending.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// Waits for the next interrupt, with interrupts on.
pub fn wait() {
    enable();
    // SAFETY: waits; the next tick comes.
    unsafe { asm!("wfi", options(nostack)) };
}

/// Does something with interrupts off.
pub fn without<T>(action: impl FnOnce() -> T) -> T {
    let were_enabled = are_enabled();
    disable();
    let done = action();
    if were_enabled {
        enable();
    }
    done
}

/// From now on an exception ends the machine.
pub fn begin_exit() {
    IS_EXITING.store(true, Ordering::Relaxed);
}

/// Whether an exception ends the machine.
pub fn is_exiting() -> bool {
    IS_EXITING.load(Ordering::Relaxed)
}

impl Frame {
    /// Where the chain of frame pointers begins.
    pub fn frame_pointer(&self) -> u64 {
        self.x[29]
    }

    /// What kind of exception it was.
    pub fn class(&self) -> u64 {
        self.syndrome >> 26 & 0x3f
    }
}

impl fmt::Display for Frame {
    /// The registers, for a dump.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pc {:#018x}  pstate {:#x}", self.pc, self.pstate)?;
        for (row, registers) in self.x.chunks(4).enumerate() {
            for (at, register) in registers.iter().enumerate() {
                let name = row * 4 + at;
                write!(f, "  x{name:<2} {register:016x}")?;
            }
            writeln!(f)?;
        }
        write!(f, "  sp  {:016x}  esr {:016x}  far {:016x}", self.sp, self.syndrome, self.address)
    }
}
