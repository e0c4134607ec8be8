//! `pagefold device` where others, or the machine, do it harm.

#[path = "device/running.rs"]
mod running;
#[path = "../../virtio-mem-vhost/tests/common/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use pagefold_virtio_mem_spec::{Request, RequestType};
use running::{ADDR, BLOCK, Device, ack, dir, pagefold, plug, refused};
use rustix::process::{Resource, Rlimit, Signal, prlimit};
use vm_memory::{Bytes, GuestAddress};
use vmm::{MIB, WANTED, until};

const REGION: [&str; 6] = ["--region", "0x100000000", "--size", "256M", "--block", "2M"];

#[test]
fn a_second_device_does_not_end_the_first() {
    let dir = dir();
    let device = Device::new(&dir, &[]);
    let text = refused(dir.path(), &[&REGION[..], &["--socket", "vm.sock", "--memory", "other"]].concat());
    assert!(text.contains("vm.sock is in use"), "{text}");
    // It waits for its only VMM still.
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    device.tell(&["resize", "64M"]);
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
}

#[test]
fn a_state_that_is_not_of_the_end_is_not_taken_up() {
    let dir = dir();
    let state = ["--state", "vm.state"];
    let mut device = Device::new(&dir, &state);
    device.type_line("resize 64M");
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 3)), ack());
    device.signal(Signal::TERM);
    assert_eq!(device.code(), Some(0));
    let mut device = Device::new(&dir, &state);
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    // More than the state of before knows of.
    assert_eq!(vmm.ask(&plug(3, 5)), ack());
    vmm.memory.write_obj(42u64, GuestAddress(ADDR + 5 * BLOCK)).unwrap();
    device.signal(Signal::KILL);
    assert_eq!(device.code(), None);
    let again = [&REGION[..], &["--socket", "vm.sock", "--memory", "vm.mem"], &state].concat();
    let text = refused(dir.path(), &again);
    assert!(text.contains("vm.state") && text.contains("has not ended in order"), "{text}");
    assert_eq!(vmm.memory.read_obj::<u64>(GuestAddress(ADDR + 5 * BLOCK)).unwrap(), 42);
    // The first one, which has plugged what it was never written.
    fs::remove_file(dir.path().join("vm.state")).unwrap();
    fs::remove_file(dir.path().join("vm.mem")).unwrap();
    let mut device = Device::new(&dir, &state);
    device.signal(Signal::KILL);
    device.code();
    assert!(refused(dir.path(), &again).contains("has not ended in order"));
}

#[test]
fn a_state_that_cannot_be_kept_is_a_line_before_and_an_exit_code_after() {
    let dir = dir();
    // What a device could not have written is not read to its end, and what has none is not read at all.
    for (state, why) in [
        ("/dev/zero", "/dev/zero is no regular file"),
        ("fifo", "fifo is no regular file"),
        ("large", "large has 68719476736 bytes"),
        ("vm.mem", "vm.mem is the region's memory"),
        ("./vm.mem", "./vm.mem is the region's memory"),
    ] {
        match state {
            "fifo" => rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), 0o600.into()).unwrap(),
            "large" => File::create(dir.path().join("large")).unwrap().set_len(64 << 30).unwrap(),
            _ => {}
        }
        let args = ["--socket", "s", "--memory", "vm.mem", "--state", state];
        let text = refused(dir.path(), &[&REGION[..], &args].concat());
        assert!(text.contains(why), "{state}: {text}");
    }
    // Its place goes while the device runs.
    fs::create_dir(dir.path().join("place")).unwrap();
    let mut device = Device::new(&dir, &["--state", "place/vm.state"]);
    fs::remove_dir_all(dir.path().join("place")).unwrap();
    device.signal(Signal::TERM);
    assert_eq!(device.code(), Some(1));
    assert!(device.said("cannot write place/vm.state"));
}

#[test]
fn clients_that_take_all_descriptors_end_nothing() {
    let device = Device::new(&dir(), &["--requested", "64M"]);
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    let files =
        || fs::read_dir(format!("/proc/{}/fd", device.pid().as_raw_nonzero())).unwrap().count() as u64;
    let limit = Rlimit { current: Some(files() + 4), maximum: Some(4096) };
    prlimit(Some(device.pid()), Resource::Nofile, limit).unwrap();
    let connect = |name: &str, count: usize| -> Vec<UnixStream> {
        (0..count).map(|_| UnixStream::connect(device.path(name)).unwrap()).collect()
    };
    let clients = connect("vm.ctl", 8);
    until("all are taken", || files() >= limit.current.unwrap());
    let knocks = connect("vm.sock", 4);
    until("it says so", || device.said("a VMM could not be taken"));
    assert_eq!(vmm.ask(&plug(1, 1)), ack());
    drop((clients, knocks));
    until("it answers", || device.tell(&["status"]).0 == Some(0));
    assert_eq!(vmm.ask(&plug(2, 1)), ack());
}

#[test]
fn one_control_client_too_many_is_told_so() {
    let device = Device::new(&dir(), &[]);
    let mut text = String::new();
    let clients: Vec<UnixStream> =
        (0..33).map(|_| UnixStream::connect(device.path("vm.ctl")).unwrap()).collect();
    (&clients[32]).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("error: 32 clients are connected already"), "{text}");
    (&clients[31]).write_all(b"resize 64M\n").unwrap();
    let mut answer = [0; 20];
    (&clients[31]).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"requested 67108864\n\n");
    drop(clients);
    until("there is room again", || device.tell(&["status"]).0 == Some(0));
}

#[test]
fn commands_are_obeyed_though_nobody_reads_the_answers() {
    let dir = dir();
    let mut command = pagefold();
    command.current_dir(dir.path()).args(REGION).args(["--socket", "vm.sock", "--memory", "vm.mem"]);
    command.args(["--control", "vm.ctl"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"status\nstatus\nresize 64M\nquit\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_guest_nor_the_end() {
    let dir = dir();
    let mut command = pagefold();
    command.current_dir(dir.path()).args(REGION).args(["--socket", "vm.sock", "--memory", "vm.mem"]);
    command.args(["--control", "vm.ctl", "--state", "vm.state", "--requested", "64M"]);
    // A pipe holds 64 KiB, and nobody reads what is in this one.
    let (unread, to) = std::io::pipe().unwrap();
    let mut child = command.stdin(Stdio::piped()).stderr(to).spawn().unwrap();
    until("it is ready", || UnixStream::connect(dir.path().join("vm.ctl")).is_ok());
    let file = File::options().read(true).write(true).open(dir.path().join("vm.mem")).unwrap();
    let mut vmm = vmm::Vmm::connect(&dir.path().join("vm.sock"), vmm::memory(&file, ADDR, 256 * MIB));
    vmm.start(WANTED).unwrap();
    for _ in 0..1000 {
        assert_eq!(vmm.ask(&plug(0, 1)), ack());
        assert_eq!(vmm.ask(&Request::new(RequestType::Unplug, ADDR, 1)), ack());
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(fs::read_to_string(dir.path().join("vm.state")).unwrap().contains("version"));
    drop(unread);
}

#[test]
fn a_socket_that_was_removed_and_given_to_another_is_left_to_it() {
    let dir = dir();
    let mut first = Device::new(&dir, &[]);
    fs::remove_file(first.path("vm.sock")).unwrap();
    fs::remove_file(first.path("vm.ctl")).unwrap();
    let second = Device::new(&dir, &["--memory", "other.mem"]);
    first.signal(Signal::TERM);
    assert_eq!(first.code(), Some(0));
    assert_eq!(second.tell(&["status"]).0, Some(0));
    drop(UnixStream::connect(second.path("vm.sock")).unwrap());
}

#[test]
fn a_line_that_is_too_long_is_one_wrong_command() {
    let device = Device::new(&dir(), &[]);
    let mut client = UnixStream::connect(device.path("vm.ctl")).unwrap();
    let long = format!("{}quit\nresize 64M\n", " ".repeat(4096));
    client.write_all(long.as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "error: a command has at most 4096 bytes\n\nrequested 67108864\n\n");
    assert_eq!(device.status()["requested_size"], 64 * MIB);
}

#[test]
fn memory_that_cannot_be_given_back_is_refused() {
    let dir = dir();
    let here = dir.path().join("ramfs");
    fs::create_dir(&here).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "ramfs", "none"]).arg(&here).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        println!("left out: a file system without holes: this process may not mount one");
        return;
    }
    let args = ["--socket", "s", "--memory", "ramfs/vm.mem"];
    let text = refused(dir.path(), &[&REGION[..], &args].concat());
    let gone = std::process::Command::new("umount").arg(&here).status().unwrap();
    assert!(gone.success());
    assert!(text.contains("ramfs/vm.mem") && text.contains("holes"), "{text}");
}

#[test]
fn a_machine_without_room_for_temporary_files_serves_all_the_same() {
    let dir = dir();
    let mut device = Device::with(&dir, &["--requested", "64M"], |command| {
        command.env("TMPDIR", "/nonexistent");
    });
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    drop(vmm);
    assert_eq!(device.code(), Some(0));
}
