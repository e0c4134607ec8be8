//! `pagefold boot` as a process: whatever ends it, no QEMU is left behind, and what was done until then is told. And
//! machines with many CPUs.
//!
//! One guest at a time. What cannot run is told in the last line.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use common::binary;
use common::pty::{Bond, Session};
use libtest_mimic::{Arguments, Trial};
use pagefold_boot_protocol::{GuestExit, PULSE, Request, to_line};
use pagefold_qemu::{Exit, MIB, QEMU, QemuBuilder, Version, VirtioMem};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use serde_json::Value;

/// A test, by name.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("signals_end_the_guest_with_the_result_so_far", signals),
    ("signals_to_all_of_a_job_are_no_fault_of_the_guest", group_signals),
    ("a_command_that_is_killed_leaves_no_qemu", killed),
    ("a_signal_while_a_script_says_nothing", silent_script),
    ("a_guest_that_ends_while_a_script_says_nothing", lost_guest),
    ("a_stopped_qemu_is_given_up_at_the_deadline", stopped_qemu),
    ("a_prompt_ends_with_its_terminal", hang_up),
    ("a_signal_at_a_prompt_gives_the_terminal_back", prompt),
    ("a_guest_ends_when_nobody_is_at_its_port", closed_port),
    ("sixty_four_processors_come_up", processors),
];

/// Long enough for anything on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 180, tv_nsec: 0 };
const SMALL: [&str; 6] = ["--memory", "64M", "--cpus", "2", "--device", "1G"];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = match (Version::of(QEMU), pagefold_boot::find_kernel()) {
        (None, _) => Some("QEMU (crates/lab/setup brings it)"),
        (_, None) => Some("kernel (guest/build makes it)"),
        _ => None,
    };
    let tests = if missing.is_none() { TESTS } else { &[] };
    let trials = tests.iter().map(|&(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(what) = missing
        && !arguments.list
    {
        println!("left out: the tests on pagefold boot's processes: there is no {what}");
    }
    conclusion.exit_code()
}

/// A command with a guest that is up.
struct Job {
    child: Child,
    script: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Its QEMU, for as long as anybody wants to know.
    qemu: OwnedFd,
    qemu_id: Pid,
}

impl Job {
    /// `pagefold boot --interactive` with more, in a process group of its own, whose guest has done a first step.
    fn start(more: &[&str]) -> Job {
        let mut command = Command::new(binary());
        command.args(["boot", "--interactive"]).args(SMALL).args(more).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec nothing happens but a system call. Whoever runs these tests may ignore it.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            })
        };
        let mut child = command.spawn().unwrap();
        let (script, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut job = Job {
            qemu_id: Pid::INIT,
            qemu: pidfd_open(Pid::INIT, PidfdFlags::empty()).unwrap(),
            child,
            script,
            stdout: BufReader::new(stdout),
        };
        job.say("resize 256M");
        let mut line = String::new();
        job.stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with("vmem0 256 MiB: "), "{line}");
        job.qemu_id = qemu_of(&job.child);
        job.qemu = pidfd_open(job.qemu_id, PidfdFlags::empty()).unwrap();
        job
    }

    /// The same, and the guest is at work that takes hours.
    fn busy(more: &[&str]) -> Job {
        let mut job = Job::start(more);
        job.say("cycle 1000000000");
        job
    }

    fn say(&mut self, line: &str) {
        writeln!(self.script, "{line}").unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end, and for QEMU's. Its exit code, and what it printed at the end.
    fn ends(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        ended(&self.qemu);
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (status.code(), text)
    }
}

/// The QEMU that a command runs.
fn qemu_of(child: &Child) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let children = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    let all: String = children.collect();
    let ids: Vec<i32> = all.split_ascii_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{all}");
    Pid::from_raw(ids[0]).unwrap()
}

/// Waits until a process has ended.
fn ended(process: &OwnedFd) {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut polled, Some(&PATIENCE)).unwrap(), 1, "QEMU is left behind");
}

fn signals() {
    for (signal, code) in [(Signal::INT, 1), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let job = Job::busy(&[]);
        kill_process(job.pid(), signal).unwrap();
        let (ended, text) = job.ends();
        assert_eq!(ended, Some(code), "{signal:?}: {text}");
        assert!(text.contains("ended     interrupted; the result so far"), "{text}");
        assert!(text.contains("vmem0 256 MiB"), "{text}");
    }
}

fn group_signals() {
    for (signal, code) in [(Signal::INT, 1), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let job = Job::busy(&[]);
        kill_process_group(job.pid(), signal).unwrap();
        let (ended, text) = job.ends();
        assert_eq!(ended, Some(code), "{signal:?}: {text}");
        assert!(text.contains("ended     interrupted; the result so far"), "{text}");
    }
}

fn killed() {
    let job = Job::busy(&[]);
    kill_process(job.pid(), Signal::KILL).unwrap();
    let (ended, _) = job.ends();
    assert_eq!(ended, None);
}

fn silent_script() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // The script has not ended: it may say more.
        let job = Job::start(&[]);
        kill_process(job.pid(), signal).unwrap();
        let (_, text) = job.ends();
        assert!(text.contains("ended     interrupted; the result so far"), "{text}");
    }
}

fn lost_guest() {
    let job = Job::start(&[]);
    kill_process(job.qemu_id, Signal::KILL).unwrap();
    let (ended, text) = job.ends();
    assert_eq!(ended, Some(1));
    assert!(text.contains("signal 9 ended QEMU"), "{text}");
}

fn stopped_qemu() {
    let mut job = Job::start(&["--deadline", "3"]);
    kill_process(job.qemu_id, Signal::STOP).unwrap();
    job.say("resize 0");
    let (ended, text) = job.ends();
    assert_eq!(ended, Some(1), "{text}");
    assert!(text.contains("QEMU was killed"), "{text}");
    // And one that is asked to end while it stands still does not wait for the deadline.
    let job = Job::busy(&["--deadline", "100000"]);
    kill_process(job.qemu_id, Signal::STOP).unwrap();
    kill_process(job.pid(), Signal::TERM).unwrap();
    assert_eq!(job.ends().0, Some(143));
}

/// A person at a prompt, and their QEMU.
fn at_a_prompt(bond: Bond) -> (Session, OwnedFd) {
    let mut command = Command::new(binary());
    let mut session = Session::start(command.args(["boot", "--interactive"]).args(SMALL), bond);
    session.wait_for("guest> ");
    let qemu = pidfd_open(qemu_of(&session.child), PidfdFlags::empty()).unwrap();
    (session, qemu)
}

fn hang_up() {
    for bond in [Bond::None, Bond::Controlling, Bond::Ignoring] {
        let (mut session, qemu) = at_a_prompt(bond);
        session.hang_up();
        session.child.wait().unwrap();
        ended(&qemu);
    }
}

fn prompt() {
    let (mut session, qemu) = at_a_prompt(Bond::None);
    assert!(session.is_raw());
    session.signal(Signal::TERM);
    assert_eq!(session.child.wait().unwrap().code(), Some(143));
    assert!(!session.is_raw());
    ended(&qemu);
}

fn closed_port() {
    let kernel = pagefold_boot::find_kernel().unwrap();
    let builder = QemuBuilder::new().kernel(kernel).memory(64 * MIB).cpus(2);
    let builder = builder.virtio_mem(VirtioMem::new(1 << 30)).serial("host").debug_exit();
    for request in [None, Some(Request::Cycle(1_000_000_000))] {
        let mut qemu = builder.spawn().unwrap();
        let port = qemu.take_port("host").unwrap();
        let (mut up, mut down) = (port.try_clone().unwrap(), BufReader::new(port));
        let mut line = String::new();
        down.read_line(&mut line).unwrap();
        assert!(line.contains("hello"), "{line}");
        // It knows now that there is a host.
        up.write_all(&[PULSE]).unwrap();
        if let Some(request) = &request {
            // A pulse in the midst of a request is none of it.
            let text = to_line(request).unwrap();
            let (front, back) = text.split_at(4);
            up.write_all(&[front.as_bytes(), &[PULSE], back.as_bytes()].concat()).unwrap();
        } else {
            let text = to_line(&Request::Status).unwrap();
            up.write_all(text.as_bytes()).unwrap();
            line.clear();
            down.read_line(&mut line).unwrap();
            assert!(line.contains("status"), "{line}");
        }
        drop((up, down));
        // QEMU runs on, and answers: it is the guest that ends.
        assert!(!qemu.has_ended());
        let exit = qemu.wait(Duration::from_secs(PATIENCE.tv_sec as u64)).unwrap();
        assert_eq!(exit, Exit::Guest(GuestExit::HostGone as u8), "{}", qemu.console().text());
    }
}

fn processors() {
    // Some have walkers; the others take part in what all processors do. With one on each the host's few CPUs have to
    // emulate 64 busy ones, which takes minutes.
    for cpus in ["32", "64"] {
        let mut command = Command::new(binary());
        command.args(["boot", "--json", "--memory", "256M", "--device", "2G", "--resize", "1G,0"]);
        command.args(["--walkers", "8", "--cpus", cpus]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(json["hello"]["cpus"].to_string(), cpus, "{}", json["ending"]);
        common::schemas::follows("boot", &json);
        assert_eq!(output.status.code(), Some(0), "{}\n{}", json["broken"], json["ending"]);
        assert_eq!(json["rows"][1]["report"]["memory"]["plugged"], 1u64 << 30);
        assert_eq!(json["rows"][2]["report"]["memory"]["plugged"], 0);
    }
}
