//! What `pagefold boot` refuses before there is a guest. (Guests are booted by the lab's tests.)

use assert_cmd::Command;

/// One line on stderr with these words, nothing on stdout, and this exit code.
fn refused(arguments: &[&str], code: i32, words: &str) {
    let output =
        Command::cargo_bin("pagefold").unwrap().arg("boot").args(arguments).env("PATH", "/nowhere").output();
    let output = output.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty());
    // clap says how to get help as well.
    assert!(code == 2 || stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn without_qemu_it_says_which_package_has_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    refused(&["--kernel", file.path().to_str().unwrap()], 1, "qemu-system-x86");
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    refused(&["--kernel", "/nowhere/kernel"], 1, "/nowhere/kernel: no such file");
}

#[test]
fn sizes_that_no_device_has_are_refused_before_anything_is_booted() {
    refused(&["--resize", "3:4G"], 2, "there is no device 3");
    refused(&["--device", "1G", "--resize", "2G"], 2, "device 0 has room for 1.00 GiB, not for 2.00 GiB");
    refused(&["--resize", "3M"], 2, "device 0 is plugged in units of 2.00 MiB");
    refused(&["--resize", "4G+2G"], 2, "two sizes for device 0");
    refused(&["--device", "3M"], 2, "multiple of its block");
    refused(&["--work", "page-cache=1G,colour=red"], 2, "colour=red");
    refused(&["--cpus", "0"], 2, "0 is not in 1..=64");
    refused(&["--interactive", "--touch"], 2, "cannot be used with");
}
