//! Running the real binary.

#![allow(dead_code)]

pub mod machines;
pub mod pty;
pub mod roots;
pub mod schemas;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::Value;
use tempfile::TempDir;

/// Where it is.
pub fn binary() -> &'static str {
    assert_cmd::cargo::cargo_bin!("pagefold").to_str().unwrap()
}

/// Copies the command to where a test runs it from. By another process: a file that this one has open for writing cannot be run
/// for as long as any child that was forked meanwhile has it open too, and other tests start children all the time.
pub fn copy_command(to: &Path) {
    assert!(std::process::Command::new("cp").arg(binary()).arg(to).status().unwrap().success());
}

/// Runs the command as the user nobody, from a directory that everybody can read. Tests that root does not run use their own user.
pub struct Nobody(TempDir);

impl Nobody {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        copy_command(&dir.path().join("pagefold"));
        Self(dir)
    }

    pub fn run(&self, args: &[&str]) -> std::process::Output {
        let mut command = std::process::Command::new(self.0.path().join("pagefold"));
        command.args(args).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    }
}

pub fn pagefold() -> Command {
    Command::new(binary())
}

/// `pagefold replay --sample`.
pub fn replay() -> Command {
    let mut command = pagefold();
    command.args(["replay", "--sample"]);
    command
}

/// What a command printed with `--json`.
pub fn json(assert: Assert) -> Value {
    let output = assert.get_output();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// Waits until a child has so many threads. One that ends before it has them never will.
pub fn wait_for_threads(child: &mut std::process::Child, threads: usize) {
    let tasks = format!("/proc/{}/task", child.id());
    while std::fs::read_dir(&tasks).unwrap().count() < threads {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended with {ended:?} before it had {threads} threads");
        std::thread::yield_now();
    }
}
