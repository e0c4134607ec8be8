//! A guest that is taken through steps.

use std::time::{Duration, Instant};

use pagefold_boot::{Guest, Lost, Rest, nonsense};
use pagefold_boot_protocol::{Answer, DeviceStatus, Hello, PageRun, Report, Request, Settled};
use pagefold_picture::amount::Bytes;

use super::model::BootRow;
use super::step::{BootStep, Wishes};

/// A guest, and how patient we are with it.
pub struct Player {
    pub guest: Guest,
    pub hello: Hello,
    pub retries: u32,
    pub deadline: Duration,
    /// What is not as it should be, of the step that is under way.
    pub wrong: Option<String>,
}

/// What the steps of a player say while they last.
pub type Tell<'a> = &'a mut dyn FnMut(String);

impl Player {
    /// One step, and what there is after it.
    pub fn step(&mut self, step: &BootStep, tell: Tell<'_>) -> Result<BootRow, Lost> {
        let (begun, before) = (Instant::now(), self.guest.qemu().executed());
        let (mut short, mut touched, mut cycles) = (None, None, None);
        self.wrong = None;
        match step {
            BootStep::Boot => {}
            BootStep::Resize(wishes) => short = self.resize(wishes, tell)?,
            BootStep::Live(seconds) => self.live(Duration::from_secs_f64(*seconds), tell)?,
            BootStep::Reset => {
                self.guest.qmp().system_reset()?;
                self.hello = self.guest.greeting()?;
            }
            BootStep::Ask(request) => {
                tell(step.to_string());
                match self.guest.ask(request, self.deadline)? {
                    Answer::Done | Answer::Populated(0) => {}
                    Answer::Populated(missing) => short = Some(format!("{} found no place", Bytes(missing))),
                    Answer::Touched(bytes) => touched = Some(bytes),
                    Answer::Cycles(counts) => cycles = Some(counts),
                    // What was written has to be there, and memory for a few folios always is.
                    Answer::Refused(why) if matches!(request, Request::Touch | Request::Cycle(_)) => {
                        self.wrong = Some(why)
                    }
                    Answer::Refused(why) => short = Some(why),
                    other => return Err(nonsense(&step.to_string(), &other)),
                }
            }
        }
        let begins_anew = matches!(step, BootStep::Ask(Request::RestartDriver(_)) | BootStep::Reset);
        if begins_anew {
            short = short.or(self.settle(tell)?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = self.guest.qemu().executed();
        let instructions =
            before.zip(after).map(|(before, after)| after.instructions.saturating_sub(before.instructions));
        let (devices, report) = (self.guest.status()?, self.guest.report()?);
        let is_resize = begins_anew || matches!(step, BootStep::Resize(_));
        let driver_ns = is_resize.then(|| devices.iter().map(|device| device.busy_ns).sum());
        for (number, device) in devices.iter().enumerate() {
            let has = self.guest.qmp().plugged(number)?;
            // One that tries again may have plugged something since it was asked.
            let is_still = matches!(device.settled, Settled::Reached | Settled::Asleep);
            if has != device.plugged && is_still {
                let says = device.plugged;
                self.wrong = Some(format!("vmem{number}: QEMU has {has} bytes plugged, the guest {says}"));
            }
        }
        let wrong = self.wrong.take();
        Ok(BootRow {
            step: step.to_string(),
            seconds,
            short,
            wrong,
            driver_ns,
            touched,
            cycles,
            instructions,
            devices,
            report,
        })
    }

    /// Asks devices for sizes, and waits. Why one fell short.
    fn resize(&mut self, wishes: &Wishes, tell: Tell<'_>) -> Result<Option<String>, Lost> {
        for &(device, bytes) in &wishes.0 {
            if device >= self.hello.devices.len() {
                return Ok(Some(format!("there is no device {device}")));
            }
            if let Err(refused) = self.guest.qmp().resize(device, bytes) {
                return Ok(Some(refused.to_string()));
            }
        }
        self.wait(&wishes.0, tell)
    }

    /// Waits until all devices stand as they were last asked to.
    fn settle(&mut self, tell: Tell<'_>) -> Result<Option<String>, Lost> {
        let wishes: Vec<_> = self.guest.status()?.iter().map(|status| status.requested).enumerate().collect();
        self.wait(&wishes, tell)
    }

    fn wait(&mut self, wishes: &[(usize, u64)], tell: Tell<'_>) -> Result<Option<String>, Lost> {
        let rest = Rest { wishes, retries: self.retries, within: self.deadline };
        let (status, in_time) = self.guest.rest(rest, |status| tell(progress(status, wishes)))?;
        if !in_time {
            self.wrong = Some(format!("not done after {} s", self.deadline.as_secs()));
            return Ok(None);
        }
        let why = wishes.iter().find_map(|&(device, _)| status.get(device)?.shortfall.clone());
        Ok(why)
    }

    /// Lets time pass, as long as the guest answers.
    fn live(&mut self, time: Duration, tell: Tell<'_>) -> Result<(), Lost> {
        let until = Instant::now() + time;
        while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_millis() {
            self.guest.status()?;
            tell(format!("living: {:.0} s left", left as f64 / 1000.0));
            std::thread::sleep(Duration::from_millis(100).min(Duration::from_millis(left as u64)));
        }
        Ok(())
    }

    /// What the guest's own audit finds wrong.
    pub fn audit(&mut self) -> Result<Option<String>, Lost> {
        match self.guest.ask(&Request::Audit, self.deadline)? {
            Answer::Done => Ok(None),
            Answer::Refused(violation) => Ok(Some(violation)),
            other => Err(nonsense("audit", &other)),
        }
    }

    /// All pages, and the report that goes with them.
    pub fn pages(&mut self) -> Result<(Vec<PageRun>, Report), Lost> {
        Ok((self.guest.pages()?, self.guest.report()?))
    }
}

fn progress(status: &[DeviceStatus], wishes: &[(usize, u64)]) -> String {
    let stands = |&(device, bytes): &(usize, u64)| {
        let plugged = status.get(device).map_or(0, |status| status.plugged);
        format!("vmem{device}: {} of {}", Bytes(plugged), Bytes(bytes))
    };
    wishes.iter().map(stands).collect::<Vec<_>>().join(", ")
}
