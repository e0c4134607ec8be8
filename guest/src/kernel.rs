//! The first processor's loop: drivers, the host's requests, and its share of walkers.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pagefold_boot_protocol::{Answer, GuestExit, LeftoversChoice, Options, Request, Restart};
use pagefold_engine::hotplug::{BlockInfo, Hotplug, Migrate, Migration};
use pagefold_engine::{Engine, Folio};
use pagefold_virtio_mem::{Driver, DriverSettings, Inherited, Next, Removed};
use pagefold_workload::{Change, Index, Population, Workload, WorkloadArg, slots};

use crate::arch::{self, interrupts};
use crate::contents::Memory;
use crate::crew::{self, Crew, Tasks};
use crate::devices::{self, Channel, Devices};
use crate::host::HostLink;
use crate::machine::{Choice, GuestPlatform, top_up};
use crate::{breaks, clock, cpu, fault, watchdog};

/// When something is broken on purpose, in nanoseconds since boot.
const BREAK_AFTER: u64 = 500_000_000;
/// Folios that owners keep.
const OWNERS_SLOTS: usize = 4096;
/// Folios of 2 MiB that are folded and unfolded at once.
pub(crate) const CYCLED: usize = 16;

/// A virtio-mem device and its driver.
pub(crate) struct Device {
    pub(crate) place: usize,
    pub(crate) driver: Driver<'static, Channel>,
    pub(crate) step: Next,
    /// When to step again by the clock alone.
    wake: u64,
    /// Attempts that fell short since the host's wish last changed, and nanoseconds of work.
    pub(crate) retries: u32,
    pub(crate) busy_ns: u64,
}

/// What the first processor has.
pub struct Kernel<C: Choice> {
    pub(crate) engine: &'static Engine<GuestPlatform<C>>,
    pub(crate) hotplug: Hotplug<'static, GuestPlatform<C>>,
    pub(crate) options: Options,
    devices: Option<Devices>,
    pub(crate) drivers: Vec<Device>,
    pub(crate) crew: &'static Crew<C>,
    /// The workloads of the command line.
    pub(crate) workloads: &'static [WorkloadArg],
    pub(crate) population: Population<'static, 'static, GuestPlatform<C>, Memory>,
    pub(crate) host: HostLink,
}

impl<C: Choice> Kernel<C> {
    /// Probes the devices.
    pub fn new(
        engine: &'static Engine<GuestPlatform<C>>,
        hotplug: Hotplug<'static, GuestPlatform<C>>,
        options: Options,
        workloads: Vec<WorkloadArg>,
        devices: Option<Devices>,
        channels: impl Iterator<Item = (usize, Channel)>,
    ) -> Result<Self, String> {
        let count = cpu::count();
        const NO_MEMORY: &str = "too little memory for an index of folios";
        let windows = usize::from(options.owners) + CYCLED;
        let lively = Index::new(engine, OWNERS_SLOTS, Vec::new(), windows).ok_or(NO_MEMORY)?;
        let lively: &'static _ = Box::leak(Box::new(lively));
        let plans: Vec<Workload> = workloads.iter().map(|arg| arg.workload.clone()).collect();
        let plans: &'static [Workload] = plans.leak();
        let settled = Index::new(engine, slots(plans), Vec::new(), 0).ok_or(NO_MEMORY)?;
        let settled: &'static _ = Box::leak(Box::new(settled));
        let population =
            Population::new(settled, &Memory, plans, options.seed).map_err(|error| error.to_string())?;
        let walkers = options.walkers.unwrap_or(count.max(4) as u16);
        let crew = Box::leak(Box::new(Crew::new([lively, settled], walkers, options.owners, options.seed)));
        let mut kernel = Self {
            engine,
            hotplug,
            options,
            devices,
            drivers: Vec::new(),
            crew,
            workloads: workloads.leak(),
            population,
            host: HostLink::default(),
        };
        for (place, channel) in channels {
            match kernel.probe(place, channel) {
                Ok(device) => kernel.drivers.push(device),
                Err(error) => say!("virtio-mem {place}: {error}"),
            }
        }
        Ok(kernel)
    }

    fn probe(&mut self, place: usize, channel: Channel) -> Result<Device, pagefold_virtio_mem::ProbeError> {
        let settings = DriverSettings {
            force_big: self.options.big_blocks,
            inherited: match self.options.leftovers {
                LeftoversChoice::Unplug => Inherited::UnplugAll,
                LeftoversChoice::Adopt => Inherited::Adopt,
            },
            seed: self.options.seed,
            ..DriverSettings::default()
        };
        let driver = Driver::probe(channel, &mut self.hotplug, settings)?;
        Ok(Device { place, driver, step: Next::Again, wake: 0, retries: 0, busy_ns: 0 })
    }

    /// The crew, for the other processors.
    pub fn crew(&self) -> &'static Crew<C> {
        self.crew
    }

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
