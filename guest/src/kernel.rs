//! What the first processor has: memory, drivers, workloads, and the host.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pagefold_boot_protocol::{LeftoversChoice, Options};
use pagefold_engine::Engine;
use pagefold_engine::hotplug::Hotplug;
use pagefold_virtio_mem::{Driver, DriverSettings, Inherited, Next};
use pagefold_workload::{Index, Population, Workload, WorkloadArg, slots};

use crate::contents::Memory;
use crate::cpu;
use crate::crew::Crew;
use crate::devices::{Channel, Devices};
use crate::host::HostLink;
use crate::machine::{Choice, GuestPlatform};

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
    pub(crate) wake: u64,
    /// Attempts that fell short since the host's wish last changed, and nanoseconds of work.
    pub(crate) retries: u32,
    pub(crate) busy_ns: u64,
}

/// What the first processor has.
pub struct Kernel<C: Choice> {
    pub(crate) engine: &'static Engine<GuestPlatform<C>>,
    pub(crate) hotplug: Hotplug<'static, GuestPlatform<C>>,
    pub(crate) options: Options,
    pub(crate) devices: Option<Devices>,
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

    /// Begins a driver for a device.
    pub(crate) fn probe(
        &mut self,
        place: usize,
        channel: Channel,
    ) -> Result<Device, pagefold_virtio_mem::ProbeError> {
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
}
