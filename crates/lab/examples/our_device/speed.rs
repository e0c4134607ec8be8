//! What 128 MiB cost to plug and to unplug, in pairs: one resize on our device, the same on QEMU's, and the next pair the
//! other way round.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pagefold_lab::our_device::{Driven, Wanted, boot_on_qemus_own};
use pagefold_lab::{Kernel, MIB, Vm, newer_counting_plugin};
use serde_json::json;

const WITHIN: Duration = Duration::from_secs(120);
/// How often one looks whether it is done.
const GLANCE: Duration = Duration::from_micros(500);
/// The guest's memory blocks from 4 GiB on.
const BLOCKS: &str = "/sys/devices/system/memory/memory3[2-9]";

/// A machine with one of the devices.
trait DeviceMachine {
    fn machine(&mut self) -> &mut Vm;
    fn ask(&mut self, bytes: u64) -> Result<()>;
    fn plugged(&mut self) -> Result<u64>;
}

struct Ours(Driven);

impl Ours {
    /// QEMU's device is asked by QEMU's socket, and so interrupts its QEMU whenever one looks. This does the same here.
    fn interrupt(&mut self) -> Result<()> {
        let what = json!({ "path": "/machine", "property": "type" });
        Ok(self.0.machine.qmp().execute("qom-get", what).map(|_| ())?)
    }
}

impl DeviceMachine for Ours {
    fn machine(&mut self) -> &mut Vm {
        &mut self.0.machine
    }
    fn ask(&mut self, bytes: u64) -> Result<()> {
        self.interrupt()?;
        Ok(self.0.backend().resize(bytes)?)
    }
    fn plugged(&mut self) -> Result<u64> {
        self.interrupt()?;
        Ok(self.0.backend().status().plugged_size)
    }
}

struct Theirs(Vm);

impl DeviceMachine for Theirs {
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

/// What one resize cost.
#[derive(Clone, Copy)]
struct Cost {
    /// Milliseconds until the device has the size.
    reached: f64,
    /// Milliseconds until the guest has its memory blocks online, or none of them any more.
    done: f64,
    /// Millions of instructions that the guest executed until then.
    executed: f64,
}

fn resize(guest: &mut dyn DeviceMachine, bytes: u64) -> Result<Cost> {
    let executed = guest.machine().qemu().executed();
    let start = Instant::now();
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    guest.ask(bytes)?;
    while guest.plugged()? != bytes {
        ensure!(start.elapsed() < WITHIN, "{} MiB are not reached", bytes >> 20);
        std::thread::sleep(GLANCE);
    }
    let reached = ms(start);
    // Nothing but the shell's own commands, so that looking costs the guest little.
    let is_so = match bytes {
        0 => r#"[ ! -e "$1" ]"#,
        _ => r#"[ -e "$1" ] && read s <"$1/state" && [ "$s" = online ]"#,
    };
    guest.machine().run(&format!("until set -- {BLOCKS}; {is_so}; do sleep 0.005; done"))?;
    let done = ms(start);
    let after = guest.machine().qemu().executed();
    let executed = match (executed, after) {
        (Some(before), Some(after)) => (after - before).total() as f64 / 1e6,
        _ => f64::NAN,
    };
    Ok(Cost { reached, done, executed })
}

/// The quarter, the middle and three quarters of values.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// One line: both devices, and the middle of the pairs' ratios.
fn tell(what: &str, pairs: &[[Cost; 2]], of: impl Fn(&Cost) -> f64) {
    let side = |at: usize| quartiles(pairs.iter().map(|pair| of(&pair[at])).collect());
    let show = |[low, middle, high]: [f64; 3]| format!("{middle:8.2} ({low:.2} to {high:.2})");
    let ratio = quartiles(pairs.iter().map(|pair| of(&pair[0]) / of(&pair[1])).collect());
    println!("{what:<22} ours {}   QEMU's {}   ratio {}", show(side(0)), show(side(1)), show(ratio));
}

/// Prints all of it; `pairs` resizes in each direction.
pub fn measure(kernel: &Kernel, pairs: usize) -> Result<()> {
    println!("128 MiB, {pairs} pairs in turn: middle (quarter to three quarters)");
    for counts in [false, true] {
        let counting_plugin = counts.then(newer_counting_plugin).transpose()?;
        let wanted = Wanted { counting_plugin, ..Wanted::default() };
        let mut ours = Ours(Driven::boot(kernel, &wanted)?);
        let mut theirs = Theirs(boot_on_qemus_own(kernel, &wanted, false)?);
        let mut costs = [Vec::new(), Vec::new()];
        // The first is to warm up: QEMU translates what it has not met.
        for pair in 0..=pairs {
            for (costs, bytes) in costs.iter_mut().zip([128 * MIB, 0]) {
                let both = if pair % 2 == 0 {
                    [resize(&mut ours, bytes)?, resize(&mut theirs, bytes)?]
                } else {
                    let second = resize(&mut theirs, bytes)?;
                    [resize(&mut ours, bytes)?, second]
                };
                if pair > 0 {
                    costs.push(both);
                }
            }
        }
        for (way, costs) in ["plug", "unplug"].into_iter().zip(&costs) {
            if counts {
                tell(&format!("{way}: M instructions"), costs, |cost| cost.executed);
            } else {
                tell(&format!("{way}: ms to the size"), costs, |cost| cost.reached);
                tell(&format!("{way}: ms to the end"), costs, |cost| cost.done);
            }
        }
        let stats = ours.0.stats();
        for (name, of) in [("PLUG", stats.plug), ("UNPLUG", stats.unplug)] {
            let each = of.latency.total.as_nanos() / u128::from(of.count().max(1));
            println!("our device itself: {each} ns a {name}, {} of them", of.count());
        }
    }
    Ok(())
}
