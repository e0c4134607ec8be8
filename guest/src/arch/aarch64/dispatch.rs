//! Who handles what: where the vectors of `vectors.s` lead.

use pagefold_boot_protocol::GuestExit;

use super::firmware::LINES;
use super::interrupts::{self, Frame};
use super::{gic, lines, messages, psci};
use crate::fault::Access;
use crate::{arch, console, cpu, devices, fault, host, remote, tables, watchdog};

// Kinds, as in `vectors.s`.
const SYNCHRONOUS: u64 = 0;
const IRQ: u64 = 1;
const FIQ: u64 = 2;
const SERROR: u64 = 3;
const NESTED_FIQ: u64 = 6;

/// What the vectors call.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) {
    if interrupts::is_exiting() {
        psci::off();
        arch::halt();
    }
    if !arch::cpu::has_entered() {
        console::print_anyway(format_args!("an exception at boot: {frame}\n"));
        arch::exit(GuestExit::Exception);
    }
    match frame.kind {
        IRQ => irq(frame),
        FIQ | NESTED_FIQ => fault::stopped(frame),
        SYNCHRONOUS => synchronous(frame),
        SERROR => fault::exception(frame, format_args!("SError, syndrome {:#x}", frame.syndrome)),
        _ => fault::double_fault(frame),
    }
}

fn irq(frame: &Frame) {
    let Some((interrupt, raw)) = gic::acknowledge() else { return };
    match interrupt {
        gic::ASK => remote::serve(),
        interrupt if interrupt == arch::cpu::timer() => {
            arch::cpu::set_timer();
            if cpu::this().number == 0 {
                host::tick();
            }
            watchdog::tick(frame);
        }
        interrupt => {
            if let Some(device) = messages::device_of(interrupt) {
                devices::messaged(device);
            } else if let Some(line) = lines::line_of(interrupt).filter(|line| usize::from(*line) < LINES) {
                devices::interrupted(line);
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
