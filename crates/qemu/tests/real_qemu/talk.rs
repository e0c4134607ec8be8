//! What passes between a QEMU and its host.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use pagefold_qemu::{Exit, MIB, QemuBuilder, QemuError};

use crate::image::{HALT, image, print};

const MINUTE: Duration = Duration::from_secs(60);

pub fn missing() {
    let error = QemuBuilder::new().program("/nowhere/qemu-system-x86_64").spawn().err().unwrap();
    assert!(matches!(error, QemuError::Missing { .. }));
    assert!(error.to_string().contains("Debian's package is qemu-system-x86"), "{error}");
    let error = QemuBuilder::new().program("/etc/passwd").spawn().err().unwrap();
    assert!(matches!(error, QemuError::Spawn { .. }), "{error}");
}

pub fn bad_option() {
    let error = QemuBuilder::new().kernel("/nowhere/kernel").spawn().err().unwrap();
    let text = error.to_string();
    assert!(text.contains("QEMU does not start") && text.contains("/nowhere/kernel"), "{text}");
}

pub fn ports_and_exit() {
    let mut code = print("up");
    // Takes a byte from COM2, sends it back plus one, and exits with that.
    code.extend([0x66, 0xba, 0xfd, 0x02]); //       mov dx, 0x2fd
    code.extend([0xec, 0xa8, 0x01, 0x74, 0xfb]); // in al, dx; test al, 1; jz to the `in`
    code.extend([0x66, 0xba, 0xf8, 0x02]); //       mov dx, 0x2f8
    code.extend([0xec, 0xfe, 0xc0, 0xee]); //       in al, dx; inc al; out dx, al
    code.extend([0xe6, 0xf4]); //                   out 0xf4, al
    code.extend(HALT);
    let (_dir, kernel) = image(&code);
    let builder = QemuBuilder::new().memory(16 * MIB).kernel(kernel).serial("talk").debug_exit();
    let mut qemu = builder.spawn().unwrap();
    assert!(qemu.console().wait_for("up", MINUTE));
    assert!(matches!(qemu.wait(Duration::from_millis(20)), Err(QemuError::Running { .. })));
    let mut port = qemu.take_port("talk").unwrap();
    assert!(qemu.take_port("talk").is_none());
    port.write_all(&[41]).unwrap();
    assert_eq!(qemu.wait(MINUTE).unwrap(), Exit::Guest(42));
    let mut said = Vec::new();
    port.read_to_end(&mut said).unwrap();
    assert_eq!(said, [42]);
    assert_eq!(qemu.console().text(), "up");
    // It stays so, and is told however often one asks.
    assert_eq!(qemu.wait(MINUTE).unwrap(), Exit::Guest(42));
    assert!(matches!(qemu.qmp().plugged(0), Err(QemuError::Gone)));
}

pub fn resets_and_interrupts() {
    let code = [print("x"), HALT.to_vec()].concat();
    let (_dir, kernel) = image(&code);
    let builder = QemuBuilder::new().memory(16 * MIB).kernel(kernel);
    let mut qemu = builder.clone().resets().spawn().unwrap();
    assert!(qemu.console().wait_for("x", MINUTE));
    qemu.qmp().system_reset().unwrap();
    assert!(qemu.console().wait_for("xx", MINUTE));

    let mut qemu = builder.spawn().unwrap();
    assert!(qemu.console().wait_for("x", MINUTE));
    // Nothing there handles it, so that it resets the machine.
    qemu.qmp().inject_nmi().unwrap();
    assert_eq!(qemu.wait(MINUTE).unwrap(), Exit::Off);
}

pub fn ends() {
    let is_there = |id: u32| Path::new(&format!("/proc/{id}")).exists();
    let mut qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    let id = qemu.id();
    assert!(is_there(id));
    qemu.qmp().quit().unwrap();
    assert_eq!(qemu.wait(MINUTE).unwrap(), Exit::Off);
    assert!(!is_there(id));

    let qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    let id = qemu.id();
    assert!(is_there(id));
    drop(qemu);
    assert!(!is_there(id));

    let mut qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    qemu.end();
    assert_eq!(qemu.wait(MINUTE).unwrap(), Exit::Signal(9));
}
