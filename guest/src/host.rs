//! The host's end of the second serial port.

use alloc::vec::Vec;
use core::fmt;

use pagefold_boot_protocol::{Answer, LineError, Request, from_line, to_line};
use x86_64::instructions::interrupts::without_interrupts;

use crate::console::HOST;

/// Bytes of a request, at most.
const LONGEST: usize = 4096;

/// A request that has not arrived whole yet.
#[derive(Default)]
pub struct Host {
    line: Vec<u8>,
}

/// A line that is no request.
#[derive(Debug)]
pub enum RequestError {
    /// It has no end.
    TooLong,
    /// It is not text.
    NotText,
    /// It is no message.
    NotAMessage(LineError),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::TooLong => write!(f, "a request of more than {LONGEST} bytes"),
            RequestError::NotText => f.write_str("a request that is not text"),
            RequestError::NotAMessage(error) => write!(f, "{error}"),
        }
    }
}

impl Host {
    /// A request that has arrived.
    pub fn request(&mut self) -> Option<Result<Request, RequestError>> {
        loop {
            let byte = without_interrupts(|| HOST.lock().receive())?;
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
