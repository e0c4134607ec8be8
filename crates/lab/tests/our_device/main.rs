//! Linux itself drives our virtio-mem device.
//!
//! One machine at a time. What cannot run is told in the last lines. A few tests run on each kernel; with
//! `PAGEFOLD_LAB_LONG=1` all of them do, on all kernels, and the random ones take longer.

mod busy;
mod life;
mod limits;
mod sizes;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use pagefold_lab::our_device::{Driven, qemu_for};
use pagefold_lab::{BUSYBOX, Kernel};

/// Kernels that a test runs on when time is short.
#[derive(Clone, Copy, PartialEq)]
enum On {
    /// The newest for x86-64.
    Newest,
    /// The oldest for x86-64.
    Oldest,
    /// The newest for arm64.
    Arm64,
}

/// A test: its name, what it runs on when time is short, and what it does. On arm64 no pages are pinned: the program for
/// that is built for x86-64 only.
type Test = (&'static str, &'static [On], fn(&Kernel));

const TESTS: &[Test] = &[
    ("grows_to_two_gib_and_shrinks_to_nothing", &[On::Newest], sizes::up_and_down),
    ("blocks_of_128_mib", &[], sizes::blocks_of_128_mib),
    ("big_blocks_of_256_mib", &[On::Oldest], sizes::big_blocks_of_256_mib),
    ("a_kernel_zone_gives_back_what_it_can", &[], sizes::kernel_zone),
    ("random_sizes_while_memory_is_in_use", &[On::Newest], busy::random_sizes),
    ("what_cannot_be_met_is_not_and_does_no_harm", &[], limits::cannot_be_met),
    ("a_guest_without_memory_for_more", &[], limits::out_of_memory),
    ("a_driver_that_leaves_and_comes_back", &[On::Newest], life::rebind),
    ("a_qemu_and_a_device_that_end_and_come_back", &[], life::restart),
    ("a_kernel_that_starts_another", &[], life::kexec),
    ("a_device_that_is_restarted_under_its_guest", &[], life::restart_under_a_guest),
    ("a_guest_that_reboots_with_blocks_plugged", &[On::Arm64], life::reboot),
];

/// Has the guest plug or unplug, and all accounts agree.
#[track_caller]
fn resize(driven: &mut Driven, bytes: u64) {
    driven.resize(bytes).unwrap();
    driven.agree().unwrap();
}

/// Nothing stays plugged, and no memory behind it.
#[track_caller]
fn shrinks(driven: &mut Driven) {
    resize(driven, 0);
    assert_eq!(driven.backend().status().resident, 0);
}

/// Whether all tests are to run.
fn is_long() -> bool {
    std::env::var_os("PAGEFOLD_LAB_LONG").is_some_and(|value| value != "0")
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kernels = Kernel::newer().unwrap();
    let kernels: Vec<&Kernel> = kernels.iter().filter(|kernel| qemu_for(kernel).is_some()).collect();
    let pc = |kernel: &&&Kernel| !kernel.is_arm64();
    let on = [
        (On::Newest, kernels.iter().rfind(pc)),
        (On::Oldest, kernels.iter().find(pc)),
        (On::Arm64, kernels.iter().rfind(|kernel| kernel.is_arm64())),
    ];
    let mut trials = Vec::new();
    for &kernel in &kernels {
        for &(test, short, run) in TESTS {
            let is_short = on.iter().any(|(on, that)| {
                short.contains(on) && that.is_some_and(|that| that.release() == kernel.release())
            });
            if is_long() || is_short {
                let kernel = kernel.clone();
                trials.push(Trial::test(format!("linux_{}::{test}", kernel.release()), move || {
                    run(&kernel);
                    Ok(())
                }));
            }
        }
    }
    let is_list = arguments.list;
    let can_run = Path::new(BUSYBOX).exists() && !trials.is_empty();
    let conclusion = libtest_mimic::run(&arguments, if can_run { trials } else { Vec::new() });
    if !is_list && !can_run {
        println!(
            "left out: real Linux on our own virtio-mem device: there is no newer QEMU or no kernel for it \
             (crates/lab/setup-qemu brings them)"
        );
    } else if !is_list && !is_long() {
        println!(
            "left out: the long tests of real Linux on our own virtio-mem device (PAGEFOLD_LAB_LONG=1 runs them)"
        );
    }
    conclusion.exit_code()
}
