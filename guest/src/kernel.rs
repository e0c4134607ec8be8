//! The first processor's loop: drivers, the host's requests, and its share of walkers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use pagefold_boot_protocol::{
    Answer, Cycles, DeviceInfo, DeviceStatus, Exit, Flushes, Folios, Frames, Hello, Leftovers as Remaining,
    MemoryReport, Options, Report, Request, Restart, Settled, TableReport, VERSION,
};
use pagefold_engine::hotplug::{BlockInfo, Hotplug, Migrate, Migration};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{BlockState, Class, Engine, Folio, Kind, Order, Pfn};
use pagefold_virtio_mem::{Driver, Leftovers, Mode, Removed, Settings, Step};
use pagefold_workload::{Change, CycleTask, Index, Population, Workload, WorkloadArg, slots};
use x86_64::instructions::interrupts;

use crate::contents::Memory;
use crate::crew::{self, Crew, Tasks};
use crate::devices::{self, Channel, Devices};
use crate::host::Host;
use crate::layout::PAGE;
use crate::machine::{self, Machine, top_up};
use crate::pages::Pages;
use crate::{breaks, clock, console, cpu, fault, frames, paging, remote, tables, watchdog};

/// Runs in one answer.
const RUNS: usize = 512;

/// When something is broken on purpose, in nanoseconds since boot.
const BREAK_AFTER: u64 = 500_000_000;
/// Folios that owners keep.
const OWNERS_SLOTS: usize = 4096;
/// Folios of 2 MiB that are folded and unfolded at once.
const CYCLED: usize = 16;

/// A virtio-mem device and its driver.
struct Device {
    place: usize,
    driver: Driver<'static, Channel>,
    step: Step,
    /// When to step again by the clock alone.
    wake: u64,
    retries: u32,
    busy_ns: u64,
}

/// What the first processor has.
pub struct Kernel<R: Protocol> {
    engine: &'static Engine<Machine, R>,
    hotplug: Hotplug<'static, Machine, R>,
    options: Options,
    devices: Option<Devices>,
    drivers: Vec<Device>,
    crew: &'static Crew<R>,
    /// The workloads of the command line.
    workloads: &'static [WorkloadArg],
    population: Population<'static, 'static, Machine, Memory, R>,
    host: Host,
}

impl<R: Protocol> Kernel<R> {
    /// Probes the devices.
    pub fn new(
        engine: &'static Engine<Machine, R>,
        hotplug: Hotplug<'static, Machine, R>,
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
            host: Host::default(),
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
        let settings = Settings {
            force_big: self.options.big_blocks,
            leftovers: match self.options.leftovers {
                Remaining::Unplug => Leftovers::UnplugAll,
                Remaining::Adopt => Leftovers::Adopt,
            },
            seed: self.options.seed,
            ..Settings::default()
        };
        let driver = Driver::probe(channel, &mut self.hotplug, settings)?;
        Ok(Device { place, driver, step: Step::Again, wake: 0, retries: 0, busy_ns: 0 })
    }

    /// The crew, for the other processors.
    pub fn crew(&self) -> &'static Crew<R> {
        self.crew
    }

    /// The loop.
    pub fn run(mut self) -> ! {
        let mut tasks = match self.crew.tasks(0, cpu::count()) {
            Ok(tasks) => tasks,
            Err(error) => fault::end(Exit::Unsupported, None, format_args!("walkers: {error}")),
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
                interrupts::enable_and_hlt();
            }
            top_up(self.engine);
        }
    }

    fn hello(&self) -> Hello {
        let devices = self.drivers.iter().map(|device| {
            let geometry = device.driver.geometry();
            DeviceInfo {
                address: geometry.addr,
                size: (device.driver.pages().end - device.driver.pages().start) * PAGE,
                unit: match geometry.mode {
                    Mode::SubBlock { size } | Mode::BigBlock { size } => size,
                },
                is_big: matches!(geometry.mode, Mode::BigBlock { .. }),
                node: device.driver.node(),
            }
        });
        Hello {
            version: VERSION,
            cpus: cpu::count() as u32,
            boot_memory: machine::boot_memory(),
            kernel: machine::kernel_memory(),
            boot_ns: clock::now(),
            devices: devices.collect(),
        }
    }

    /// A step of every driver that has something to do. Whether one has more.
    fn drive(&mut self) -> bool {
        let mut is_working = false;
        for device in &mut self.drivers {
            let changed = devices::take_changed(device.place as u8);
            let is_due = match device.step {
                Step::Again => true,
                Step::Later(..) => clock::now() >= device.wake,
                Step::Reached | Step::Asleep(_) => false,
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
                Step::Later(wait, _) => {
                    device.retries += 1;
                    device.wake = to + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
                }
                Step::Again => is_working = true,
                Step::Reached | Step::Asleep(_) => {}
            }
            top_up(self.engine);
        }
        is_working
    }

    fn serve(&mut self, request: Request, tasks: &mut Tasks<R>) {
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
                console::exit(Exit::Stopped);
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

    fn send_pages(&mut self) {
        let Ok(walker) = self.engine.walker() else {
            return self.host.answer(&Answer::Refused("no memory for a walker".into()));
        };
        let mut pages = Pages::new(walker, self.engine.pages());
        let mut runs = Vec::with_capacity(RUNS);
        loop {
            watchdog::beat();
            pages.next(&mut runs);
            if runs.is_empty() {
                return;
            }
            self.host.answer(&Answer::Pages(runs.clone()));
        }
    }

    /// Changes every workload of the command line.
    fn populate(&mut self, changes: impl Fn(&WorkloadArg) -> Vec<Change>) -> Answer {
        let online = self.hotplug.blocks().filter(|block| block.state == BlockState::Online);
        let blocks: Vec<_> = online.map(|block| self.hotplug.pages(block.id)).collect();
        let engine = self.engine;
        let mut missing = 0;
        for (number, arg) in self.workloads.iter().enumerate() {
            for change in changes(arg) {
                missing += self.population.change(number, change, &blocks, |_| {
                    watchdog::beat();
                    top_up(engine);
                    ControlFlow::Continue(())
                });
            }
        }
        Answer::Populated(missing)
    }

    /// Folds and unfolds the same folios while all walkers look.
    fn cycle(&mut self, cycles: u64, tasks: &mut Tasks<R>) -> Answer {
        let owners = usize::from(self.options.owners);
        let mut cycle = match CycleTask::new(self.crew.lively(), owners..owners + CYCLED) {
            Ok(cycle) => cycle,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let (from, looks) = (clock::now(), self.crew.counts().looks);
        let mut barren = 0;
        while cycle.counts().cycles < cycles {
            let before = cycle.counts().cycles;
            cycle.round();
            // With too little memory for a single folio it would go on for ever.
            barren = if cycle.counts().cycles == before { barren + 1 } else { 0 };
            if barren > 1000 {
                break;
            }
            tasks.step();
            top_up(self.engine);
            watchdog::beat();
        }
        cycle.finish();
        let counts = cycle.counts();
        let ns = clock::now() - from;
        tasks.finish();
        Answer::Cycles(Cycles {
            cycles: counts.cycles,
            rounds: counts.rounds,
            folded: counts.folded,
            unfolded: counts.unfolded,
            ns,
            looks: self.crew.counts().looks - looks,
            busy: counts.busy,
            no_memory: counts.no_memory,
            lost_frames: crew::alone(|| self.lost_frames()),
        })
    }

    /// Frames that are in none of the places where they may be.
    fn lost_frames(&self) -> i64 {
        let (reserve, _) = frames::reserve();
        let tables = self.engine.tables();
        let behind: u64 =
            tables.iter().map(|(_, table)| table.measured()).map(|at| at.pages + at.tables).sum();
        let have = frames::BOOT + machine::TAKEN.load(Ordering::Relaxed);
        have as i64 - (reserve + behind + paging::frames_taken() + tables::SHARED_FRAMES) as i64
    }

    /// Takes 2 MiB of every GiB and of every memory block, as far as they are free, writes to every page, reads all of it
    /// back, and frees it.
    fn touch(&mut self) -> Answer {
        let engine = self.engine;
        let mut taken = Vec::new();
        let blocks: Vec<_> = self.hotplug.blocks().map(|block| self.hotplug.pages(block.id).start).collect();
        let boot = (0..engine.pages())
            .step_by(1 << 18)
            .filter(|start| self.hotplug.block(self.hotplug.block_of(*start)).is_none());
        for start in boot.chain(blocks) {
            watchdog::beat();
            top_up(engine);
            // The first 2 MiB that are free.
            let found = (start..start + (1 << 15))
                .step_by(512)
                .find_map(|pfn| engine.alloc_at(Pfn(pfn), Order::AREA, Kind::Anon).ok());
            let Some(frozen) = found else { continue };
            for pfn in frozen.pfn().0..frozen.pfn().0 + Order::AREA.pages() {
                // SAFETY: a page of a folio that nobody else can reach.
                unsafe { machine::page_words(Pfn(pfn)) }.fill(!pfn);
            }
            if taken.try_reserve(1).is_err() {
                return Answer::Refused("no memory for a list of folios".to_string());
            }
            taken.push(frozen);
        }
        for frozen in &taken {
            watchdog::beat();
            for pfn in frozen.pfn().0..frozen.pfn().0 + Order::AREA.pages() {
                // SAFETY: as above.
                if unsafe { machine::page_words(Pfn(pfn)) }.iter().any(|&word| word != !pfn) {
                    return Answer::Refused(format!("page {pfn:#x} does not hold what was written to it"));
                }
            }
        }
        Answer::Touched(taken.len() as u64 * (2 << 20))
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

    fn report(&self) -> Report {
        let plugged = self.drivers.iter().map(|device| device.driver.status().plugged).sum();
        let online = || self.hotplug.blocks().filter(|block| block.state == BlockState::Online);
        let blocks = online().count() as u64;
        let is_offline = |pfn: u64| self.engine.class(Pfn(pfn)).0 == Class::Offline;
        let areas = |block: BlockInfo| self.hotplug.pages(block.id).step_by(Order::AREA.pages() as usize);
        let partial = online().filter(|&block| areas(block).any(is_offline));
        let tables: Vec<_> = self.engine.tables().into_iter().collect();
        let mut behind = 0;
        let mut page_tables = 0;
        let rows = tables.iter().map(|(kind, table)| {
            use pagefold_engine::platform::Mapping;
            let (counted, measured) = (table.counted(), table.measured());
            behind += measured.pages + measured.tables;
            page_tables += measured.tables;
            TableReport {
                name: format!("{kind:?}"),
                reserved: table.len(),
                counted: counted.pages * PAGE,
                measured: measured.pages * PAGE,
            }
        });
        let rows: Vec<_> = rows.collect();
        let (reserve, lowest) = frames::reserve();
        Report {
            memory: MemoryReport {
                boot: machine::boot_memory(),
                plugged,
                described: machine::boot_memory() + blocks * self.hotplug.config().block_pages * PAGE,
                free: self.engine.free_pages() * PAGE,
                blocks,
                partial_blocks: partial.count() as u64,
            },
            tables: rows,
            page_tables: page_tables * PAGE,
            frames: Frames {
                boot: frames::BOOT,
                taken: machine::TAKEN.load(Ordering::Relaxed),
                reserve,
                lowest,
                tables: behind,
                other: paging::frames_taken() + tables::SHARED_FRAMES,
            },
            folios: Folios {
                held: self.population.folios(),
                bytes: self.population.in_use().iter().sum(),
                migrated: self.population.migrated(),
                lost: self.population.lost(),
            },
            walks: self.crew.counts(),
            flushes: Flushes {
                folds: tables::FOLD_FLUSHES.load(Ordering::Relaxed),
                folded_entries: tables::FOLDED_ENTRIES.load(Ordering::Relaxed),
                unfolds: tables::UNFOLD_FLUSHES.load(Ordering::Relaxed),
                spared: tables::SPARED.load(Ordering::Relaxed),
                barriers: remote::BARRIERS.load(Ordering::Relaxed),
            },
        }
    }
}

/// A population that is asked to move one folio after the other, which takes its time and frames.
struct Watched<'a, R: Protocol>(
    &'a mut Population<'static, 'static, Machine, Memory, R>,
    &'static Engine<Machine, R>,
);

impl<R: Protocol> Migrate<'static, Machine, R> for Watched<'_, R> {
    fn migrate(&mut self, folio: Folio<'static, Machine, R>) -> Migration {
        watchdog::beat();
        top_up(self.1);
        self.0.migrate(folio)
    }
}

impl Device {
    fn status(&self) -> DeviceStatus {
        let status = self.driver.status();
        DeviceStatus {
            requested: status.requested,
            plugged: status.plugged,
            settled: match self.step {
                Step::Reached => Settled::Reached,
                Step::Again => Settled::Working,
                Step::Later(..) => Settled::Retrying,
                Step::Asleep(_) => Settled::Asleep,
            },
            shortfall: status.shortfall.map(|why| why.to_string()),
            retries: self.retries,
            busy_ns: self.busy_ns,
            interrupts: devices::count(self.place as u8),
        }
    }
}
