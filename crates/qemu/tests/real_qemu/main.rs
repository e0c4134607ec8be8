//! A real QEMU, and programs of a few bytes in place of kernels. What cannot run is told in the last line.

mod bound;
mod devices;
mod image;
mod talk;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use pagefold_qemu::{QEMU, Version};

/// A test, by name.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("what_is_missing_is_named", talk::missing),
    ("an_option_that_qemu_does_not_like_is_shown", talk::bad_option),
    ("console_port_and_exit_code", talk::ports_and_exit),
    ("resets_and_interrupts", talk::resets_and_interrupts),
    ("quitting_and_dropping_end_it", talk::ends),
    ("it_ends_with_a_parent_that_is_killed", bound::killed_parent),
    ("the_thread_that_started_it_may_end", bound::ended_thread),
    ("a_stopped_qemu_is_noticed_and_ended", bound::stopped),
    ("devices_are_where_they_were_put", devices::places),
    ("each_device_has_its_own_request", devices::requests),
    ("a_device_that_nobody_drives_stays_unplugged", devices::no_driver),
    ("a_dimm_is_plugged", devices::dimm),
];

fn main() -> ExitCode {
    if bound::is_parent() {
        return bound::parent();
    }
    let arguments = Arguments::from_args();
    let is_there = Version::of(QEMU).is_some();
    let tests = if is_there { TESTS } else { &[] };
    let trials = tests.iter().map(|&(name, run)| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !is_there && !arguments.list {
        println!("left out: the tests with QEMU: there is no {QEMU} (crates/lab/setup brings it)");
    }
    conclusion.exit_code()
}
