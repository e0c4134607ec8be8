//! A guest that hangs or breaks down ends a test soon, with what its console said last.

use std::fs;
use std::time::Duration;

use pagefold_lab::{Kernel, Vm};

pub fn end_soon(kernel: &Kernel) {
    let panics = Vm::builder().kernel(kernel).command_line("rdinit=/none");
    let error = panics.boot().err().unwrap().to_string();
    assert!(error.contains("the guest is gone") && error.contains("Kernel panic"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let init = dir.path().join("init");
    fs::write(&init, "#!/bin/busybox sh\nexec /bin/busybox sleep 100000\n").unwrap();
    let hangs = Vm::builder().kernel(kernel).file("/hang", init).command_line("rdinit=/hang");
    let error = hangs.patience(Duration::from_secs(5)).boot().err().unwrap().to_string();
    assert!(error.contains("does not answer in time") && error.contains("last lines"), "{error}");

    let mut guest = Vm::builder().kernel(kernel).boot().unwrap();
    let error = guest.run("echo why >&2; exit 7").unwrap_err().to_string();
    assert!(error.contains("exit code 7: why"), "{error}");
    assert_eq!(guest.run("echo fine").unwrap(), "fine\n");
    let error = guest.run("echo c > /proc/sysrq-trigger").unwrap_err().to_string();
    assert!(error.contains("the guest is gone") && error.contains("sysrq triggered crash"), "{error}");
}
