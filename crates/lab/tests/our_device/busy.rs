//! Sizes that change while memory is in use.

use pagefold_lab::our_device::{Driven, Wanted};
use pagefold_lab::{GIB, Kernel, MIB, static_pin};

use super::{resize, shrinks};

/// Random sizes between what is in use and 2 GiB, with page cache, anonymous memory and pinned pages in what was plugged:
/// after each, all accounts agree, and nothing that the guest had is lost.
pub fn random_sizes(kernel: &Kernel) {
    let mut wanted = Wanted::default();
    if !kernel.is_arm64() {
        wanted.files.push(("/bin/lab-pin".into(), static_pin().unwrap()));
    }
    let mut driven = Driven::boot(kernel, &wanted).unwrap();
    resize(&mut driven, 512 * MIB);
    // Files on tmpfs are page cache.
    driven.machine.run("mkdir /mnt; mount -t tmpfs none /mnt; head -c 16m /dev/urandom >/mnt/file").unwrap();
    let sum = driven.machine.run("sha1sum </mnt/file").unwrap();
    // A shell's variable is anonymous memory; the shell waits until it is asked what it has.
    let hold = "mkfifo /tmp/ask /tmp/say; \
                (x=$(head -c 24m /dev/zero | tr '\\0' a); echo held >/tmp/say; read go </tmp/ask; echo ${#x} >/tmp/say) \
                >/dev/null 2>&1 & cat /tmp/say";
    driven.machine.run(hold).unwrap();
    let mut least = 256 * MIB;
    if !kernel.is_arm64() {
        // A page in each of the first two memory blocks.
        let start = driven.backend().status().addr;
        let pin = format!(
            "lab-pin {start:x} {:x} {:x} >/tmp/pinned 2>&1 & until [ -s /tmp/pinned ]; do sleep 0.1; done; cat /tmp/pinned",
            start + 256 * MIB,
            128 * MIB
        );
        assert_eq!(driven.machine.run(&pin).unwrap(), "2\n");
        least = 320 * MIB;
    }
    let steps = if super::is_long() { 200 } else { 4 };
    let seed = 17;
    let mut random = fastrand::Rng::with_seed(seed);
    for step in 0..steps {
        let size = least + random.u64(0..=(2 * GIB - least) / (2 * MIB)) * 2 * MIB;
        driven.resize(size).unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error:#}"));
        driven.agree().unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error:#}"));
        if step % 10 == 0 {
            assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
        }
    }
    assert_eq!(driven.machine.run("sha1sum </mnt/file").unwrap(), sum);
    let held = driven.machine.run("echo go >/tmp/ask; cat /tmp/say").unwrap();
    assert_eq!(held.trim(), (24 * MIB).to_string());
    driven.machine.run("rm /mnt/file; killall lab-pin 2>/dev/null; true").unwrap();
    shrinks(&mut driven);
    let stats = driven.stats();
    assert_eq!((stats.plug.errors, stats.unplug.errors, stats.invalid), (0, 0, 0), "{stats:?}");
}
