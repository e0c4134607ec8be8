//! Drivers and guests that go and come back.

use pagefold_lab::our_device::{Driven, Wanted};
use pagefold_lab::{Kernel, MIB};
use pagefold_virtio_mem_spec::RequestType;
use pagefold_virtio_mem_vhost::Event;

use super::{resize, shrinks};

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
    resize(&mut driven, 0);
    driven.machine.run(&format!("echo {name} >{driver}/unbind")).unwrap();
    driven.wait_for("no driver", |status| status.driver.is_none()).unwrap();
    // The host may ask meanwhile; who comes, reads it.
    assert!(driven.backend().resize(128 * MIB).is_err(), "nobody is there to follow");
    driven.machine.run(&format!("echo {name} >{driver}/bind")).unwrap();
    driven.wait_for("a driver", |status| status.driver.is_some()).unwrap();
    resize(&mut driven, 128 * MIB);
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
    resize(&mut driven, 256 * MIB);
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
    resize(&mut driven, 256 * MIB);
    driven.restart_qemu().unwrap();
    has_begun_anew(&mut driven, 1);
    driven.restart_both().unwrap();
    has_begun_anew(&mut driven, 2);
    shrinks(&mut driven);
}

/// The device ends under a guest that has memory of it in use, and another one goes on from its state. The guest keeps what it
/// has: the memory is the file's. QEMU's generic device does not come back to it, so the guest boots anew in another QEMU.
pub fn restart_under_a_guest(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted::default()).unwrap();
    resize(&mut driven, 256 * MIB);
    driven.machine.run("mkdir /mnt; mount -t tmpfs none /mnt; head -c 16m /dev/urandom >/mnt/file").unwrap();
    let sum = driven.machine.run("sha1sum </mnt/file").unwrap();
    driven.served.restart().unwrap();
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    driven.machine.run("head -c 160m /dev/urandom >/mnt/more; rm /mnt/more").unwrap();
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    let status = driven.backend().status();
    assert!(!status.connected && status.plugged_size == 256 * MIB, "{status:?}");
    driven.agree().unwrap();
    driven.restart_qemu().unwrap();
    has_begun_anew(&mut driven, 1);
    shrinks(&mut driven);
}

/// The kernel starts another one in its place, without a reset of the machine: that one finds blocks plugged, and unplugs
/// them before it takes any.
pub fn kexec(kernel: &Kernel) {
    if kernel.is_arm64() {
        println!("left out: kexec on arm64: Debian's image is one that only firmware unpacks");
        return;
    }
    let mut driven = Driven::boot(kernel, &Wanted { kexec: true, ..Wanted::default() }).unwrap();
    resize(&mut driven, 256 * MIB);
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let before = driven.machine.run(boot).unwrap();
    driven.machine.begin("lab-kexec /kernel /disk").unwrap();
    driven.machine.wait_for_boot().unwrap();
    assert_ne!(driven.machine.run(boot).unwrap(), before);
    has_begun_anew(&mut driven, 1);
    shrinks(&mut driven);
}

/// How often a guest has unplugged all.
fn unplugged_all(driven: &Driven) -> usize {
    let is_all = |event: &Event| matches!(event, Event::Request(request, _) if request.kind.get() == RequestType::UnplugAll as u16);
    driven.events().iter().filter(|event| is_all(event)).count()
}

/// The guest has unplugged what the ones before it had left, once each, has plugged 256 MiB again, and goes on.
fn has_begun_anew(driven: &mut Driven, times: usize) {
    driven
        .wait_for("256 MiB again", |status| status.plugged_size == 256 * MIB && status.driver.is_some())
        .unwrap();
    assert_eq!(unplugged_all(driven), times);
    // Of two boots of a kernel one may have a page more than the other: the kernel lies elsewhere each time. So each is held
    // against itself.
    let before = driven.boot_memory;
    driven.resize(0).unwrap();
    driven.take_boot_memory().unwrap();
    assert!(driven.boot_memory.abs_diff(before) <= MIB, "{before} bytes, and {} now", driven.boot_memory);
    resize(driven, 256 * MIB);
}
