//! A device that runs, for tests.
#![allow(dead_code, reason = "each user uses a part of it")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::vmm::{MIB, Vmm, memory, until};

pub const ADDR: u64 = 1 << 32;
pub const SIZE: u64 = 256 * MIB;
pub const BLOCK: u64 = 2 * MIB;

pub fn pagefold() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("pagefold"));
    command.arg("device");
    command
}

/// A device that runs, and ends with the test.
pub struct Device {
    child: Child,
    stdin: Option<ChildStdin>,
    pub said: Arc<Mutex<Vec<String>>>,
    dir: Arc<TempDir>,
}

impl Device {
    pub fn new(dir: &Arc<TempDir>, more: &[&str]) -> Self {
        Self::with(dir, more, |_| ())
    }

    pub fn with(dir: &Arc<TempDir>, more: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = pagefold();
        command.current_dir(dir.path()).args(["--socket", "vm.sock", "--region", "0x100000000"]);
        command.args(["--size", "256M", "--block", "2M", "--control", "vm.ctl"]).args(more);
        if !more.contains(&"--memory") {
            command.args(["--memory", "vm.mem"]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (lines, from) = (Arc::clone(&said), child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let stdin = child.stdin.take();
        let mut device = Self { child, stdin, said, dir: Arc::clone(dir) };
        until("it is ready", || {
            assert!(device.child.try_wait().unwrap().is_none(), "{:?}", device.said.lock().unwrap());
            device.said("ready")
        });
        device
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn said(&self, words: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(words))
    }

    pub fn vmm(&self) -> Vmm {
        let file = File::options().read(true).write(true).open(self.path("vm.mem")).unwrap();
        Vmm::connect(&self.path("vm.sock"), memory(&file, ADDR, SIZE))
    }

    pub fn type_line(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn tell(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = pagefold().arg("--tell").arg(self.path("vm.ctl")).args(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    pub fn status(&self) -> Value {
        let (code, text) = self.tell(&["status", "--json"]);
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // If it has not ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn dir() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
}

pub fn plug(block: u64, blocks: u16) -> Request {
    Request::new(RequestType::Plug, ADDR + block * BLOCK, blocks)
}

pub fn ack() -> Response {
    Response::new(ResponseType::Ack)
}

/// Runs it; it must refuse, in one line.
pub fn refused(dir: &Path, args: &[&str]) -> String {
    let output = pagefold().current_dir(dir).args(args).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    assert!(text.lines().count() == 1 && text.starts_with("pagefold: "), "{args:?}: {text}");
    text
}
