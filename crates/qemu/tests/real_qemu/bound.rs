//! No QEMU outlives the process that started it, and none that stands still is waited for for ever.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use pagefold_qemu::{Exit, MIB, QemuBuilder, QemuError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Set for a process that is to start a QEMU, say its number, and wait for its own end.
const PARENT: &str = "PAGEFOLD_TEST_PARENT";
const MINUTE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

pub fn is_parent() -> bool {
    std::env::var_os(PARENT).is_some()
}

pub fn parent() -> ExitCode {
    let qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    println!("{}", qemu.id());
    // Until it is killed.
    let read = std::io::stdin().read_to_end(&mut Vec::new());
    drop(qemu);
    if read.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub fn killed_parent() {
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let mut parent: Child = Command::new(std::env::current_exe().unwrap())
            .env(PARENT, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let qemu = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let qemu = pidfd_open(qemu, PidfdFlags::empty()).unwrap();
        kill_process(Pid::from_child(&parent), signal).unwrap();
        parent.wait().unwrap();
        let mut polled = [PollFd::new(&qemu, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut polled, Some(&MINUTE)).unwrap(), 1, "QEMU outlives {signal:?}");
    }
}

pub fn ended_thread() {
    let mut qemu = thread::spawn(|| QemuBuilder::new().memory(16 * MIB).spawn().unwrap()).join().unwrap();
    // It answers, and ends in order.
    qemu.qmp().inject_nmi().unwrap();
    qemu.qmp().quit().unwrap();
    assert_eq!(qemu.wait(Duration::from_secs(60)).unwrap(), Exit::Off);
}

pub fn stopped() {
    let mut qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    let id = Pid::from_raw(qemu.id() as i32).unwrap();
    kill_process(id, Signal::STOP).unwrap();
    qemu.qmp().set_patience(Duration::from_millis(100));
    assert!(matches!(qemu.qmp().quit(), Err(QemuError::Silent { .. })));
    assert!(!qemu.has_ended());
    qemu.end();
    assert_eq!(qemu.wait(Duration::from_secs(60)).unwrap(), Exit::Signal(9));
}
