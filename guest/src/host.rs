//! The host's end of the second serial port: requests and answers, and whether somebody is there at all.
//!
//! The timer of the first processor takes what arrives, whatever else that processor does. A host that was heard sends
//! pulses all the time; when they stop, the host is gone, and this machine ends.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_boot_protocol::{
    Answer, GuestExit, LineError, PULSE, Request, SILENCE_SECONDS, from_line, to_line,
};
use spin::Mutex;
use thiserror::Error;

use crate::arch::{self, interrupts};
use crate::console::{self, HOST};
use crate::cpu::TIMER_HZ;

/// Bytes of a request, at most.
const LONGEST: usize = 4096;

/// What has arrived and was not looked at: as much as a request may have.
struct Arrived {
    bytes: [u8; LONGEST],
    /// How many came, and how many were taken, since boot.
    put: usize,
    taken: usize,
}

/// Only the first processor uses it, with interrupts off.
static ARRIVED: Mutex<Arrived> = Mutex::new(Arrived { bytes: [0; LONGEST], put: 0, taken: 0 });
/// Ticks since the last pulse; before the first one nothing is counted. Ticks, not time: while the machine stands still, as
/// QEMU does when its terminal stops it, there are none. Relaxed: only the first processor uses it.
static SILENT: AtomicU64 = AtomicU64::new(NEVER);
/// There was no pulse yet: who boots this by hand sends none.
const NEVER: u64 = u64::MAX;

impl Arrived {
    /// Takes bytes from the port, while there are any and there is room.
    fn fill(&mut self) {
        // A long answer is being sent: the port is somebody's.
        let Some(mut port) = HOST.try_lock() else { return };
        while self.put - self.taken < LONGEST
            && let Some(byte) = port.receive()
        {
            if byte == PULSE {
                SILENT.store(0, Ordering::Relaxed);
                continue;
            }
            if let Some(slot) = self.bytes.get_mut(self.put % LONGEST) {
                *slot = byte;
                self.put += 1;
            }
        }
    }

    fn take(&mut self) -> Option<u8> {
        self.fill();
        if self.taken == self.put {
            return None;
        }
        let byte = self.bytes.get(self.taken % LONGEST).copied();
        self.taken += 1;
        byte
    }
}

/// A tick of the first processor's timer.
pub fn tick() {
    // Who sends an answer hears nothing meanwhile, and does not count.
    if HOST.is_locked() {
        return;
    }
    if let Some(mut arrived) = ARRIVED.try_lock() {
        arrived.fill();
    }
    let silent = SILENT.load(Ordering::Relaxed);
    if silent == NEVER {
        return;
    }
    SILENT.store(silent + 1, Ordering::Relaxed);
    if silent > SILENCE_SECONDS * TIMER_HZ {
        let how = GuestExit::HostGone;
        console::print_anyway(format_args!("{}, for {SILENCE_SECONDS} s\n", how.meaning()));
        arch::exit(how);
    }
}

/// A request that has not arrived whole yet.
#[derive(Default)]
pub struct HostLink {
    line: Vec<u8>,
}

/// A line that is no request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// It has no end.
    #[error("a request of more than {LONGEST} bytes")]
    TooLong,
    /// It is not text.
    #[error("a request that is not text")]
    NotText,
    /// It is no message.
    #[error("{0}")]
    NotAMessage(LineError),
}

impl HostLink {
    /// A request that has arrived.
    pub fn request(&mut self) -> Option<Result<Request, RequestError>> {
        loop {
            let byte = interrupts::without(|| ARRIVED.lock().take())?;
            if byte != b'\n' {
                if self.line.len() < LONGEST {
                    self.line.push(byte);
                }
                continue;
            }
            let line = core::mem::take(&mut self.line);
            if line.len() == LONGEST {
                return Some(Err(RequestError::TooLong));
            }
            let Ok(text) = core::str::from_utf8(&line) else { return Some(Err(RequestError::NotText)) };
            return Some(from_line(text).map_err(RequestError::NotAMessage));
        }
    }

    /// Answers.
    pub fn answer(&mut self, answer: &Answer) {
        if let Ok(line) = to_line(answer) {
            // Interrupts stay on: a long answer takes its time.
            HOST.lock().send(line.as_bytes());
        }
    }
}
