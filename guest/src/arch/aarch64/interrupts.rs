//! Interrupts and exceptions: the vectors, and who handles what.

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use pagefold_boot_protocol::GuestExit;

use super::firmware::LINES;
use super::registers::{get, set};
use super::{cpu as own_cpu, gic, lines, messages, psci};
use crate::fault::Access;
use crate::{arch, console, cpu, fault, host, remote, tables, watchdog};

global_asm!(include_str!("vectors.s"));

/// What the vectors have saved, lowest address first.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
    /// Why (ESR_EL1), and at which address (FAR_EL1).
    syndrome: u64,
    address: u64,
    /// Which vector.
    kind: u64,
    _even: u64,
}

// Kinds, as in `vectors.s`.
const SYNCHRONOUS: u64 = 0;
const IRQ: u64 = 1;
const FIQ: u64 = 2;
const SERROR: u64 = 3;
const NESTED_FIQ: u64 = 6;

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
    // SAFETY: nothing happens.
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

impl Frame {
    /// Where the chain of frame pointers begins.
    pub fn frame_pointer(&self) -> u64 {
        self.x[29]
    }

    fn class(&self) -> u64 {
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

/// What the vectors call.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) {
    if IS_EXITING.load(Ordering::Relaxed) {
        psci::off();
        arch::halt();
    }
    if !own_cpu::has_entered() {
        console::print_anyway(format_args!("an exception at boot: {frame}\n"));
        arch::exit(GuestExit::Exception);
    }
    match frame.kind {
        IRQ => irq(frame),
        FIQ | NESTED_FIQ => watchdog::stopped(frame),
        SYNCHRONOUS => synchronous(frame),
        SERROR => fault::exception(frame, format_args!("SError, syndrome {:#x}", frame.syndrome)),
        _ => fault::double_fault(frame),
    }
}

fn irq(frame: &Frame) {
    let Some((interrupt, raw)) = gic::acknowledge() else { return };
    match interrupt {
        gic::ASK => remote::serve(),
        interrupt if interrupt == own_cpu::timer() => {
            own_cpu::set_timer();
            if cpu::this().number == 0 {
                host::tick();
            }
            watchdog::tick(frame);
        }
        interrupt => {
            if let Some(device) = messages::device_of(interrupt) {
                crate::devices::messaged(device);
            } else if let Some(line) = lines::line_of(interrupt).filter(|line| usize::from(*line) < LINES) {
                crate::devices::interrupted(line);
            }
        }
    }
    gic::end(raw);
}

fn synchronous(frame: &mut Frame) {
    const DATA_ABORT: u64 = 0x25;
    const INSTRUCTION_ABORT: u64 = 0x21;
    const BREAK: u64 = 0x3c;
    // Of an abort: it was to write; why, without the level.
    const WRITE: u64 = 1 << 6;
    const ACCESS_FLAG: u64 = 0b0010;
    match frame.class() {
        DATA_ABORT => {
            let is_write = frame.syndrome & WRITE != 0;
            let access = Access { address: frame.address, is_write };
            // Hardware that does not manage the flag leaves it to us: somebody looks at what is folded, and reads zeros.
            if frame.syndrome >> 2 & 0xf == ACCESS_FLAG && !is_write && tables::note_access(frame.address) {
                return;
            }
            fault::page_fault(frame, &access)
        }
        INSTRUCTION_ABORT => {
            let what = format_args!("an instruction at {:#x} that cannot be fetched", frame.address);
            fault::exception(frame, what)
        }
        BREAK => fault::exception(frame, format_args!("a break instruction")),
        class => fault::exception(
            frame,
            format_args!("exception class {class:#x}, syndrome {:#x}", frame.syndrome),
        ),
    }
}
