//! Waiting until a guest has done what it was asked for, or as much of it as it will.

use std::thread;
use std::time::{Duration, Instant};

use crate::{Executed, Qemu, QemuError};

/// How often we look.
const SAMPLE: Duration = Duration::from_millis(5);
/// A guest that executes fewer than this, instructions and repetitions together, between two looks, rests: timers and little
/// else. Working, it executes a hundred times as many.
const RESTING: u64 = 25_000;
/// How long a guest rests until we believe that it waits for something else than its own work: drivers that retry, Linux's
/// after 50 s among them, wait for much longer.
const REST: Duration = Duration::from_secs(2);
/// And how often we have then looked at least: a host that stood still in that time shows nothing.
const LOOKS: u32 = 100;

/// What a request came to.
#[derive(Clone, Copy, Debug)]
pub struct ResizeFigures {
    /// Bytes plugged in the device.
    pub plugged: u64,
    /// From the request until the device had its size and the guest had executed 99 % of that (what comes after may be a
    /// timer's), to some 5 ms; of an emulated machine.
    pub wall: Duration,
    /// What the guest executed from the request to its last work, all of it.
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
    ) -> Result<ResizeFigures, QemuError> {
        let start = Instant::now();
        let before = self.executed().ok_or(QemuError::NotCounted)?;
        let mut plugged = self.qmp().plugged(device)?;
        self.qmp().resize(device, bytes)?;
        // When the size was last another one, when the guest last worked, and what it had executed whenever we looked.
        let (mut resized, mut worked) = (Duration::ZERO, Duration::ZERO);
        let mut looks = vec![(Duration::ZERO, Executed::default())];
        let mut quiet = 0;
        loop {
            thread::sleep(SAMPLE);
            let size = self.qmp().plugged(device)?;
            let executed = self.executed().ok_or(QemuError::NotCounted)? - before;
            let wall = start.elapsed();
            let (last_wall, last) = looks[looks.len() - 1];
            // On a busy host more than a sample's time may have passed.
            let samples = (wall - last_wall).div_duration_f64(SAMPLE).max(1.0);
            quiet += 1;
            if size != plugged {
                quiet = 0;
                (plugged, resized, worked) = (size, wall, wall);
            }
            if (executed - last).total() as f64 >= RESTING as f64 * samples {
                quiet = 0;
                worked = wall;
            }
            looks.push((wall, executed));
            if wall - worked >= REST && quiet >= LOOKS {
                return Ok(settled(&looks, plugged, resized, worked));
            }
            if wall >= within {
                return Err(QemuError::Busy { device, plugged, wanted: bytes, seconds: within.as_secs() });
            }
        }
    }
}

/// The looks until the guest last worked, in short.
fn settled(
    looks: &[(Duration, Executed)],
    plugged: u64,
    resized: Duration,
    worked: Duration,
) -> ResizeFigures {
    let executed =
        looks.iter().rev().find(|(wall, _)| *wall <= worked).map_or(Executed::default(), |look| look.1);
    let most = executed.total() / 100 * 99;
    let done = looks.iter().find(|(_, executed)| executed.total() >= most);
    ResizeFigures { plugged, wall: done.map_or(resized, |look| look.0.max(resized)), executed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_after_the_work_is_counted_but_not_waited_for() {
        let look = |ms, instructions| {
            (Duration::from_millis(ms), Executed { instructions, repetitions: instructions / 2 })
        };
        let looks =
            [look(0, 0), look(5, 600_000), look(10, 995_000), look(900, 1_000_000), look(2900, 1_001_000)];
        let settled = |resized, worked| {
            let settled = settled(&looks, 7, Duration::from_millis(resized), Duration::from_millis(worked));
            (settled.wall.as_millis(), settled.executed.instructions)
        };
        assert_eq!(settled(5, 900), (10, 1_000_000));
        // The size counts too.
        assert_eq!(settled(900, 900), (900, 1_000_000));
        assert_eq!(settled(0, 10), (10, 995_000));
        assert_eq!(settled(0, 0), (0, 0));
    }
}
