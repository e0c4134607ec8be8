//! A plan, carried out: the machine is made, and the steps follow each other under the walkers' eyes.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;
use pagefold_engine::hotplug::{Hotplug, HotplugConfig};
use pagefold_engine::platform::TableKind;
use pagefold_engine::{BlockState, Config, Engine};
use pagefold_linux::{Linux, measure};
use pagefold_virtio_loopback::{Loopback, LoopbackHal, LoopbackTransport};
use pagefold_virtio_mem::{Driver, DriverSettings, Next, Shortfall, Status, VirtioChannel};
use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};
use pagefold_workload::{Index, Log, Population, Stamp, slots};

use super::barrier::CountedBarrier;
use super::contents::SparseMemory;
use super::plan::{DevicePlan, RunPlan, StepPlan};
use super::report::{Broken, RunReport, StepRow, WalkedRow};
use super::sample::{Curves, Moment};
use crate::cost::{self, Baseline, rematerialised};
use crate::rcu::Rcu;
use crate::source::bar;
use crate::stderr::say;
use crate::walkers::with_walkers;

/// The platform of a run.
type RunPlatform = Linux<CountedBarrier, Stamp>;
type TheDevice = Loopback<Device<Memfd>>;
type TheDriver<'e> = Driver<'e, VirtioChannel<LoopbackHal, LoopbackTransport<Device<Memfd>>>>;

/// Carries out `plan`.
pub fn play(plan: &RunPlan, rcu: Rcu) -> Result<RunReport> {
    let baseline = Baseline::take().context("cannot measure this process (is /proc mounted?)")?;
    let barrier = CountedBarrier::new(rcu);
    let grace_periods = barrier.count();
    let host: RunPlatform = Linux::new(barrier)?;
    host.support().missing().iter().for_each(say);
    let engine = Engine::new(host, Config::new(plan.end() / 4096))?;
    let mut memory = SparseMemory::boot(plan.boot.iter().sum()).context("no memory file for boot memory")?;
    let devices = plan.devices.iter().map(|device| make_device(plan, device)).collect::<Result<Vec<_>>>()?;
    for (device, plan) in devices.iter().zip(&plan.devices) {
        let file = device.with(|device, _| device.backing().file().try_clone())?;
        memory.add(plan.addr, plan.size, file);
    }
    let index = Index::new(&engine, slots(&plan.workloads), Vec::new(), 0)
        .context("no memory for the workloads' index")?;
    let log = Log::new();
    let interrupted = crate::interrupt::interrupted();
    let (mut report, walk) = with_walkers(
        &index,
        &plan.walkers,
        &log,
        plan.seed,
        |_| {},
        || {
            let mut hotplug = engine.hotplug(HotplugConfig {
                block_pages: plan.memory_block / 4096,
                policy: plan.policy,
                fake_offline: plan.fake_offline,
                ..HotplugConfig::default()
            })?;
            boot(&mut hotplug, plan)?;
            let drivers = devices
                .iter()
                .enumerate()
                .map(|(number, device)| probe(number, device, &mut hotplug, plan.seed))
                .collect::<Result<Vec<_>>>()?;
            let mut show = Show {
                plan,
                baseline,
                devices: &devices,
                log: &log,
                interrupted: &interrupted,
                grace_periods,
                hotplug,
                drivers,
                population: Population::new(&index, &memory, &plan.workloads, plan.seed)?,
                curves: Curves::default(),
                bar: bar(""),
                page_tables_before: measure::page_table_bytes()?,
            };
            let report = show.run(rcu.name());
            show.bar.finish_and_clear();
            report
        },
    )?;
    report.walkers = walk.walked.iter().map(|walked| WalkedRow::new(walked, walk.seconds)).collect();
    report.broken.strays = rematerialised(&engine)?.len() as u64;
    report.broken.audit = match engine.audit() {
        Err(violation) => Some(violation.to_string()),
        Ok(_) => None,
    };
    report.broken.note(&log);
    Ok(report)
}

fn make_device(plan: &RunPlan, device: &DevicePlan) -> Result<TheDevice> {
    let backing = Memfd::new(device.size, Pages::Normal)?;
    let settings = Settings {
        block_size: Some(device.block),
        node: device.node.map(u16::from),
        guest_block_size: plan.memory_block,
        ..Settings::new(device.addr, device.size)
    };
    Ok(Loopback::new(Device::new(settings, backing, ())?))
}

fn boot(hotplug: &mut Hotplug<'_, RunPlatform>, plan: &RunPlan) -> Result<()> {
    let mut next = 0;
    for (node, bytes) in plan.boot.iter().enumerate() {
        let pages = next / 4096..(next + bytes) / 4096;
        hotplug.boot(pages, u8::try_from(node)?).context("boot memory")?;
        next += bytes;
    }
    Ok(())
}

fn probe<'e>(
    number: usize,
    device: &TheDevice,
    hotplug: &mut Hotplug<'e, RunPlatform>,
    seed: u64,
) -> Result<TheDriver<'e>> {
    let mut connect = || -> Result<TheDriver<'e>> {
        let transport = device.connect().map_err(|error| anyhow!("{error:?}"))?;
        let channel = VirtioChannel::new(transport, u64::MAX)?;
        Ok(Driver::probe(channel, hotplug, DriverSettings { seed, ..DriverSettings::default() })?)
    };
    connect().with_context(|| format!("the driver of device {number}"))
}

/// Everything that takes part.
struct Show<'a, 'e> {
    plan: &'a RunPlan,
    baseline: Baseline,
    devices: &'a [TheDevice],
    log: &'a Log,
    interrupted: &'a AtomicBool,
    grace_periods: Arc<AtomicU64>,
    hotplug: Hotplug<'e, RunPlatform>,
    drivers: Vec<TheDriver<'e>>,
    population: Population<'a, 'e, RunPlatform, SparseMemory>,
    curves: Curves,
    bar: ProgressBar,
    /// Of this process, before the machine had memory.
    page_tables_before: u64,
}

/// What resizing devices came to.
#[derive(Default)]
struct Resized {
    seconds: f64,
    /// Bytes plugged and unplugged.
    moved: u64,
    shortfalls: Vec<String>,
}

impl Show<'_, '_> {
    fn run(&mut self, rcu: &'static str) -> Result<RunReport> {
        let begun = Instant::now();
        let first = cost::measure(self.hotplug.engine(), self.baseline)?;
        let mut rows = Vec::new();
        let mut broken = Broken::default();
        for (number, step) in self.plan.steps.iter().enumerate() {
            let row = self.step(number, step)?;
            broken.disagreements += u64::from(!self.ends_agree());
            rows.push(row);
            if self.is_interrupted() {
                break;
            }
        }
        broken.lost = self.population.lost();
        let last = std::mem::take(&mut self.curves).into_moments();
        Ok(RunReport {
            schema: 1,
            scenario: self.plan.origin.clone(),
            about: self.plan.about.clone(),
            rcu,
            boot_bytes: self.plan.boot.iter().sum(),
            memory_block_bytes: self.plan.memory_block,
            device_bytes: self.plan.devices.iter().map(|device| device.size).sum(),
            devices: self.plan.devices.len(),
            agree: first.agrees_without_vmpte() && rows.iter().all(|row| row.metadata.agrees_without_vmpte()),
            fell_short: rows.iter().any(|row| row.must && row.shortfall.is_some()),
            first,
            rows,
            steps: self.plan.steps.len(),
            interrupted: self.is_interrupted(),
            seconds: begun.elapsed().as_secs_f64(),
            walkers: Vec::new(),
            broken,
            moments: last,
        })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn grace_periods(&self) -> u64 {
        self.grace_periods.load(Ordering::Relaxed)
    }

    fn step(&mut self, number: usize, step: &StepPlan) -> Result<StepRow> {
        let (grace_periods, migrated) = (self.grace_periods(), self.population.migrated());
        let violations = self.log.total();
        self.bar.set_message(format!("{}/{} {}", number + 1, self.plan.steps.len(), step.name));
        let moment = self.moment(number, 0.0);
        self.curves.begin(moment);
        let begun = Instant::now();
        let no_place = self.change(number, step);
        let change_seconds = begun.elapsed().as_secs_f64();
        let resized = self.resize(number, step, change_seconds)?;
        let moment = self.moment(number, change_seconds + resized.seconds);
        self.curves.end(moment);
        let metadata = cost::measure(self.hotplug.engine(), self.baseline)?;
        let (requested, plugged) = self.sizes();
        let mut resident = 0;
        for device in self.devices {
            resident += device.with(|device, _| device.backing().resident())?;
        }
        let blocks = self.blocks();
        let linux = self.linux(blocks);
        let gib_per_second = resized.moved as f64 / (1u64 << 30) as f64 / resized.seconds.max(1e-9);
        Ok(StepRow {
            name: step.name.clone(),
            requested,
            plugged,
            blocks,
            in_use: self.population.in_use(),
            folios: self.population.folios(),
            change_seconds: (!step.changes.is_empty()).then_some(change_seconds),
            resize_seconds: (!step.resizes.is_empty()).then_some(resized.seconds),
            gib_per_second: (resized.moved > 0).then_some(gib_per_second),
            metadata,
            linux,
            linux_hvo: linux - self.population.hvo_saving(),
            resident,
            grace_periods: self.grace_periods() - grace_periods,
            migrated: self.population.migrated() - migrated,
            no_place,
            must: step.must,
            shortfall: (!resized.shortfalls.is_empty()).then(|| resized.shortfalls.join("; ")),
            violations: self.log.total() - violations,
        })
    }

    /// Changes workloads. Returns the bytes of each that found no place.
    fn change(&mut self, number: usize, step: &StepPlan) -> Vec<(String, u64)> {
        if step.changes.is_empty() {
            return Vec::new();
        }
        let blocks: Vec<Range<u64>> = self
            .hotplug
            .blocks()
            .filter(|block| block.state == BlockState::Online)
            .map(|block| self.hotplug.pages(block.id))
            .collect();
        // Pins come and go with workloads, and drivers cannot see them.
        self.drivers.iter_mut().for_each(|driver| driver.ask_again());
        let begun = Instant::now();
        let mut no_place = Vec::new();
        for change in &step.changes {
            let now = self.moment(number, 0.0);
            let engine = self.hotplug.engine();
            let (curves, before) = (&mut self.curves, self.page_tables_before);
            let interrupted = self.interrupted;
            let missing = self.population.change(change.workload, change.change, &blocks, |population| {
                curves.offer(|| Moment {
                    seconds: begun.elapsed().as_secs_f64(),
                    in_use: population.in_use(),
                    metadata: metadata_now(engine, before),
                    linux: now.linux,
                    ..now
                });
                if interrupted.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            if missing > 0 {
                no_place.push((self.plan.names[change.workload].clone(), missing));
            }
        }
        no_place
    }

    /// Resizes devices, one after the other.
    fn resize(&mut self, number: usize, step: &StepPlan, already: f64) -> Result<Resized> {
        let mut resized = Resized::default();
        for &(device, to) in &step.resizes {
            if self.is_interrupted() {
                break;
            }
            self.devices[device].set_requested_size(to)?;
            let before = self.drivers[device].status().plugged;
            self.bar.set_length(to.abs_diff(before).max(1));
            let begun = Instant::now();
            let mut sampled = Duration::ZERO;
            loop {
                let end = self.drivers[device].step(&mut self.hotplug, &mut self.population);
                let elapsed = begun.elapsed() - sampled;
                let seconds = already + resized.seconds + elapsed.as_secs_f64();
                match end {
                    Next::Again => {}
                    Next::Later(wait, why)
                        if is_fleeting(&why)
                            && (elapsed + wait).as_secs_f64() < self.plan.patience
                            && !self.is_interrupted() =>
                    {
                        std::thread::sleep(wait);
                    }
                    Next::Reached | Next::Later(..) | Next::Asleep(_) => {
                        resized.seconds += elapsed.as_secs_f64();
                        break;
                    }
                }
                if self.is_interrupted() {
                    resized.seconds += elapsed.as_secs_f64();
                    break;
                }
                let looking = Instant::now();
                self.look(number, seconds);
                let done = self.drivers[device].status().plugged.abs_diff(before);
                self.bar.set_position(done);
                sampled += looking.elapsed();
            }
            let status: Status = self.drivers[device].status();
            resized.moved += status.plugged.abs_diff(before);
            if status.plugged != status.requested {
                let prefix =
                    if self.devices.len() > 1 { format!("device {device}: ") } else { String::new() };
                resized.shortfalls.push(format!("{prefix}{status}"));
            }
        }
        Ok(resized)
    }

    fn look(&mut self, number: usize, seconds: f64) {
        let mut curves = std::mem::take(&mut self.curves);
        curves.offer(|| self.moment(number, seconds));
        self.curves = curves;
    }

    fn moment(&self, step: usize, seconds: f64) -> Moment {
        let (requested, plugged) = self.sizes();
        Moment {
            step,
            seconds,
            requested,
            plugged,
            in_use: self.population.in_use(),
            metadata: metadata_now(self.hotplug.engine(), self.page_tables_before),
            linux: self.linux(self.blocks()),
        }
    }

    /// Requested and plugged bytes of all devices.
    fn sizes(&self) -> (u64, u64) {
        let requested =
            self.devices.iter().map(|device| device.with(|device, _| device.config().requested_size.get()));
        let plugged = self.drivers.iter().map(|driver| driver.status().plugged);
        (requested.sum(), plugged.sum())
    }

    /// Memory blocks that are added.
    fn blocks(&self) -> u64 {
        self.hotplug.blocks().count() as u64
    }

    /// Linux's descriptors: 64 bytes for each page of boot memory and of every added block, whatever is plugged of it.
    fn linux(&self, blocks: u64) -> u64 {
        (self.plan.boot.iter().sum::<u64>() + blocks * self.plan.memory_block) / 64
    }

    /// Device and driver say the same of what is plugged.
    fn ends_agree(&self) -> bool {
        self.devices.iter().zip(&self.drivers).all(|(device, driver)| {
            device.with(|device, _| {
                let by_blocks: u64 = device.plugged_ranges().map(|range| range.len).sum();
                let plugged = device.config().plugged_size.get();
                plugged == driver.status().plugged && plugged == by_blocks
            })
        })
    }
}

/// Whether a little patience may help.
fn is_fleeting(why: &Shortfall) -> bool {
    match why {
        Shortfall::InUse { normal, movable } => normal.busy + movable.busy > 0,
        Shortfall::NoSpace
        | Shortfall::OfflineLimit
        | Shortfall::Config(_)
        | Shortfall::Channel(_)
        | Shortfall::Refused(_)
        | Shortfall::OtherMachine => false,
        Shortfall::DeviceBusy
        | Shortfall::DeviceRefused
        | Shortfall::DeviceError
        | Shortfall::Malformed
        | Shortfall::Miscounted { .. }
        | Shortfall::Unsteady
        | Shortfall::Held(_)
        | Shortfall::OutOfMemory
        | Shortfall::NoRoom => true,
    }
}

/// All metadata: tables by our own count, page tables as the system has them.
fn metadata_now(engine: &Engine<RunPlatform>, page_tables_before: u64) -> u64 {
    let tables = engine.tables().map(|(kind, region)| match kind {
        TableKind::Map => engine.materialised_map_pages() * 4096,
        _ => region.counted_pages() * 4096,
    });
    let page_tables = measure::page_table_bytes().unwrap_or(page_tables_before);
    tables.sum::<u64>() + page_tables.saturating_sub(page_tables_before)
}
