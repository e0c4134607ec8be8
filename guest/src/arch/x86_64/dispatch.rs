//! Who handles what: where the stubs of `interrupts.s` lead.

use x86_64::registers::control::Cr2;

use super::cpu::end_of_interrupt;
use super::interrupts::{DEVICES, ERROR, Frame, LINES, MESSAGES, MOST_MESSAGES, REMOTE, SPURIOUS, TIMER};
use crate::fault::Access;
use crate::{cpu, devices, fault, host, remote, watchdog};

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;
const EXCEPTIONS: u64 = 32;

/// What the stubs call.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) {
    match frame.vector {
        NMI => fault::stopped(frame),
        DOUBLE_FAULT => fault::double_fault(frame),
        PAGE_FAULT => page_fault(frame),
        vector if vector < EXCEPTIONS => exception(frame),
        vector => {
            let vector = vector as u8;
            match vector {
                TIMER => {
                    if cpu::this().number == 0 {
                        host::tick();
                    }
                    watchdog::tick(frame);
                }
                REMOTE => remote::serve(),
                DEVICES..ERROR if vector - DEVICES < LINES => devices::interrupted(vector - DEVICES),
                MESSAGES..ERROR if vector - MESSAGES < MOST_MESSAGES => {
                    devices::messaged(vector - MESSAGES);
                }
                _ => {}
            }
            if vector != SPURIOUS && vector >= TIMER {
                end_of_interrupt();
            }
        }
    }
}

/// A page fault.
fn page_fault(frame: &Frame) -> ! {
    let access = Access { address: Cr2::read_raw(), is_write: frame.error & 2 != 0 };
    fault::page_fault(frame, &access)
}

/// Any other exception.
fn exception(frame: &Frame) -> ! {
    const NAMES: [&str; 20] = [
        "divide error",
        "debug",
        "non-maskable interrupt",
        "breakpoint",
        "overflow",
        "bound range",
        "invalid opcode",
        "no device",
        "double fault",
        "9",
        "invalid task state segment",
        "segment not present",
        "stack segment",
        "general protection",
        "page fault",
        "15",
        "floating point",
        "alignment check",
        "machine check",
        "SIMD",
    ];
    let name = NAMES.get(frame.vector as usize).unwrap_or(&"unknown");
    fault::exception(frame, format_args!("{name}, error code {:#x}", frame.error))
}
