//! The guest's kernel in QEMU: what it promises, shown by booting it.
//!
//! One binary, one machine at a time. What cannot run is told in the last line.

mod aarch64;
mod course;
mod device;
mod ends;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use pagefold_lab::{Arch, QEMU, Version, static_pagefold};

/// The command, for machines of an architecture.
#[derive(Clone)]
struct Pagefold {
    program: PathBuf,
    arch: Arch,
}

/// A test, by name.
type Test = (&'static str, fn(&Pagefold));

const TESTS: &[Test] = &[
    ("a_tiny_machine_plugs_a_thousand_times_its_memory", course::grows_a_thousandfold),
    ("ten_thousand_cycles_under_walkers_lose_nothing", course::cycles_lose_nothing),
    ("words_and_objects_lose_nothing_either", course::memdesc_loses_nothing),
    ("without_a_grace_period_it_traps", course::the_bug_traps),
    ("what_is_pinned_stays_and_the_rest_comes_back", course::pins_stay),
    ("one_to_eight_processors_come_up", course::processors_come_up),
    ("devices_on_several_nodes_and_big_blocks", course::several_devices),
    ("its_pages_are_those_of_any_machine", course::pages_are_those_of_any_machine),
    ("a_script_does_what_the_command_line_does", course::scripts),
    ("a_busy_device_is_asked_again", device::busy),
    ("wishes_that_change_faster_than_they_come_true", device::storm),
    ("a_reset_with_plugged_blocks", device::reset),
    ("a_driver_that_is_restarted", device::restart),
    ("memory_that_nobody_knows_is_unplugged_or_adopted", device::forgotten),
    ("devices_that_send_messages", device::messages),
    ("what_is_broken_on_purpose_is_told", ends::breaks),
    ("flushes_that_are_missing_are_seen", ends::flushes_that_are_missing_are_seen),
    ("what_did_not_break_is_no_demonstration", ends::survivors),
    ("a_command_line_that_makes_no_sense", ends::usage),
    ("too_little_memory", ends::too_small),
];

const AARCH64: &[Test] = &[
    ("aarch64::a_tiny_machine_plugs_a_thousand_times_its_memory", aarch64::grows_and_shrinks),
    ("aarch64::ten_thousand_cycles_under_walkers_lose_nothing", aarch64::cycles_lose_nothing),
    ("aarch64::models_of_processors_and_interrupt_controllers", aarch64::models),
    ("aarch64::one_to_eight_processors_and_both_barriers", aarch64::processors_and_barriers),
    ("aarch64::devices_on_several_nodes", aarch64::several_devices),
    ("aarch64::without_a_grace_period_it_traps", course::the_bug_traps),
    ("aarch64::flushes_that_are_missing_are_seen", ends::flushes_that_are_missing_are_seen),
    ("aarch64::a_kernel_that_does_not_fit_its_processor", aarch64::a_kernel_that_does_not_fit),
    ("aarch64::words_and_objects_lose_nothing_either", course::memdesc_loses_nothing),
    ("aarch64::what_is_pinned_stays_and_the_rest_comes_back", course::pins_stay),
    ("aarch64::its_pages_are_those_of_any_machine", course::pages_are_those_of_any_machine),
    ("aarch64::a_script_does_what_the_command_line_does", course::scripts),
    ("aarch64::wishes_that_change_faster_than_they_come_true", device::storm),
    ("aarch64::a_reset_with_plugged_blocks", device::reset),
    ("aarch64::a_driver_that_is_restarted", device::restart),
    ("aarch64::devices_that_send_messages", device::messages),
    ("aarch64::what_is_broken_on_purpose_is_told", aarch64::breaks),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = match (Version::of(QEMU), pagefold_boot::find_kernel()) {
        (None, _) => Some("QEMU (crates/lab/setup brings it)"),
        (_, None) => Some("kernel (guest/build makes it)"),
        _ => None,
    };
    let mut trials = Vec::new();
    if missing.is_none() && !arguments.list {
        let pagefold = match static_pagefold() {
            Ok(program) => Pagefold { program, arch: Arch::X86_64 },
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        };
        let aarch64 = if aarch64::missing().is_none() { AARCH64 } else { &[] };
        let all = TESTS.iter().map(|test| (Arch::X86_64, test));
        let all = all.chain(aarch64.iter().map(|test| (Arch::Aarch64, test)));
        trials.extend(all.map(|(arch, &(name, test))| {
            let pagefold = Pagefold { arch, ..pagefold.clone() };
            Trial::test(name, move || {
                test(&pagefold);
                Ok(())
            })
        }));
    }
    let is_list = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(what) = missing
        && !is_list
    {
        println!("left out: the tests on the guest's kernel: there is no {what}");
    }
    if let Some(what) = aarch64::missing()
        && !is_list
    {
        println!("left out: the tests on the guest's kernel for arm64: there is no {what}");
    }
    conclusion.exit_code()
}
