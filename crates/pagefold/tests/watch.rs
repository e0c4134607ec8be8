//! `pagefold watch` on a pseudo-terminal: it comes, listens, and leaves the terminal as it was.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::pagefold;
use predicates::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Session {
    child: Child,
    keys: File,
    /// Kept open: what the terminal is like can still be asked when the program is gone.
    terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    /// Watches a fixture.
    fn start(args: &[&str]) -> Session {
        Session::with_root(fixture("host-hvo"), args)
    }

    fn with_root(root: PathBuf, args: &[&str]) -> Session {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal: OwnedFd = OpenOptions::new().read(true).write(true).open(name).unwrap().into();
        resize(&terminal, 100, 30);
        let side = || Stdio::from(terminal.try_clone().unwrap());
        let child = Command::new(assert_cmd::cargo::cargo_bin!("pagefold"))
            .args(["watch", "--root"])
            .arg(root)
            .args(args)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let keys = File::from(master);
        let mut from = keys.try_clone().unwrap();
        let (to, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                if to.send(buffer[..bytes].to_vec()).is_err() {
                    return;
                }
            }
        });
        Session { child, keys, terminal, output, seen: String::new() }
    }

    /// Waits until the terminal has been sent this, from here on.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} never came: {:?}", self.seen),
            }
        }
        let rest = self.seen.split_off(self.seen.find(text).unwrap() + text.len());
        self.seen = rest;
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// It ends by itself, well, and everything is as it was.
    fn ends(mut self) {
        self.wait_for(GIVEN_BACK);
        assert!(self.child.wait().unwrap().success());
        assert!(!self.is_raw());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn it_shows_tabs_and_help_and_quits() {
    let mut session = Session::start(&[]);
    session.wait_for(TAKEN);
    session.wait_for("Overview");
    session.wait_for("descriptors");
    assert!(session.is_raw());
    session.press("\t");
    session.wait_for("DMA32");
    session.press("?");
    session.wait_for("Keys");
    session.press("x");
    session.press("p");
    session.wait_for("paused");
    session.press("q");
    session.ends();
}

#[test]
fn it_goes_on_reading_and_follows_the_terminal_as_it_changes() {
    let mut session = Session::start(&["--interval", "0.1"]);
    session.wait_for("every");
    resize(&session.terminal, 60, 12);
    session.signal(Signal::WINCH);
    // Drawn again, whole.
    session.wait_for("Overview");
    session.press("\x03");
    session.ends();
}

#[test]
fn signals_end_it_and_give_the_terminal_back() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut session = Session::start(&[]);
        session.wait_for("descriptors");
        session.signal(signal);
        session.ends();
    }
}

#[test]
fn what_cannot_be_read_is_said_before_the_terminal_is_taken() {
    let mut session = Session::with_root("/does/not/exist".into(), &[]);
    session.wait_for("has no directory 'proc'");
    assert_eq!(session.child.wait().unwrap().code(), Some(1));
    assert!(!session.seen.contains(TAKEN) && !session.is_raw());
}

#[test]
fn without_a_terminal_it_says_what_to_use_instead() {
    let one_line = predicate::function(|text: &str| text.lines().count() == 1);
    pagefold()
        .arg("watch")
        .assert()
        .code(1)
        .stdout("")
        .stderr(predicate::str::contains("pagefold report --json").and(one_line));
    for interval in ["0", "-1", "x", "1e9"] {
        pagefold().args(["watch", &format!("--interval={interval}")]).assert().code(2);
    }
}
