//! From a scenario, as somebody wrote it, to a plan that can be carried out: everything that may be wrong with it is found
//! here, with the place in the file.

use std::ops::Range;

use pagefold_engine::hotplug::{DEFAULT_RATIO, FakeOffline, OnlinePolicy};
use pagefold_engine::{Order, Zone};
use pagefold_picture::amount::Bytes;
use pagefold_workload::{Change, Misfit, WalkerKind, Workload, slots};
use toml::Spanned;

use super::scenario::{
    self, FakeOfflineName, OnlineSpec, Scenario, ScenarioMistake, ShareSpec, SizeSpec, parse,
};

const SECTION: u64 = 128 << 20;
/// Device memory lies above here, as on PCs.
const FIRST_DEVICE: u64 = 4 << 30;
/// The most memory of a machine: the driver's and the device's tables, at 2 MiB a bit, stay small.
const MOST_BYTES: u64 = 64 << 40;
/// The most folios of all workloads: a word each in the index that walkers search.
const MOST_FOLIOS: usize = 1 << 24;
const MOST_WALKERS: u16 = 64;

/// What is to be done.
#[derive(Debug)]
pub struct RunPlan {
    /// A name or a file.
    pub origin: String,
    pub about: String,
    /// Bytes of boot memory of each node, from address 0 up.
    pub boot: Vec<u64>,
    pub memory_block: u64,
    pub policy: OnlinePolicy,
    pub fake_offline: FakeOffline,
    /// Seconds.
    pub patience: f64,
    pub seed: u64,
    pub devices: Vec<DevicePlan>,
    pub workloads: Vec<Workload>,
    /// What they are called.
    pub names: Vec<String>,
    pub walkers: Vec<WalkerKind>,
    pub steps: Vec<StepPlan>,
}

#[derive(Debug)]
pub struct DevicePlan {
    pub node: Option<u8>,
    pub addr: u64,
    pub size: u64,
    pub block: u64,
}

#[derive(Debug)]
pub struct StepPlan {
    pub name: String,
    pub changes: Vec<ChangePlan>,
    /// Devices and their new requested sizes.
    pub resizes: Vec<(usize, u64)>,
    pub must: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct ChangePlan {
    pub workload: usize,
    pub change: Change,
}

impl RunPlan {
    /// Reads and judges a scenario.
    pub fn read(origin: &str, text: &str) -> Result<Self, ScenarioMistake> {
        let scenario = parse(origin, text)?;
        Reader { origin, text }.plan(scenario)
    }

    /// Where page numbers end.
    pub fn end(&self) -> u64 {
        let boot: u64 = self.boot.iter().sum();
        self.devices.iter().map(|device| device.addr + device.size).fold(boot, u64::max)
    }

    /// Bytes of the system's memory that touched workloads may fill.
    pub fn touched(&self) -> u64 {
        self.workloads.iter().filter(|workload| workload.touches()).map(Workload::most_bytes).sum()
    }
}

struct Reader<'a> {
    origin: &'a str,
    text: &'a str,
}

type Judged<T> = Result<T, ScenarioMistake>;

impl Reader<'_> {
    fn mistake<T>(&self, span: Range<usize>, message: impl std::fmt::Display) -> Judged<T> {
        Err(ScenarioMistake::new(self.origin, self.text, span, message))
    }

    /// Where the section `header` stands; the file's start if nowhere.
    fn header(&self, header: &str) -> Range<usize> {
        let at = self.text.find(header).unwrap_or(0);
        at..at
    }

    fn plan(&self, scenario: Scenario) -> Judged<RunPlan> {
        let machine = &scenario.machine;
        let memory_block = self.memory_block(machine.memory_block.as_ref())?;
        let boot = self.boot(&machine.boot)?;
        let ratio = match &machine.ratio {
            Some(ratio) if machine.online != OnlineSpec::AutoMovable => {
                return self.mistake(ratio.span(), "a ratio is for online = \"auto-movable\" only");
            }
            Some(ratio) => *ratio.get_ref(),
            None => DEFAULT_RATIO,
        };
        let policy = match machine.online {
            OnlineSpec::Movable => OnlinePolicy::Zone(Zone::Movable),
            OnlineSpec::Kernel => OnlinePolicy::Zone(Zone::Normal),
            OnlineSpec::AutoMovable => OnlinePolicy::AutoMovable { ratio, numa_aware: boot.len() > 1 },
        };
        let fake_offline = match machine.fake_offline {
            FakeOfflineName::Folded => FakeOffline::Folded,
            FakeOfflineName::Classic => FakeOffline::Classic { rcu: false },
            FakeOfflineName::ClassicRcu => FakeOffline::Classic { rcu: true },
        };
        let patience = match &machine.patience {
            Some(seconds) if !(0.0..=3600.0).contains(seconds.get_ref()) => {
                return self.mistake(seconds.span(), "patience must be between 0 and 3600 seconds");
            }
            Some(seconds) => *seconds.get_ref(),
            None => 0.0,
        };
        let devices = self.devices(&scenario, memory_block, &boot)?;
        let names = self.names(&scenario.workloads)?;
        let (workloads, steps) = self.life(&scenario, &names, &devices)?;
        let walkers = self.walkers(&scenario)?;
        Ok(RunPlan {
            origin: self.origin.to_owned(),
            about: scenario.about,
            boot,
            memory_block,
            policy,
            fake_offline,
            patience,
            seed: machine.seed,
            devices,
            workloads,
            names,
            walkers,
            steps,
        })
    }

    fn memory_block(&self, size: Option<&Spanned<SizeSpec>>) -> Judged<u64> {
        let Some(size) = size else { return Ok(SECTION) };
        let bytes = size.get_ref().0;
        if !bytes.is_power_of_two() || !(SECTION..=1 << 40).contains(&bytes) {
            return self
                .mistake(size.span(), "a memory block must be a power of two between 128 MiB and 1 TiB");
        }
        Ok(bytes)
    }

    fn boot(&self, sizes: &[Spanned<SizeSpec>]) -> Judged<Vec<u64>> {
        if sizes.is_empty() || sizes.len() > 64 {
            return self.mistake(
                self.header("[machine]"),
                "a machine has boot memory on 1 to 64 nodes, as in boot = [\"512 MiB\"]",
            );
        }
        for size in sizes {
            let bytes = size.get_ref().0;
            if bytes == 0 || !bytes.is_multiple_of(SECTION) {
                return self.mistake(size.span(), "boot memory must be a multiple of 128 MiB, and not 0");
            }
            if bytes > MOST_BYTES {
                return self.mistake(size.span(), too_large());
            }
        }
        Ok(sizes.iter().map(|size| size.get_ref().0).collect())
    }

    fn devices(&self, scenario: &Scenario, memory_block: u64, boot: &[u64]) -> Judged<Vec<DevicePlan>> {
        let boot_end: u64 = boot.iter().sum();
        if scenario.devices.is_empty() {
            return self
                .mistake(self.header("[machine]"), "no [[device]]: nothing could grow or shrink here");
        }
        let mut next = boot_end.max(FIRST_DEVICE);
        let mut taken = vec![(0..boot_end, "boot memory".to_owned())];
        let mut devices = Vec::new();
        for (number, device) in scenario.devices.iter().enumerate() {
            let block = device.block.as_ref().map_or(2 << 20, |block| block.get_ref().0);
            if !block.is_power_of_two() || !(1 << 20..=1 << 40).contains(&block) {
                let span = device.block.as_ref().map_or(0..0, Spanned::span);
                return self.mistake(span, "a device block must be a power of two between 1 MiB and 1 TiB");
            }
            let unit = block.max(memory_block);
            let size = device.size.get_ref().0;
            if size == 0 || !size.is_multiple_of(unit) {
                let message = format!("a device's size must be a multiple of {}, and not 0", Bytes(unit));
                return self.mistake(device.size.span(), message);
            }
            if size > MOST_BYTES {
                return self.mistake(device.size.span(), too_large());
            }
            let (addr, span) = match &device.at {
                Some(at) => (at.get_ref().0, at.span()),
                None => (next.next_multiple_of(unit), device.size.span()),
            };
            if !addr.is_multiple_of(unit) {
                let message = format!("a device's address must be a multiple of {}", Bytes(unit));
                return self.mistake(span, message);
            }
            let end = addr + size;
            if end > MOST_BYTES {
                return self.mistake(span, too_large());
            }
            if let Some((_, other)) = taken.iter().find(|(range, _)| range.start < end && addr < range.end) {
                return self.mistake(span, format!("device {number} overlaps {other}"));
            }
            taken.push((addr..end, format!("device {number}")));
            next = next.max(end);
            let node = device.node.as_ref().map(|node| *node.get_ref());
            if let Some(node) = &device.node
                && usize::from(*node.get_ref()) >= boot.len()
            {
                let message = format!("no node {}: boot names {} of them", node.get_ref(), boot.len());
                return self.mistake(node.span(), message);
            }
            devices.push(DevicePlan { node, addr, size, block });
        }
        Ok(devices)
    }

    fn walkers(&self, scenario: &Scenario) -> Judged<Vec<WalkerKind>> {
        let count = *scenario.walkers.count.get_ref();
        if count > MOST_WALKERS {
            return self.mistake(scenario.walkers.count.span(), format!("at most {MOST_WALKERS} walkers"));
        }
        let mut kinds: Vec<WalkerKind> = scenario.walkers.kinds.iter().map(|&kind| kind.into()).collect();
        if kinds.is_empty() {
            kinds.extend(WalkerKind::ALL);
        }
        Ok(kinds.into_iter().cycle().take(count.into()).collect())
    }

    fn names(&self, workloads: &[scenario::WorkloadSpec]) -> Judged<Vec<String>> {
        let mut names = Vec::new();
        for workload in workloads {
            let name = workload.name.get_ref();
            if names.contains(name) {
                return self.mistake(workload.name.span(), "two workloads of the same name");
            }
            names.push(name.clone());
        }
        Ok(names)
    }

    /// Workloads and steps: how large the first get is only known from the second.
    fn life(
        &self,
        scenario: &Scenario,
        names: &[String],
        devices: &[DevicePlan],
    ) -> Judged<(Vec<Workload>, Vec<StepPlan>)> {
        let workloads = scenario.workloads.iter().map(|workload| self.workload(workload));
        let mut workloads = workloads.collect::<Judged<Vec<_>>>()?;
        if scenario.steps.is_empty() {
            return self.mistake(self.header("[machine]"), "no [[step]]: nothing would happen");
        }
        let mut steps = Vec::new();
        for step in &scenario.steps {
            let mut changes = Vec::new();
            for change in &step.change {
                let (change, span) = (self.change(change, names)?, change.span());
                if let Change::To(bytes) = change.change {
                    workloads[change.workload].allow(bytes);
                    if slots(&workloads) > MOST_FOLIOS {
                        let message = format!(
                            "more than {MOST_FOLIOS} folios in all workloads; choose larger orders, or less"
                        );
                        return self.mistake(span, message);
                    }
                }
                changes.push(change);
            }
            let mut resizes = Vec::new();
            for resize in &step.resize {
                let number = *resize.device.get_ref();
                let Some(device) = devices.get(number) else {
                    return self.mistake(resize.device.span(), format!("no device {number}"));
                };
                let to = resize.to.get_ref().0;
                if to > device.size || !to.is_multiple_of(device.block) {
                    let message = format!(
                        "device {number} can have multiples of {} up to {}",
                        Bytes(device.block),
                        Bytes(device.size)
                    );
                    return self.mistake(resize.to.span(), message);
                }
                resizes.push((number, to));
            }
            steps.push(StepPlan { name: step.name.clone(), changes, resizes, must: step.must });
        }
        Ok((workloads, steps))
    }

    fn workload(&self, workload: &scenario::WorkloadSpec) -> Judged<Workload> {
        let mut orders = Vec::new();
        for share in &workload.orders {
            let ShareSpec { order, share: part } = *share.get_ref();
            let Some(order) = Order::new(order) else {
                return self.mistake(share.span(), format!("orders go up to {}", Order::MAX.get()));
            };
            orders.push((order, part));
        }
        let fragmentation = workload.fragmentation.as_ref().map_or(0.0, |part| *part.get_ref());
        let made = Workload::new(workload.kind.0, &orders, fragmentation, workload.touch);
        made.or_else(|misfit| {
            let span = match misfit {
                Misfit::Share(number) => workload.orders.get(number).map(Spanned::span),
                Misfit::Sum(_) => workload
                    .orders
                    .first()
                    .zip(workload.orders.last())
                    .map(|(first, last)| first.span().start..last.span().end),
                Misfit::Fragmentation => workload.fragmentation.as_ref().map(Spanned::span),
                Misfit::OutOfMemory => None,
            };
            self.mistake(span.unwrap_or_else(|| workload.name.span()), misfit)
        })
    }

    fn change(&self, spanned: &Spanned<scenario::ChangeSpec>, names: &[String]) -> Judged<ChangePlan> {
        let change = spanned.get_ref();
        let name = change.workload.get_ref();
        let Some(workload) = names.iter().position(|known| known == name) else {
            return self.mistake(change.workload.span(), format!("no workload \"{name}\""));
        };
        let part = |part: &Spanned<f64>| {
            if (0.0..=1.0).contains(part.get_ref()) {
                Ok(*part.get_ref())
            } else {
                self.mistake(part.span(), "a part goes from 0 to 1")
            }
        };
        let change = match (&change.to, &change.free, &change.pin) {
            (Some(to), None, None) if to.get_ref().0 > MOST_BYTES => {
                return self.mistake(to.span(), too_large());
            }
            (Some(to), None, None) => Change::To(to.get_ref().0),
            (None, Some(free), None) => Change::Free(part(free)?),
            (None, None, Some(pin)) => Change::Pin(part(pin)?),
            _ => return self.mistake(spanned.span(), "a change says one of to, free and pin"),
        };
        Ok(ChangePlan { workload, change })
    }
}

fn too_large() -> String {
    format!("more than a scenario can hold, {}", Bytes(MOST_BYTES))
}
