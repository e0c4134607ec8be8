//! Which requests two drivers make on two devices, when the same is asked of each.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pagefold_boot::{BUILD, Guest, Rest, find_kernel};
use pagefold_boot_protocol::{Answer, Options, Request, Restart};
use pagefold_lab::our_device::{Driven, Served, Wanted, boot_on_qemus_own, qemu_for};
use pagefold_lab::{GIB, Kernel, MIB, Vm};
use pagefold_qemu::{QemuBuilder, Qmp, VirtioMem};
use pagefold_virtio_mem_spec::RequestType;
use pagefold_virtio_mem_vhost::Event;
use serde_json::json;

const WITHIN: Duration = Duration::from_secs(120);
/// A command of QEMU's that changes nothing.
const MARK: &str = "query-version";
const RAM: u64 = 512 * MIB;
const BLOCK: u64 = 2 * MIB;
/// Sizes that are asked for, one after the other.
const SIZES: [u64; 5] = [2 * MIB, 130 * MIB, 300 * MIB, 128 * MIB, 0];
/// What is plugged when the machine is reset.
const KEPT: u64 = 300 * MIB;

/// A driver's request: its kind, its blocks, and the answer.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    kind: RequestType,
    blocks: u64,
    answer: u64,
}

/// A guest with a driver, on a device.
trait Side {
    fn name(&self) -> &'static str;
    /// Has the device ask for a size, and waits until it is plugged.
    fn resize(&mut self, bytes: u64) -> Result<()>;
    /// Resets the machine with blocks plugged, and waits until the guest has plugged them again.
    fn reset(&mut self) -> Result<()>;
    /// All requests so far.
    fn asked(&mut self) -> Result<Vec<Asked>>;
    /// Starts the driver anew, which has lost its memory blocks and finds what is plugged; `None` where that cannot be had.
    fn restart_driver(&mut self) -> Result<Option<()>> {
        Ok(None)
    }
}

/// Linux, on either device.
struct LinuxOnOurs(Driven);
struct LinuxOnTheirs(Vm);
/// Pagefold's own kernel, on either device.
struct PagefoldOnOurs(Guest, Served);
struct PagefoldOnTheirs(Guest);

impl Side for LinuxOnOurs {
    fn name(&self) -> &'static str {
        "Linux on ours"
    }
    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.0.resize(bytes)?;
        self.0.agree()
    }
    fn reset(&mut self) -> Result<()> {
        let before = self.0.events().len();
        self.0.machine.begin("reboot -f")?;
        self.0.machine.wait_for_boot()?;
        let events = self.0.events();
        ensure!(events.len() > before, "the device heard nothing of a reboot");
        self.0
            .wait_for("all plugged again", |status| status.driver.is_some() && status.plugged_size == KEPT)?;
        self.0.agree()
    }
    fn asked(&mut self) -> Result<Vec<Asked>> {
        Ok(told(&self.0.events()))
    }
}

impl Side for LinuxOnTheirs {
    fn name(&self) -> &'static str {
        "Linux on QEMU's"
    }
    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.0.qmp().resize(0, bytes)?;
        Ok(self.0.qmp().wait_for_plugged(0, bytes, WITHIN)?)
    }
    fn reset(&mut self) -> Result<()> {
        self.0.begin("reboot -f")?;
        self.0.wait_for_boot()?;
        Ok(self.0.qmp().wait_for_plugged(0, KEPT, WITHIN)?)
    }
    fn asked(&mut self) -> Result<Vec<Asked>> {
        let it = RefCell::new(&mut self.0);
        traced(|| it.borrow().console(), || query(it.borrow_mut().qmp()))
    }
}

impl Side for PagefoldOnOurs {
    fn name(&self) -> &'static str {
        "Pagefold on ours"
    }
    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.1.backend.resize(bytes)?;
        rest(&mut self.0, bytes)?;
        let status = self.1.backend.status();
        ensure!(status.plugged_size == bytes, "{status:?}");
        Ok(())
    }
    fn reset(&mut self) -> Result<()> {
        self.0.qmp().system_reset()?;
        self.0.greeting()?;
        rest(&mut self.0, KEPT)
    }
    fn asked(&mut self) -> Result<Vec<Asked>> {
        Ok(told(&self.1.events()))
    }
    fn restart_driver(&mut self) -> Result<Option<()>> {
        restart_driver(&mut self.0).map(Some)
    }
}

impl Side for PagefoldOnTheirs {
    fn name(&self) -> &'static str {
        "Pagefold on QEMU's"
    }
    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.0.qmp().resize(0, bytes)?;
        rest(&mut self.0, bytes)?;
        Ok(self.0.qmp().wait_for_plugged(0, bytes, WITHIN)?)
    }
    fn reset(&mut self) -> Result<()> {
        self.0.qmp().system_reset()?;
        self.0.greeting()?;
        rest(&mut self.0, KEPT)
    }
    fn asked(&mut self) -> Result<Vec<Asked>> {
        let it = RefCell::new(&mut self.0);
        traced(|| it.borrow().console(), || query(it.borrow_mut().qmp()))
    }
    fn restart_driver(&mut self) -> Result<Option<()>> {
        restart_driver(&mut self.0).map(Some)
    }
}

/// Waits until the guest of ours has what it was asked for.
fn rest(guest: &mut Guest, bytes: u64) -> Result<()> {
    let rest = Rest { wishes: &[(0, bytes)], retries: u32::MAX - 1, within: WITHIN };
    let (status, in_time) = guest.rest(rest, |_| ())?;
    ensure!(in_time, "{} MiB are not reached: {status:?}", bytes >> 20);
    Ok(())
}

fn restart_driver(guest: &mut Guest) -> Result<()> {
    match guest.ask(&Request::RestartDriver(Restart { device: 0, forget: true }), WITHIN)? {
        Answer::Done => rest(guest, KEPT),
        other => bail!("the driver does not start anew: {other:?}"),
    }
}

/// What our device has told.
fn told(events: &[Event]) -> Vec<Asked> {
    let asked = |event: &Event| {
        let Event::Request(request, response) = event else { return None };
        let kind = RequestType::try_from(request.kind.get()).ok()?;
        let blocks = if kind == RequestType::UnplugAll { 0 } else { request.nb_blocks.get().into() };
        Some(Asked { kind, blocks, answer: response.kind.get().into() })
    };
    events.iter().filter_map(asked).collect()
}

/// What QEMU's trace of its device tells, up to now: it comes a little later than QEMU does things, but in their order.
fn traced(mut console: impl FnMut() -> String, mut query: impl FnMut() -> Result<()>) -> Result<Vec<Asked>> {
    // QEMU traces that it was asked.
    let marks = |console: String| console.matches(MARK).count();
    let before = marks(console());
    query()?;
    let start = Instant::now();
    while marks(console()) == before {
        ensure!(start.elapsed() < WITHIN, "QEMU's trace does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(read_trace(&console()))
}

fn query(qmp: &mut Qmp) -> Result<()> {
    Ok(qmp.execute(MARK, json!({})).map(|_| ())?)
}

fn read_trace(console: &str) -> Vec<Asked> {
    let field = |line: &str, name: &str| -> Option<u64> {
        line.split(name).nth(1)?.split_ascii_whitespace().next()?.parse().ok()
    };
    let mut asked: Vec<Asked> = Vec::new();
    for line in console.lines() {
        let kinds = [
            ("virtio_mem_plug_request", RequestType::Plug),
            ("virtio_mem_unplug_request", RequestType::Unplug),
            ("virtio_mem_unplug_all_request", RequestType::UnplugAll),
            ("virtio_mem_state_request", RequestType::State),
        ];
        if let Some((_, kind)) = kinds.into_iter().find(|(name, _)| line.contains(name)) {
            asked.push(Asked { kind, blocks: field(line, "nb_blocks=").unwrap_or(0), answer: 0 });
        } else if line.contains("virtio_mem_send_response")
            && let Some(last) = asked.last_mut()
        {
            last.answer = field(line, "type=").unwrap_or(0);
        }
    }
    asked
}

/// Requests as words, equal ones in a row counted.
fn words(asked: &[Asked]) -> String {
    let word = |asked: &Asked| {
        let word = match asked.kind {
            RequestType::Plug => format!("PLUG {}", asked.blocks),
            RequestType::Unplug => format!("UNPLUG {}", asked.blocks),
            RequestType::UnplugAll => "UNPLUG_ALL".into(),
            RequestType::State => format!("STATE {}", asked.blocks),
        };
        if asked.answer == 0 { word } else { format!("{word} (answer {})", asked.answer) }
    };
    let rows = asked.chunk_by(|one, next| one == next).map(|row| match row.len() {
        1 => word(&row[0]),
        many => format!("{} x{many}", word(&row[0])),
    });
    let rows: Vec<String> = rows.collect();
    if rows.is_empty() { "none".into() } else { rows.join(", ") }
}

/// A guest of ours in the QEMU that Linux has, too.
fn pagefold(qemu: QemuBuilder) -> Result<Guest> {
    let kernel = find_kernel().with_context(|| format!("no kernel of our own: {BUILD} makes it"))?;
    let options = Options { walkers: Some(0), ..Options::default() };
    let builder = qemu.kernel(&kernel).command_line(&options.to_string()).memory(RAM).resets();
    let mut guest = Guest::start(builder, Arc::new(AtomicBool::new(false)))?;
    guest.greeting()?;
    Ok(guest)
}

/// Prints them side by side.
pub fn compare(kernel: &Kernel) -> Result<()> {
    let program = qemu_for(kernel).context("no newer QEMU")?;
    let qemu = || QemuBuilder::new().program(&program);
    let wanted = Wanted { resets: true, ..Wanted::default() };
    let served = Served::new(BLOCK, wanted.size, 4 * GIB)?;
    let ram = format!("memory-backend-memfd,id=ram,size={RAM},share=on");
    let shared = qemu().machine("q35,memory-backend=ram").option("-object", &ram).dimms(wanted.size + GIB);
    let on_ours = pagefold(served.give_to(shared, "pc-dimm"))?;
    let own = VirtioMem::new(wanted.size).block(BLOCK);
    let on_theirs = pagefold(
        qemu().virtio_mem(own).option("-trace", "virtio_mem_*").option("-trace", "handle_qmp_command"),
    )?;
    let mut sides: [Box<dyn Side>; 4] = [
        Box::new(LinuxOnOurs(Driven::boot(kernel, &wanted)?)),
        Box::new(LinuxOnTheirs(boot_on_qemus_own(kernel, &wanted, true)?)),
        Box::new(PagefoldOnOurs(on_ours, served)),
        Box::new(PagefoldOnTheirs(on_theirs)),
    ];
    let mut seen = [0; 4];
    let mut row = |what: &str, act: &mut dyn FnMut(&mut dyn Side) -> Result<Option<()>>| -> Result<()> {
        for (at, side) in sides.iter_mut().enumerate() {
            let is_had = act(side.as_mut()).with_context(|| format!("{what}: {}", side.name()))?.is_some();
            let asked = side.asked()?;
            let said = if is_had { words(&asked[seen[at]..]) } else { "not tried".into() };
            println!("{:<22} {:<20} {said}", if at == 0 { what } else { "" }, side.name());
            seen[at] = asked.len();
        }
        Ok(())
    };
    row("start", &mut |_| Ok(Some(())))?;
    for size in SIZES {
        row(&format!("to {} MiB", size >> 20), &mut |side| side.resize(size).map(Some))?;
    }
    row(&format!("to {} MiB", KEPT >> 20), &mut |side| side.resize(KEPT).map(Some))?;
    row("the machine is reset", &mut |side| side.reset().map(Some))?;
    row("another driver comes", &mut |side| side.restart_driver())
}
