//! The plugin in a real QEMU, with a program of which we know what it executes. What cannot run is told in the last line.

#[path = "real_qemu/image.rs"]
mod image;

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use image::{ADDRESS, HALT, HEADER, image, print};
use libtest_mimic::{Arguments, Trial};
use pagefold_qemu::{GIB, MIB, QEMU, QemuBuilder, QemuError, Version, VirtioMem};

const MINUTE: Duration = Duration::from_secs(60);
const LOOPS: u32 = 1_000_000;
const BYTES: u32 = 1_000_000;

/// A test, by name.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("what_is_executed_is_counted", exact),
    ("a_guest_settles_when_it_rests", settles),
    ("what_the_plugin_does_not_like_is_shown", bad_counters),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let qemu = Version::of(QEMU);
    let tests = if qemu.is_some_and(Version::counts_instructions) { TESTS } else { &[] };
    let trials = tests.iter().map(|&(name, run)| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    match qemu {
        _ if arguments.list || !tests.is_empty() => {}
        Some(_) => {
            println!("left out: the tests of the plugin: {QEMU} is 9.0 or newer, which takes no such plugin")
        }
        None => {
            println!("left out: the tests of the plugin: there is no {QEMU} (crates/lab/setup brings it)")
        }
    }
    conclusion.exit_code()
}

/// The plugin: where Cargo puts examples, in the directory beside this test's.
fn plugin() -> PathBuf {
    env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/libinsn_count.so")
}

/// Prints "a" and halts; goes on when an NMI comes, with 2 × `LOOPS` instructions and `BYTES` repetitions; prints "b" and
/// halts.
fn program() -> Vec<u8> {
    let gate_at = 8u32; // After the descriptor of the interrupt table, at the start, which the entry jumps over.
    let [descriptor, table] = [4, gate_at].map(|at| ADDRESS + HEADER + at);
    let mut code = vec![0xeb, 32, 0xcf, 0x90]; //     jmp over the data; handler: iret; nop
    code.extend(23u16.to_le_bytes()); //              the table's limit, three gates, and its address; the
    code.extend(table.to_le_bytes()); //              first gate begins within that, and is never used
    code.resize(gate_at as usize + 16, 0);
    let handler = ADDRESS + HEADER + 2;
    code.extend((handler as u16).to_le_bytes()); //   the gate of NMIs
    code.extend([0, 0, 0, 0x8e]);
    code.extend(((handler >> 16) as u16).to_le_bytes());
    code.resize(34, 0x90);
    code.extend([0xbc, 0, 0, 0x20, 0]); //            mov esp, 2 MiB
    code.extend([0x8c, 0xc8, 0x66, 0xa3]); //         mov eax, cs; mov [the gate's selector], ax
    code.extend((table + 18).to_le_bytes());
    code.extend([0x0f, 0x01, 0x1d]); //               lidt [descriptor]
    code.extend(descriptor.to_le_bytes());
    code.extend(print("a"));
    code.push(0xf4); //                               hlt
    code.push(0xb9); //                               mov ecx, LOOPS; dec ecx; jnz to the dec
    code.extend(LOOPS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd]);
    code.extend([0xbf, 0, 0, 0x30, 0, 0xb9]); //      mov edi, 3 MiB; mov ecx, BYTES; rep stosb
    code.extend(BYTES.to_le_bytes());
    code.extend([0xf3, 0xaa]);
    code.extend(print("b"));
    code.extend(HALT);
    code
}

fn exact() {
    let (_dir, kernel) = image(&program());
    let builder = QemuBuilder::new().memory(16 * MIB).kernel(kernel).count_instructions(plugin());
    let mut qemu = builder.spawn().unwrap();
    assert!(qemu.console().wait_for("a", MINUTE));
    let before = qemu.executed().unwrap();
    qemu.qmp().inject_nmi().unwrap();
    assert!(qemu.console().wait_for("ab", MINUTE));
    let executed = qemu.executed().unwrap() - before;
    // What surrounds the loop is few; whether the halts are counted when we look is theirs to say.
    let around = executed.instructions.checked_sub(2 * u64::from(LOOPS)).unwrap();
    assert!(around < 30, "{executed:?}");
    // The last look at the count, which is then zero, is one too.
    assert_eq!(executed.repetitions, u64::from(BYTES) + 1);

    // It has ended, and so have they.
    qemu.end();
    let ended = qemu.executed().unwrap();
    assert!(ended.instructions >= before.instructions + executed.instructions);
    assert!(QemuBuilder::new().memory(16 * MIB).spawn().unwrap().executed().is_none());
}

fn settles() {
    let builder =
        QemuBuilder::new().memory(16 * MIB).virtio_mem(VirtioMem::new(GIB)).count_instructions(plugin());
    // Halts, and drives no device.
    let (_dir, kernel) = image(&[print("a"), HALT.to_vec()].concat());
    let mut qemu = builder.clone().kernel(kernel).spawn().unwrap();
    assert!(qemu.console().wait_for("a", MINUTE));
    let settled = qemu.resize_and_settle(0, GIB, MINUTE).unwrap();
    assert_eq!(settled.plugged, 0);
    assert!(settled.executed.instructions < 1000, "{settled:?}");

    // Never rests: a jump to itself.
    let (_dir, kernel) = image(&[print("a"), vec![0xeb, 0xfe]].concat());
    let mut qemu = builder.kernel(kernel).spawn().unwrap();
    assert!(qemu.console().wait_for("a", MINUTE));
    let error = qemu.resize_and_settle(0, GIB, Duration::from_secs(3)).unwrap_err();
    assert!(matches!(error, QemuError::Busy { device: 0, plugged: 0, wanted: GIB, .. }), "{error}");

    let mut qemu = QemuBuilder::new().memory(16 * MIB).virtio_mem(VirtioMem::new(GIB)).spawn().unwrap();
    assert!(matches!(qemu.resize_and_settle(0, GIB, MINUTE), Err(QemuError::NotCounted)));
}

fn bad_counters() {
    let error = |builder: QemuBuilder| builder.memory(16 * MIB).spawn().err().unwrap().to_string();
    let text = error(QemuBuilder::new().count_instructions("/nowhere/plugin.so"));
    assert!(text.contains("/nowhere/plugin.so"), "{text}");

    let output = Command::new(QEMU)
        .args(["-machine", "none", "-display", "none", "-plugin"])
        .arg(format!("{},counters=/etc/hostname", plugin().display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("/etc/hostname: no file of counters"), "{text}");
}
