//! Drivers and guests that go and come back.

use pagefold_lab::our_device::{Driven, Wanted};
use pagefold_lab::{Kernel, MIB};
use pagefold_virtio_mem_spec::RequestType;
use pagefold_virtio_mem_vhost::Event;

/// How often a driver has become ready.
fn drivers(driven: &Driven) -> usize {
    driven.events().iter().filter(|event| matches!(event, Event::DriverReady(_))).count()
}

/// With nothing plugged a driver can be taken away and given back. With memory in use it leaves that behind: the device
/// keeps it, and no second driver is let at it.
pub fn rebind(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted::default()).unwrap();
    let driver = "/sys/bus/virtio/drivers/virtio_mem";
    let name = driven.machine.run(&format!("cd {driver}; ls -d virtio*")).unwrap();
    let name = name.trim();
    driven.resize(128 * MIB).unwrap();
    driven.resize(0).unwrap();
    driven.agree().unwrap();
    driven.machine.run(&format!("echo {name} >{driver}/unbind")).unwrap();
    driven.wait_for("no driver", |status| status.driver.is_none()).unwrap();
    // The host may ask meanwhile; who comes, reads it.
    assert!(driven.backend.resize(128 * MIB).is_err(), "nobody is there to follow");
    driven.machine.run(&format!("echo {name} >{driver}/bind")).unwrap();
    driven.wait_for("a driver", |status| status.driver.is_some()).unwrap();
    driven.resize(128 * MIB).unwrap();
    driven.agree().unwrap();
    driven.machine.run("mkdir /mnt; mount -t tmpfs none /mnt; head -c 8m /dev/urandom >/mnt/file").unwrap();
    let sum = driven.machine.run("sha1sum </mnt/file").unwrap();
    driven.machine.run(&format!("echo {name} >{driver}/unbind")).unwrap();
    let status = driven.wait_for("no driver", |status| status.driver.is_none()).unwrap();
    assert_eq!(status.plugged_size, 128 * MIB, "a device reset changes no block");
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    driven.agree().unwrap();
    let before = drivers(&driven);
    driven.machine.run(&format!("echo {name} >{driver}/bind 2>/dev/null || true")).unwrap();
    assert_eq!(drivers(&driven), before, "Linux refuses a driver whose memory is in use");
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
}

/// A guest that boots anew unplugs what the one before had left, and plugs what is requested.
pub fn reboot(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted { resets: true, ..Wanted::default() }).unwrap();
    driven.resize(256 * MIB).unwrap();
    driven.agree().unwrap();
    driven.machine.begin("reboot -f").unwrap();
    driven.machine.wait_for_boot().unwrap();
    has_begun_anew(&mut driven, 1);
    assert_eq!(driven.stats().unplugged_by_all, 256 * MIB);
    shrinks(&mut driven);
}

/// QEMU is killed with blocks plugged, and then the device ends too, and goes on from its state. They stay plugged until the
/// guest has booted anew.
pub fn restart(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted::default()).unwrap();
    driven.resize(256 * MIB).unwrap();
    driven.agree().unwrap();
    driven.restart_qemu().unwrap();
    has_begun_anew(&mut driven, 1);
    driven.restart_both().unwrap();
    has_begun_anew(&mut driven, 2);
    shrinks(&mut driven);
}

/// The guest has unplugged what the ones before it had left, once each, and has plugged 256 MiB again.
fn has_begun_anew(driven: &mut Driven, times: usize) {
    let is_all = |event: &Event| matches!(event, Event::Request(request, _) if request.kind.get() == RequestType::UnplugAll as u16);
    let all = |driven: &Driven| driven.events().iter().filter(|event| is_all(event)).count();
    driven
        .wait_for("256 MiB again", |status| status.plugged_size == 256 * MIB && status.driver.is_some())
        .unwrap();
    driven.agree().unwrap();
    assert_eq!(all(driven), times);
}

fn shrinks(driven: &mut Driven) {
    driven.resize(0).unwrap();
    driven.agree().unwrap();
    assert_eq!(driven.backend.status().resident, 0);
}
