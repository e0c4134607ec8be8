//! Linux itself drives our virtio-mem device.
//!
//! One machine at a time. What cannot run is told in the last line; `PAGEFOLD_LAB_LONG=1` runs all of it, on all kernels.

mod sizes;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use vm_lab::our_device::qemu_for;
use vm_lab::{BUSYBOX, Kernel};

/// A test, by name, on a kernel.
type Test = (&'static str, fn(&Kernel));

/// Those that always run.
const TESTS: &[Test] = &[("grows_to_two_gib_and_shrinks_to_nothing", sizes::up_and_down)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kernels: Vec<Kernel> =
        Kernel::newer().unwrap().into_iter().filter(|kernel| qemu_for(kernel).is_some()).collect();
    let mut trials = Vec::new();
    for kernel in &kernels {
        for &(test, run) in TESTS {
            let kernel = kernel.clone();
            trials.push(Trial::test(format!("linux_{}::{test}", kernel.release()), move || {
                run(&kernel);
                Ok(())
            }));
        }
    }
    let nothing = trials.is_empty() || !Path::new(BUSYBOX).exists();
    let is_list = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if nothing && !is_list {
        println!(
            "left out: real Linux on our own device: there is no newer QEMU, or no kernel (crates/lab/setup-qemu)"
        );
    }
    conclusion.exit_code()
}
