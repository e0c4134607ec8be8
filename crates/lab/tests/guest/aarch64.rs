//! The guest's kernel on arm64.

use std::path::{Path, PathBuf};

use pagefold_boot::{KernelKind, find_kernel_of};
use pagefold_lab::newer::qemu_of;
use pagefold_qemu::Arch;
use serde_json::Value;

use crate::Pagefold;
use crate::course::{CYCLES, metadata, nothing_is_lost_in_cycles, number, row};
use crate::ends::ends;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Why there is nothing to run, if there is nothing.
pub fn missing() -> Option<&'static str> {
    let has_kernels =
        [KernelKind::Aarch64, KernelKind::Aarch64LlSc].into_iter().all(|kind| find_kernel_of(kind).is_some());
    match pagefold_qemu::Version::of(Arch::Aarch64.program()) {
        None => Some("QEMU for arm64 (Debian's qemu-system-arm)"),
        Some(_) if !has_kernels => Some("kernel for arm64 (guest/build makes it)"),
        Some(_) => None,
    }
}

/// The newest QEMU that there is.
fn newest_qemu() -> PathBuf {
    qemu_of(Arch::Aarch64).unwrap_or_else(|| Arch::Aarch64.program().into())
}

/// Whether a QEMU has a model.
fn has_model(qemu: &Path, model: &str) -> bool {
    let output = std::process::Command::new(qemu).args(["-cpu", "help"]).output();
    output
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == model))
}

fn boots(pagefold: &Pagefold, arguments: &str) -> Value {
    pagefold.boots(arguments, "")
}

pub fn grows_and_shrinks(pagefold: &Pagefold) {
    let json = boots(pagefold, "--memory 64M --cpus 2 --device 64G --resize 64G,0 --touch");
    assert_eq!(json["arch"], "aarch64");
    let grown = row(&json, 1);
    assert_eq!(number(grown, "report.memory.plugged"), 64 * GIB);
    assert!(metadata(grown) < MIB / 2, "{}", metadata(grown));
    let touched = row(&json, 2);
    assert!(number(touched, "touched") >= GIB, "{}", touched["touched"]);
    assert_eq!(number(row(&json, 3), "report.memory.plugged"), 0);
    assert!(number(row(&json, 3), "report.flushes.folds") > 0);
}

pub fn cycles_lose_nothing(pagefold: &Pagefold) {
    let json = boots(pagefold, CYCLES);
    // By compare-and-swap, but for tables that take a shared one's place.
    nothing_is_lost_in_cycles(row(&json, 2));
}

/// Models, interrupt controllers, barriers: everything that a guest does.
pub fn models(pagefold: &Pagefold) {
    let qemu = newest_qemu();
    for model in ["max", "neoverse-v1", "neoverse-n1", "cortex-a72"] {
        if !has_model(&qemu, model) {
            println!(
                "left out: {model}: this QEMU does not have it (crates/lab/setup-qemu brings a newer one)"
            );
            continue;
        }
        for gic in [2, 3] {
            let json = boots(
                pagefold,
                &format!(
                    "--qemu {} --cpu {model} --gic {gic} --memory 128M --cpus 3 --walkers 4 --owners 2 --device 1G \
                     --resize 512M,64M --touch --cycle 200 --work page-cache=16M,touch --work pinned=64K",
                    qemu.display()
                ),
            );
            assert_eq!(number(&json, "hello.cpus"), 3);
            let last = json["rows"].as_array().unwrap().last().unwrap();
            assert_eq!((number(last, "cycles.lost_frames"), number(last, "report.folios.lost")), (0, 0));
            // All but the newest may report a walk from before as a fault.
            if model != "max" {
                assert!(number(last, "report.flushes.after_making") > 100, "{model}");
            }
        }
    }
}

pub fn processors_and_barriers(pagefold: &Pagefold) {
    for cpus in [1, 2, 8] {
        for barrier in ["fences", "interrupts"] {
            let json = boots(
                pagefold,
                &format!(
                    "--memory 128M --cpus {cpus} --barrier {barrier} --device 1G --resize 512M,0 --owners 2 --cycle 50"
                ),
            );
            assert_eq!(number(&json, "hello.cpus"), cpus);
            let last = json["rows"].as_array().unwrap().last().unwrap();
            assert!(number(last, "report.flushes.barriers") > 0);
        }
    }
}

pub fn several_devices(pagefold: &Pagefold) {
    let json = boots(
        pagefold,
        "--memory 256M --cpus 2 --device 4G --device 4G,node=1 --resize 0:1G+1:2G,0:0+1:64M,1:0",
    );
    let hello = &json["hello"]["devices"];
    assert_eq!((number(hello, "0.node"), number(hello, "1.node")), (0, 1));
    assert_eq!(number(row(&json, 1), "report.memory.plugged"), 3 * GIB);
    assert_eq!(number(row(&json, 2), "report.memory.plugged"), 64 * MIB);
}

/// The kernel with atomic instructions says that a processor has none, before it needs one.
pub fn a_kernel_that_does_not_fit(pagefold: &Pagefold) {
    let kernel = find_kernel_of(KernelKind::Aarch64).unwrap();
    let arguments = format!("--kernel {} --cpu cortex-a72 --memory 64M --cpus 2", kernel.display());
    let (how, dump) = ends(pagefold, &arguments);
    assert_eq!(how, "unsupported", "{dump}");
    assert!(dump.contains("no atomic instructions: boot the kernel that was built without them"), "{dump}");
}

pub fn breaks(pagefold: &Pagefold) {
    for (what, how, words) in [
        ("write", "stray-write", &["pfn 0x", "class Absent", "breaks::now"][..]),
        ("stack", "stack-overflow", &["below the stack", "breaks::deeper"]),
        ("double-fault", "double-fault", &["a double fault"]),
        ("hang --watchdog 3", "hang", &["processor 1 for 3 s; processor 0 noticed", "breaks::may_hang"]),
    ] {
        for gic in [2, 3] {
            let arguments =
                format!("--gic {gic} --memory 128M --cpus 2 --device 1G --resize 0 --break {what}");
            let (ended, dump) = ends(pagefold, &arguments);
            assert_eq!(ended, how, "{what}: {dump}");
            for word in words {
                assert!(dump.contains(word), "{what}: no '{word}' in\n{dump}");
            }
            assert!(dump.contains("processor 0  pc") && dump.contains("processor 1  pc"), "{dump}");
        }
    }
}
