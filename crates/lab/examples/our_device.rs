//! Our virtio-mem device beside QEMU's own: the same QEMU, the same kernel, the same driver. Prints what 128 MiB cost to plug
//! and to unplug, and which requests the driver makes; the requests of Pagefold's own driver on QEMU's device beside them.
//!
//! `cargo run --release -p pagefold-lab --example our_device -- [cycles]`; without cycles (0) the requests only.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pagefold_boot::{BUILD, Guest as PagefoldGuest, Rest, find_kernel};
use pagefold_boot_protocol::Options;
use pagefold_lab::our_device::{Driven, Wanted, boot_on_qemus_own, qemu_for};
use pagefold_lab::{Kernel, MIB, Vm, newer_counting_plugin};
use pagefold_qemu::VirtioMem;
use pagefold_virtio_mem_spec::{RequestType, ResponseType};
use pagefold_virtio_mem_vhost::Event;

/// A machine with one of the devices.
trait Guest {
    fn machine(&mut self) -> &mut Vm;
    fn ask(&mut self, bytes: u64) -> Result<()>;
    fn plugged(&mut self) -> Result<u64>;
}

struct Ours(Driven);

impl Guest for Ours {
    fn machine(&mut self) -> &mut Vm {
        &mut self.0.machine
    }
    fn ask(&mut self, bytes: u64) -> Result<()> {
        Ok(self.0.backend.resize(bytes)?)
    }
    fn plugged(&mut self) -> Result<u64> {
        Ok(self.0.backend.status().plugged_size)
    }
}

struct Theirs(Vm);

impl Guest for Theirs {
    fn machine(&mut self) -> &mut Vm {
        &mut self.0
    }
    fn ask(&mut self, bytes: u64) -> Result<()> {
        Ok(self.0.qmp().resize(0, bytes)?)
    }
    fn plugged(&mut self) -> Result<u64> {
        Ok(self.0.qmp().plugged(0)?)
    }
}

/// What one resize cost: seconds until the size was reached, and millions of instructions that the guest executed.
struct Cost {
    wall: f64,
    executed: f64,
}

fn resize(guest: &mut dyn Guest, bytes: u64) -> Result<Cost> {
    let executed = guest.machine().qemu().executed();
    let start = Instant::now();
    guest.ask(bytes)?;
    while guest.plugged()? != bytes {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(120), "{} MiB are not reached", bytes >> 20);
        std::thread::sleep(Duration::from_micros(500));
    }
    let wall = start.elapsed().as_secs_f64();
    // What the guest does after the last answer is part of it: the block goes online, or away.
    let want = if bytes == 0 { "! ls /sys/devices/system/memory/ | grep -q memory3[2-9]" } else { "true" };
    guest.machine().wait_for(want)?;
    let after = guest.machine().qemu().executed();
    let executed = match (executed, after) {
        (Some(before), Some(after)) => (after - before).total() as f64 / 1e6,
        _ => f64::NAN,
    };
    Ok(Cost { wall, executed })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of plugging and unplugging 128 MiB.
fn cycles(name: &str, guest: &mut dyn Guest, cycles: usize) -> Result<[f64; 4]> {
    // Once to warm up: QEMU translates what it has not met.
    resize(guest, 128 * MIB)?;
    resize(guest, 0)?;
    let mut costs = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..cycles {
        for (at, bytes) in [128 * MIB, 0].into_iter().enumerate() {
            let Cost { wall, executed } = resize(guest, bytes)?;
            costs[2 * at].push(wall * 1e3);
            costs[2 * at + 1].push(executed);
        }
    }
    let medians = costs.map(median);
    let [plug, plug_executed, unplug, unplug_executed] = medians;
    println!("{name:<8} {plug:>10.2} {plug_executed:>10.2} {unplug:>10.2} {unplug_executed:>10.2}");
    Ok(medians)
}

/// The driver's requests as words, equal ones in a row counted.
fn shorten(requests: Vec<String>) -> String {
    let mut short: Vec<(String, usize)> = Vec::new();
    for request in requests {
        match short.last_mut() {
            Some((last, count)) if *last == request => *count += 1,
            _ => short.push((request, 1)),
        }
    }
    let words =
        short.into_iter().map(|(word, count)| if count > 1 { format!("{word} x{count}") } else { word });
    words.collect::<Vec<_>>().join(", ")
}

fn ours_asked(driven: &Driven, from: usize) -> String {
    let request = |event: &Event| {
        let Event::Request(request, response) = event else { return None };
        let blocks = request.nb_blocks.get();
        let word = match RequestType::try_from(request.kind.get()) {
            Ok(RequestType::Plug) => format!("PLUG {blocks}"),
            Ok(RequestType::Unplug) => format!("UNPLUG {blocks}"),
            Ok(RequestType::UnplugAll) => "UNPLUG_ALL".into(),
            Ok(RequestType::State) => format!("STATE {blocks}"),
            Err(_) => "?".into(),
        };
        let is_ack = response.kind.get() == ResponseType::Ack as u16;
        Some(if is_ack { word } else { format!("{word} (answer {})", response.kind.get()) })
    };
    shorten(driven.events()[from..].iter().filter_map(request).collect())
}

/// QEMU's trace of its device, as the same words.
fn theirs_asked(console: &str) -> String {
    let field = |line: &str, name: &str| -> Option<u64> {
        let value = line.split(name).nth(1)?.split_ascii_whitespace().next()?;
        value.parse().ok()
    };
    let mut requests: Vec<String> = Vec::new();
    for line in console.lines() {
        let blocks = field(line, "nb_blocks=").unwrap_or(0);
        if line.contains("virtio_mem_plug_request") {
            requests.push(format!("PLUG {blocks}"));
        } else if line.contains("virtio_mem_unplug_request") {
            requests.push(format!("UNPLUG {blocks}"));
        } else if line.contains("virtio_mem_unplug_all_request") {
            requests.push("UNPLUG_ALL".into());
        } else if line.contains("virtio_mem_state_request") {
            requests.push(format!("STATE {blocks}"));
        } else if line.contains("virtio_mem_send_response")
            && let Some(answer) = field(line, "type=").filter(|&answer| answer != 0)
            && let Some(last) = requests.last_mut()
        {
            *last = format!("{last} (answer {answer})");
        }
    }
    shorten(requests)
}

/// Sizes that are asked for, one after the other.
const SIZES: [u64; 5] = [2 * MIB, 130 * MIB, 300 * MIB, 128 * MIB, 0];

/// Pagefold's own kernel, with its own driver, on QEMU's device.
struct Own {
    guest: PagefoldGuest,
    said: usize,
}

impl Own {
    fn boot() -> Result<Self> {
        let kernel = find_kernel().with_context(|| format!("no kernel of our own: {BUILD} makes it"))?;
        let options = Options { walkers: Some(0), ..Options::default() };
        let builder = pagefold_qemu::QemuBuilder::new()
            .kernel(&kernel)
            .command_line(&options.to_string())
            .memory(512 * MIB)
            .virtio_mem(VirtioMem::new(4 << 30).block(2 * MIB))
            .option("-trace", "virtio_mem_*");
        let mut guest = PagefoldGuest::start(builder, Arc::new(AtomicBool::new(false)))?;
        guest.greeting()?;
        Ok(Self { guest, said: 0 })
    }

    fn resize(&mut self, bytes: u64) -> Result<()> {
        const WITHIN: Duration = Duration::from_secs(60);
        self.guest.qmp().resize(0, bytes)?;
        let rest = Rest { wishes: &[(0, bytes)], retries: u32::MAX - 1, within: WITHIN };
        self.guest.rest(rest, |_| ())?;
        Ok(self.guest.qmp().wait_for_plugged(0, bytes, WITHIN)?)
    }

    /// What it has asked since the last time.
    fn asked(&mut self) -> String {
        let console = self.guest.console();
        let asked = theirs_asked(&console[self.said..]);
        self.said = console.len();
        asked
    }
}

fn main() -> Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(20), |text| text.parse())?;
    let kernels = Kernel::newer()?;
    let kernel = kernels.iter().rfind(|kernel| !kernel.is_arm64() && qemu_for(kernel).is_some());
    let kernel = kernel.context("no kernel or no QEMU: crates/lab/setup-qemu brings them")?;
    println!("Linux {}, device blocks of 2 MiB, one CPU", kernel.release());
    let plugin = if count > 0 { Some(newer_counting_plugin()?) } else { None };
    let counting = Wanted { counting_plugin: plugin, ..Wanted::default() };
    for (what, wanted) in [("", &Wanted::default()), ("counting instructions", &counting)] {
        if count == 0 {
            break;
        }
        println!("128 MiB   plug: ms  M executed  unplug: ms  M executed   {what}");
        for _ in 0..2 {
            let mut ours = Ours(Driven::boot(kernel, wanted)?);
            cycles("ours", &mut ours, count)?;
            let stats = ours.0.stats();
            drop(ours);
            let mut theirs = Theirs(boot_on_qemus_own(kernel, wanted, false)?);
            cycles("QEMU's", &mut theirs, count)?;
            for (name, of) in [("PLUG", stats.plug), ("UNPLUG", stats.unplug)] {
                let each = of.latency.total.as_nanos() / u128::from(of.count().max(1));
                println!("         our device itself: {each} ns a {name}, {} of them", of.count());
            }
        }
    }
    let mut ours = Driven::boot(kernel, &Wanted::default())?;
    let mut theirs = boot_on_qemus_own(kernel, &Wanted::default(), true)?;
    let mut own = Own::boot()?;
    let mut said = theirs.console().len();
    println!("at boot       Linux on ours:      {}", ours_asked(&ours, 0));
    println!("              Linux on QEMU's:    {}", theirs_asked(&theirs.console()));
    println!("              Pagefold on QEMU's: {}", own.asked());
    for size in SIZES {
        let from = ours.events().len();
        ours.resize(size)?;
        theirs.qmp().resize(0, size)?;
        theirs.qmp().wait_for_plugged(0, size, Duration::from_secs(60))?;
        ours.agree()?;
        theirs.run("true")?;
        let console = theirs.console();
        println!("to {:>4} MiB   Linux on ours:      {}", size >> 20, ours_asked(&ours, from));
        println!("              Linux on QEMU's:    {}", theirs_asked(&console[said..]));
        said = console.len();
        own.resize(size)?;
        println!("              Pagefold on QEMU's: {}", own.asked());
    }
    Ok(())
}
