//! Growing and shrinking.

use pagefold_lab::our_device::{Driven, Wanted};
use pagefold_lab::{GIB, Kernel, MIB};

use super::resize;

/// 0, 1, 2 GiB, and back: after each step all accounts agree.
pub fn up_and_down(kernel: &Kernel) {
    climb(kernel, &Wanted::default(), &[GIB, 2 * GIB, 0]);
}

/// Device blocks as large as the guest's memory blocks.
pub fn blocks_of_128_mib(kernel: &Kernel) {
    climb(kernel, &Wanted { block: 128 * MIB, ..Wanted::default() }, &[GIB, 2 * GIB, 128 * MIB, 0]);
}

/// Device blocks larger than the guest's memory blocks: Linux's big-block mode.
pub fn big_blocks_of_256_mib(kernel: &Kernel) {
    climb(kernel, &Wanted { block: 256 * MIB, ..Wanted::default() }, &[512 * MIB, GIB, 256 * MIB, 0]);
}

fn climb(kernel: &Kernel, wanted: &Wanted, sizes: &[u64]) {
    let mut driven = Driven::boot(kernel, wanted).unwrap();
    for &size in sizes {
        resize(&mut driven, size);
    }
    assert_eq!(driven.backend().status().resident, 0);
    let stats = driven.stats();
    assert_eq!((stats.plug.errors, stats.unplug.errors, stats.invalid), (0, 0, 0), "{stats:?}");
    assert_eq!(stats.plug.bytes, stats.unplug.bytes, "{stats:?}");
}

/// Memory that was onlined to a kernel zone: what kernel pages sit in stays, and is the guest's still.
pub fn kernel_zone(kernel: &Kernel) {
    let wanted = Wanted { command_line: "memhp_default_state=online_kernel".into(), ..Wanted::default() };
    let mut driven = Driven::boot(kernel, &wanted).unwrap();
    resize(&mut driven, 512 * MIB);
    driven.machine.run("mkdir /mnt; mount -t tmpfs none /mnt; head -c 16m /dev/urandom >/mnt/file").unwrap();
    let sum = driven.machine.run("sha1sum </mnt/file").unwrap();
    driven.backend().resize(0).unwrap();
    // Most of it comes back; how much is the guest's luck.
    driven.wait_for("less than 384 MiB plugged", |status| status.plugged_size < 384 * MIB).unwrap();
    driven.agree().unwrap();
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    resize(&mut driven, 512 * MIB);
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
}
