//! What `pagefold boot` refuses before there is a guest. (Guests are booted by the lab's tests.)

mod common;

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

/// As [`refused`] with exit code 2, in one line.
fn impossible(arguments: &[&str], words: &str) {
    refused(arguments, 2, words);
    let mut command = Command::cargo_bin("pagefold").unwrap();
    let output = command.arg("boot").args(arguments).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{arguments:?}");
}

#[test]
fn machines_that_cannot_be_are_refused_in_a_line_before_anything_is_booted() {
    for size in ["0", "1", "64K", "1M", "6M"] {
        impossible(&["--memory", size], "are too little for 4 CPUs: give --memory 26M or more");
    }
    impossible(&["--memory", "32M", "--cpus", "64"], "give --memory 56M or more, or fewer --cpus");
    for size in ["100000K", "67108865", "33M"] {
        impossible(&["--memory", size], "a multiple of 2M; the next ones are ");
    }
    impossible(&["--memory", "4P"], "are more than this machine has");
    impossible(&["--memory", "26M", "--device", "1G,node=20"], "for 21 nodes: give --memory 42M or more");
    impossible(&["--device", "1T"], "the emulated machine has room for 960 GiB in all");
    impossible(&["--device", "500G", "--device", "500G"], "the emulated machine has room for 960 GiB");
    impossible(&["--device", "4P", "--device", "4P"], "the emulated machine has room for 960 GiB");
    let many = ["--device", "1G"].repeat(31);
    impossible(&many, "31 devices are too many; there is room for 30");
    // QEMU is looked for when nothing is wrong.
    let file = tempfile::NamedTempFile::new().unwrap();
    let kernel = ["--kernel", file.path().to_str().unwrap()];
    refused(&[&kernel[..], &["--cpus", "64", "--memory", "64M"]].concat(), 1, "qemu-system-x86");
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
    refused(&["--resize", "4G+"], 2, "a size is missing");
    refused(&["--device", "3M"], 2, "multiple of its block");
    refused(&["--work", "page-cache=1G,colour=red"], 2, "colour=red");
    refused(&["--cpus", "0"], 2, "0 is not in 1..=64");
    refused(&["--interactive", "--touch"], 2, "cannot be used with");
}

/// A command that was installed has nothing of the sources around it.
#[test]
fn an_installed_command_says_where_the_kernel_comes_from_and_finds_it_there() {
    let dir = tempfile::tempdir().unwrap();
    let installed = dir.path().join("pagefold");
    common::copy_command(&installed);
    let boot = |kernel: &str| {
        let mut command = Command::new(&installed);
        command.arg("boot").env("PATH", "/nowhere").env("HOME", dir.path()).env("PAGEFOLD_GUEST", kernel);
        let output = command.env_remove("XDG_DATA_HOME").env("XDG_DATA_DIRS", "/nowhere").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = boot("");
    for words in ["guest/build --install", "--kernel", "PAGEFOLD_GUEST"] {
        assert!(missing.contains(words), "{missing}");
    }
    assert_eq!(missing.lines().count(), 1, "{missing}");
    assert!(boot("/nowhere/kernel").contains("/nowhere/kernel: no such file (PAGEFOLD_GUEST names it)"));

    let data = dir.path().join(".local/share/pagefold");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("pagefold-guest"), "a kernel").unwrap();
    // What is missing now is QEMU.
    assert!(boot("").contains("qemu-system-x86"), "{}", boot(""));
}
