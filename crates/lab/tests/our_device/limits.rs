//! Requests that cannot be met.

use pagefold_lab::our_device::{Driven, Wanted};
use pagefold_lab::{GIB, Kernel, MIB};

use super::{resize, shrinks};

/// More than the region has is refused on the host. Less than what is in use is tried, and what is in use stays.
pub fn cannot_be_met(kernel: &Kernel) {
    let mut driven = Driven::boot(kernel, &Wanted { size: 2 * GIB, ..Wanted::default() }).unwrap();
    assert!(driven.backend().resize(2 * GIB + 2 * MIB).is_err());
    assert!(driven.backend().resize(2 * MIB + 1).is_err());
    // All of the region, to its last block.
    resize(&mut driven, 2 * GIB);
    // More than fits beside it into what the guest has at boot; in parts, each in its own time.
    driven.machine.run("mkdir /mnt; mount -t tmpfs -o size=3g none /mnt").unwrap();
    for part in 0..7 {
        driven.machine.run(&format!("dd if=/dev/zero of=/mnt/large{part} bs=1M count=100 2>&1")).unwrap();
    }
    driven.machine.run("head -c 16m /dev/urandom >/mnt/file").unwrap();
    let sum = driven.machine.run("sha1sum </mnt/file").unwrap();
    driven.backend().resize(0).unwrap();
    driven.wait_for("less than 1 GiB plugged", |status| status.plugged_size < GIB).unwrap();
    let status = driven.backend().status();
    assert!(status.plugged_size > 0, "{status:?}");
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    driven.agree().unwrap();
    // Room again: the driver comes back to it when the size is asked for anew.
    driven.machine.run("rm /mnt/*").unwrap();
    driven.backend().resize(2 * MIB).unwrap();
    shrinks(&mut driven);
}

/// A guest that has no memory for the descriptors of more. Its driver stops midway, and goes on from there; or the guest dies
/// of it, and the device is none the worse.
pub fn out_of_memory(kernel: &Kernel) {
    let wanted = Wanted { memory: 192 * MIB, size: 32 * GIB, ..Wanted::default() };
    let mut driven = Driven::boot(kernel, &wanted).unwrap();
    driven.backend().resize(32 * GIB).unwrap();
    let given_up = "dmesg | grep -q 'virtio_mem.*-12\\|Out of memory\\|allocation failure'";
    let lives = driven.machine.wait_for(given_up).and_then(|()| driven.resize(GIB));
    let status = driven.backend().status();
    assert!((GIB..32 * GIB).contains(&status.plugged_size), "{status:?}");
    driven.file_agrees(&status).unwrap();
    match lives {
        Ok(()) => {
            driven.agree().unwrap();
            resize(&mut driven, 0);
        }
        Err(error) => {
            let console = driven.machine.console();
            assert!(console.contains("Out of memory") || console.contains("panic"), "{error:#}");
        }
    }
}
