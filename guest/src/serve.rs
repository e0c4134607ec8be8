//! The first processor's loop: drivers, the host's requests, and its share of walkers.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pagefold_boot_protocol::{Answer, GuestExit, Request, Restart};
use pagefold_engine::hotplug::{BlockInfo, Migrate, Migration};
use pagefold_engine::{Engine, Folio};
use pagefold_virtio_mem::{Next, Removed};
use pagefold_workload::{Change, Population};

use crate::arch::{self, interrupts};
use crate::contents::Memory;
use crate::crew::{self, Tasks};
use crate::kernel::{Device, Kernel};
use crate::machine::{Choice, GuestPlatform, top_up};
use crate::{breaks, clock, cpu, devices, fault, watchdog};

/// When something is broken on purpose, in nanoseconds since boot.
const BREAK_AFTER: u64 = 500_000_000;

impl<C: Choice> Kernel<C> {
    /// The loop.
    pub fn run(mut self) -> ! {
        let mut tasks = match self.crew.tasks(0, cpu::count()) {
            Ok(tasks) => tasks,
            Err(error) => fault::end(GuestExit::Unsupported, None, format_args!("walkers: {error}")),
        };
        let hello = self.hello();
        say!("Pagefold guest: {} processors, {} MiB", hello.cpus, hello.boot_memory >> 20);
        self.host.answer(&Answer::Hello(hello));
        let mut breaks = self.options.breaks;
        loop {
            watchdog::beat();
            tasks.step();
            if clock::now() > BREAK_AFTER
                && let Some(what) = breaks.take()
            {
                breaks::now(what, self.engine);
            }
            let is_working = self.drive();
            if let Some(request) = self.host.request() {
                match request {
                    Ok(request) => self.serve(request, &mut tasks),
                    Err(error) => self.host.answer(&Answer::Refused(error.to_string())),
                }
            } else if tasks.is_empty() && !is_working {
                // Till the next tick or interrupt.
                interrupts::wait();
            }
            top_up(self.engine);
        }
    }

    /// A step of every driver that has something to do. Whether one has more.
    fn drive(&mut self) -> bool {
        let mut is_working = false;
        for device in &mut self.drivers {
            let changed = devices::take_changed(device.place as u8);
            let is_due = match device.step {
                Next::Again => true,
                Next::Later(..) => clock::now() >= device.wake,
                Next::Reached | Next::Asleep(_) => false,
            };
            if changed {
                (device.retries, device.busy_ns) = (0, 0);
            }
            if !(is_due || changed || device.driver.is_woken()) {
                continue;
            }
            let from = clock::now();
            device.step =
                device.driver.step(&mut self.hotplug, &mut Watched(&mut self.population, self.engine));
            let to = clock::now();
            device.busy_ns += to - from;
            match device.step {
                Next::Later(wait, _) => {
                    device.retries += 1;
                    device.wake = to + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
                }
                Next::Again => is_working = true,
                Next::Reached | Next::Asleep(_) => {}
            }
            top_up(self.engine);
        }
        is_working
    }

    fn serve(&mut self, request: Request, tasks: &mut Tasks<C>) {
        let answer = match request {
            Request::Status => Answer::Status(self.drivers.iter().map(Device::status).collect()),
            Request::Report => {
                tasks.finish();
                Answer::Report(crew::alone(|| self.report()))
            }
            Request::Pages => {
                self.send_pages();
                Answer::Done
            }
            Request::Cycle(rounds) => self.cycle(rounds, tasks),
            Request::Touch => self.touch(),
            Request::RestartDriver(restart) => match self.restart(restart) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Refused(error),
            },
            Request::Audit => {
                tasks.finish();
                match crew::alone(|| self.engine.audit()) {
                    Ok(_) => Answer::Done,
                    Err(violation) => Answer::Refused(violation.to_string()),
                }
            }
            Request::Stop => {
                self.host.answer(&Answer::Done);
                arch::exit(GuestExit::Stopped);
            }
            Request::Populate => self.populate(|arg| arg.changes().collect()),
            Request::Free(share) => {
                self.populate(|_| [Change::Free(f64::from(share.min(1000)) / 1000.0)].into())
            }
            Request::Pin(share) => {
                self.populate(|_| [Change::Pin(f64::from(share.min(1000)) / 1000.0)].into())
            }
        };
        self.host.answer(&answer);
    }

    /// Ends a driver, and begins another for its device.
    fn restart(&mut self, restart: Restart) -> Result<(), String> {
        let at = self.drivers.iter().position(|device| device.place == restart.device as usize);
        let device = self.drivers.swap_remove(at.ok_or("there is no such device")?);
        let place = device.place;
        if restart.forget {
            let pages = device.driver.pages();
            let is_its = |block: &BlockInfo| pages.contains(&self.hotplug.pages(block.id).start);
            let blocks: Vec<_> = self.hotplug.blocks().filter(is_its).map(|block| block.id).collect();
            for block in blocks {
                self.hotplug
                    .offline(block, &mut Watched(&mut self.population, self.engine))
                    .map_err(|error| error.to_string())?;
                self.hotplug.remove(block).map_err(|error| error.to_string())?;
            }
        }
        let removed = device.driver.remove_driver(&mut self.hotplug);
        let devices = self.devices.as_mut().ok_or("there is no PCI")?;
        let channel = devices.connect(place).map_err(|error| error.to_string())?;
        if let Removed::InUse(remains) = removed {
            remains.hand_over(&mut self.hotplug);
        }
        let device = self.probe(place, channel).map_err(|error| error.to_string())?;
        self.drivers.push(device);
        self.drivers.sort_by_key(|device| device.place);
        Ok(())
    }
}

/// A population that is asked to move one folio after the other, which takes its time and frames.
struct Watched<'a, C: Choice>(
    &'a mut Population<'static, 'static, GuestPlatform<C>, Memory>,
    &'static Engine<GuestPlatform<C>>,
);

impl<C: Choice> Migrate<'static, GuestPlatform<C>> for Watched<'_, C> {
    fn migrate(&mut self, folio: Folio<'static, GuestPlatform<C>>) -> Migration {
        watchdog::beat();
        top_up(self.1);
        self.0.migrate(folio)
    }
}
