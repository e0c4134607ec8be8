//! Waiting until the guest has plugged what it was asked for, or can go no further.

use std::thread;
use std::time::{Duration, Instant};

use pagefold_boot_protocol::{DeviceStatus, Settled};

use crate::guest::Guest;
use crate::lost::Lost;

/// How often the guest is asked.
const GLANCE: Duration = Duration::from_millis(5);

/// What there is to wait for: device and size.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// What devices were asked for.
    pub wishes: &'a [(usize, u64)],
    /// Attempts that may fall short before that is how it is.
    pub retries: u32,
    /// How long it may take.
    pub within: Duration,
}

impl Guest {
    /// Waits until each of the devices has what it was asked for, or its driver has fallen short often enough. Tells how
    /// all devices stand then, and whether it was in time. `tell` hears of every look.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn rest(
        &mut self,
        rest: Rest<'_>,
        mut tell: impl FnMut(&[DeviceStatus]),
    ) -> Result<(Vec<DeviceStatus>, bool), Lost> {
        let deadline = Instant::now() + rest.within;
        // Attempts before this wait are not its own; a new wish counts from nothing.
        let mut before: Option<Vec<u32>> = None;
        loop {
            let status = self.status()?;
            tell(&status);
            let retries = |status: &DeviceStatus| status.retries;
            let before = before.get_or_insert_with(|| status.iter().map(retries).collect());
            for (before, status) in before.iter_mut().zip(&status) {
                *before = (*before).min(status.retries);
            }
            let is_done = |&(device, bytes): &(usize, u64)| {
                let before = before.get(device).copied().unwrap_or(0);
                status.get(device).is_none_or(|status| {
                    // It has to have heard of the wish first.
                    status.requested == bytes
                        && match status.settled {
                            Settled::Reached | Settled::Asleep => true,
                            Settled::Retrying => status.retries - before > rest.retries,
                            Settled::Working => false,
                        }
                })
            };
            if rest.wishes.iter().all(is_done) {
                return Ok((status, true));
            }
            if Instant::now() >= deadline {
                return Ok((status, false));
            }
            thread::sleep(GLANCE);
        }
    }
}
