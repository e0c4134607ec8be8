//! What Pagefold says of a machine, beside what real Linux kernels say.
//!
//! One binary, one machine at a time: a guest takes about half a GiB. What cannot run is told in the last line.

mod beside;
mod blocks;
mod breakdowns;
mod counts;
mod guest;
mod hotplug;
mod hvo;
mod memmap_on_memory;
mod mixed;
mod partial_block;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use pagefold_lab::{BUSYBOX, Kernel, QEMU, Version};

/// A test, by name, on a kernel.
type Test = (&'static str, fn(&Kernel));

const TESTS: &[Test] = &[
    ("guests_that_break_down_end_a_test_soon", breakdowns::end_soon),
    ("a_partly_plugged_block_and_its_replay", partial_block::shows_and_replays),
    ("blocks_that_go_offline_and_come_back", blocks::show),
    ("the_predicted_effect_of_hvo", hvo::is_the_kernels),
    MIXED[0],
    MIXED[1],
    ("a_guest_that_grows_as_planned", hotplug::is_as_planned),
    ("pages_that_are_not_mapped_have_no_map_count", counts::are_zero),
    ("memmap_on_memory_has_no_effect_on_virtio_mem", memmap_on_memory::does_nothing),
];

/// Those that kernels differ in most.
const MIXED: [Test; 2] = [
    ("huge_pages_made_while_hvo_was_on_and_after", mixed::is_told),
    ("huge_pages_made_before_hvo_was_on_and_after", mixed::stays_as_made),
];

/// Tests that count instructions.
const COUNTING: &[Test] = &[
    ("two_machines_execute_the_same", beside::counts_repeat),
    ("pinned_pages_keep_their_descriptors", beside::pins_stay),
    ("a_panic_is_a_row", beside::a_panic_is_a_row),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let qemu = Version::of(QEMU);
    let missing = missing_program(qemu);
    let counts = qemu.is_some_and(Version::counts_instructions);
    let tests: Vec<_> = TESTS.iter().chain(COUNTING.iter().filter(|_| counts)).collect();
    let mut left_out = Vec::new();
    let mut trials = Vec::new();
    for (name, kernel, all) in kernels() {
        let tests = if all { tests.clone() } else { MIXED.iter().collect() };
        match kernel {
            Some(kernel) if missing.is_none() => trials.extend(tests.iter().map(|&&(test, run)| {
                let kernel = kernel.clone();
                Trial::test(format!("linux_{}::{test}", kernel.release()), move || {
                    run(&kernel);
                    Ok(())
                })
            })),
            _ => left_out.push(name),
        }
    }
    let is_list = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !left_out.is_empty() && !is_list {
        let what = missing.unwrap_or("such kernel");
        println!(
            "left out: the tests on real {}: there is no {what} (crates/lab/setup brings it)",
            left_out.join(" and ")
        );
    }
    if missing.is_none() && !counts && !is_list {
        println!(
            "left out: the tests that count instructions: {QEMU} is 9.0 or newer, which takes no such plugin"
        );
    }
    conclusion.exit_code()
}

/// The kernels to test, and whether by all tests: one from before Linux counts its memory map (6.10), and one from after; one
/// whose page flags show what HVO has optimised, and one that does it in another way since. The newest of each.
fn kernels() -> [(&'static str, Option<Kernel>, bool); 4] {
    let all = Kernel::all().unwrap();
    let newest =
        |is_wanted: fn((u32, u32)) -> bool| all.iter().rfind(|kernel| is_wanted(kernel.version())).cloned();
    // Where there is none of 6.12 to 6.15, a newer one does.
    let counting = newest(|version| ((6, 12)..(6, 16)).contains(&version))
        .or_else(|| newest(|version| version >= (6, 12)));
    [
        ("Linux 6.1", newest(|version| version == (6, 1)), true),
        ("Linux 6.12 or newer", counting, true),
        ("Linux 6.16 to 7.0", newest(|version| ((6, 16)..=(7, 0)).contains(&version)), false),
        ("Linux 7.1 or newer", newest(|version| version >= (7, 1)), false),
    ]
}

/// What else a machine takes, if it is not there.
fn missing_program(qemu: Option<Version>) -> Option<&'static str> {
    if qemu.is_none() {
        return Some(QEMU);
    }
    (!Path::new(BUSYBOX).exists()).then_some(BUSYBOX)
}
