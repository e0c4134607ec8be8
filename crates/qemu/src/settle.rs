//! Waiting until a guest has done what it was asked for, or as much of it as it will.

use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Executed, Qemu};

/// How often we look.
const SAMPLE: Duration = Duration::from_millis(5);
/// A guest that executes fewer than this, instructions and repetitions together, between two looks, rests: timers and little
/// else. Working, it executes a hundred times as many.
const RESTING: u64 = 25_000;
/// How long a guest rests until we believe that it waits for something else than its own work: drivers that retry, Linux's
/// after 50 s among them, wait for much longer.
const REST: Duration = Duration::from_secs(2);

/// What a request came to.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Bytes plugged in the device.
    pub plugged: u64,
    /// From the request to the guest's last work on it, to some 5 ms; of an emulated machine.
    pub wall: Duration,
    /// What the guest executed in that time, all of it.
    pub executed: Executed,
}

impl Qemu {
    /// Asks for `bytes` plugged in a device, and waits until the guest rests: it has executed next to nothing for two
    /// seconds, and the device's size was the same. That is the end of its work on the request, whether it did all of it
    /// or gave up; what it executes after the device has reached its size, such as removing the last block, is part of it.
    ///
    /// # Errors
    /// QEMU refuses; instructions are not counted; or the guest still works after `within`.
    pub fn resize_and_settle(
        &mut self,
        device: usize,
        bytes: u64,
        within: Duration,
    ) -> Result<Settled, Error> {
        let start = Instant::now();
        let before = self.executed().ok_or(Error::NotCounted)?;
        let mut last = self.qmp().plugged(device)?;
        self.qmp().resize(device, bytes)?;
        let mut seen = before;
        let mut settled = Settled { plugged: last, wall: Duration::ZERO, executed: Executed::default() };
        loop {
            thread::sleep(SAMPLE);
            let plugged = self.qmp().plugged(device)?;
            let now = self.executed().ok_or(Error::NotCounted)?;
            let since = now - seen;
            seen = now;
            let wall = start.elapsed();
            if plugged != last || since.instructions + since.repetitions >= RESTING {
                settled = Settled { plugged, wall, executed: now - before };
                last = plugged;
            }
            if wall - settled.wall >= REST {
                return Ok(settled);
            }
            if wall >= within {
                return Err(Error::Busy { device, plugged, wanted: bytes, seconds: within.as_secs() });
            }
        }
    }
}
