//! A device that is busy or changes its mind, a machine that is reset, a driver that comes anew.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pagefold_boot::{Guest, Rest, find_kernel_of};
use pagefold_boot_protocol::{Answer, DeviceStatus, LeftoversChoice, Options, Request, Restart};
use pagefold_lab::newer::qemu_of;
use pagefold_qemu::{Arch, QemuBuilder, VirtioMem};
use serde_json::json;

use crate::Pagefold;
use crate::course::{number, row};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that is up, with a device of 8 GiB; on arm64 in the newest QEMU that there is, whose devices send messages.
fn guest(pagefold: &Pagefold, options: Options) -> Guest {
    let newer = qemu_of(pagefold.arch).filter(|_| pagefold.arch == Arch::Aarch64);
    let qemu = newer.unwrap_or_else(|| pagefold.arch.program().into());
    let builder = QemuBuilder::new()
        .arch(pagefold.arch)
        .program(qemu)
        .kernel(find_kernel_of(pagefold.arch.into()).unwrap())
        .command_line(&options.to_string())
        .memory(256 * MIB)
        .cpus(2)
        .virtio_mem(VirtioMem::new(8 * GIB))
        .resets();
    let mut guest = Guest::start(builder, Arc::new(AtomicBool::new(false))).unwrap();
    guest.greeting().unwrap();
    guest
}

fn options() -> Options {
    Options { work: vec!["page-cache=64M,touch".into()], ..Options::default() }
}

fn ask(guest: &mut Guest, request: Request) -> Answer {
    let answer = guest.ask(&request, PATIENCE).unwrap();
    assert!(!matches!(answer, Answer::Refused(_)), "{request:?}: {answer:?}");
    answer
}

fn status(guest: &mut Guest) -> DeviceStatus {
    match ask(guest, Request::Status) {
        Answer::Status(status) => status[0].clone(),
        other => panic!("{other:?}"),
    }
}

/// Asks for a size and waits for it.
fn resize(guest: &mut Guest, bytes: u64) {
    guest.qmp().resize(0, bytes).unwrap();
    settle(guest, bytes);
}

/// Waits until so much is plugged.
fn settle(guest: &mut Guest, bytes: u64) {
    let rest = Rest { wishes: &[(0, bytes)], retries: u32::MAX - 1, within: PATIENCE };
    let (status, in_time) = guest.rest(rest, |_| ()).unwrap();
    assert!(in_time && status[0].plugged == bytes, "{status:?}");
    assert_eq!(guest.qmp().plugged(0).unwrap(), bytes, "QEMU has it otherwise");
}

/// Every promise holds, and contents are as they were.
fn end(mut guest: Guest) {
    assert_eq!(ask(&mut guest, Request::Audit), Answer::Done);
    match ask(&mut guest, Request::Report) {
        Answer::Report(report) => {
            assert_eq!((report.folios.lost, report.walks.violations), (0, 0));
            let frames = report.frames;
            assert_eq!(frames.boot + frames.taken, frames.reserve + frames.tables + frames.other);
        }
        other => panic!("{other:?}"),
    }
    let ending = guest.stop();
    assert!(ending.is_in_order(), "{ending:?}");
}

pub fn busy(pagefold: &Pagefold) {
    let mut guest = guest(pagefold, options());
    resize(&mut guest, GIB);
    ask(&mut guest, Request::Populate);
    // While it migrates, slowly, QEMU answers BUSY to every plug and unplug.
    let slowly = json!({ "max-bandwidth": 1000 });
    guest.qmp().execute("migrate-set-parameters", slowly).unwrap();
    guest.qmp().execute("migrate", json!({ "uri": "exec:cat >/dev/null" })).unwrap();
    for wish in [2 * GIB, GIB / 2] {
        guest.qmp().resize(0, wish).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let status = status(&mut guest);
            if status.requested == wish && status.retries >= 2 {
                assert_eq!(status.shortfall.as_deref(), Some("the device is busy"));
                assert_eq!(status.plugged, GIB);
                break;
            }
            assert!(Instant::now() < until, "{status:?}");
        }
    }
    // Nothing was lost by it: as soon as it may, it does.
    guest.qmp().execute("migrate_cancel", json!({})).unwrap();
    settle(&mut guest, GIB / 2);
    end(guest);
}

pub fn storm(pagefold: &Pagefold) {
    // A wish that shrinks while it is being fulfilled is where a device refuses to plug (NACK).
    let mut guest = guest(pagefold, options());
    resize(&mut guest, GIB);
    ask(&mut guest, Request::Populate);
    for wish in (0..200u64).map(|at| at * 7919 % 4096 * 2 * MIB) {
        guest.qmp().resize(0, wish).unwrap();
    }
    resize(&mut guest, 3 * GIB);
    resize(&mut guest, 256 * MIB);
    end(guest);
}

pub fn reset(pagefold: &Pagefold) {
    let mut guest = guest(pagefold, options());
    resize(&mut guest, 2 * GIB);
    // QEMU unplugs all of it; the wish stays, and the kernel that comes up follows it.
    guest.qmp().system_reset().unwrap();
    guest.greeting().unwrap();
    settle(&mut guest, 2 * GIB);
    end(guest);
}

pub fn restart(pagefold: &Pagefold) {
    let mut guest = guest(pagefold, options());
    resize(&mut guest, GIB);
    ask(&mut guest, Request::Populate);
    // Its memory is in use: the new driver asks the device what is plugged (STATE), and takes it over as it is.
    for _ in 0..3 {
        ask(&mut guest, Request::RestartDriver(Restart { device: 0, forget: false }));
        settle(&mut guest, GIB);
    }
    resize(&mut guest, 256 * MIB);
    resize(&mut guest, GIB);
    end(guest);
}

pub fn forgotten(pagefold: &Pagefold) {
    for leftovers in [LeftoversChoice::Unplug, LeftoversChoice::Adopt] {
        let mut guest = guest(pagefold, Options { leftovers, ..options() });
        resize(&mut guest, 4 * GIB);
        // As after the start of another kernel: all of it is plugged, and nobody knows. UNPLUG_ALL, or STATE.
        ask(&mut guest, Request::RestartDriver(Restart { device: 0, forget: true }));
        settle(&mut guest, 4 * GIB);
        ask(&mut guest, Request::Populate);
        resize(&mut guest, GIB);
        end(guest);
    }
}

/// In a QEMU whose devices send messages, a device is on no line; without them nobody would hear of a wish.
pub fn messages(pagefold: &Pagefold) {
    let Some(qemu) = qemu_of(pagefold.arch) else {
        println!("left out: there is no newer QEMU (crates/lab/setup-qemu brings one)");
        return;
    };
    let controllers = match pagefold.arch {
        Arch::X86_64 => &[""][..],
        Arch::Aarch64 => &["--gic 2", "--gic 3"],
    };
    for controller in controllers {
        let arguments = format!(
            "{controller} --qemu {} --memory 128M --cpus 3 --device 1G --device 2G --resize 0:512M+1:1G,0:64M+1:0",
            qemu.display()
        );
        let json = pagefold.boots(&arguments, "");
        for device in 0..2 {
            assert_eq!(json["hello"]["devices"][device]["sends_messages"], true, "{arguments}");
            assert_eq!(number(row(&json, 2), &format!("devices.{device}.interrupts")), 2, "{arguments}");
        }
        assert_eq!(number(row(&json, 2), "report.memory.plugged"), 64 * MIB);
    }
}
