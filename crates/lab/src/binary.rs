//! What the lab builds: programs as one file that runs in any guest, and the plugin that counts instructions.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use pagefold_qemu::spawn_bound;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PLUGIN: &[&str] = &["--package", "pagefold-qemu", "--example", "insn_count"];
const PLUGIN_FILE: &str = "examples/libinsn_count.so";
const PIN: &[&str] = &["--package", "pagefold-lab", "--bin", "lab-pin"];
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds `pagefold`, statically linked, in a target directory of its own, and returns its path. Quick if nothing has
/// changed.
///
/// # Errors
/// It does not build.
pub fn static_pagefold() -> Result<PathBuf> {
    build(&["--package", "pagefold"], STATIC, "pagefold")
}

/// Where `crates/lab/setup-arm64` puts the standard library for arm64.
const ARM64_SYSROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/arm64/sysroot");

/// As [`static_pagefold`], for arm64, by Debian's compiler; optimised little, as it runs for moments only. `None` where
/// `crates/lab/setup-arm64` has not brought what that takes.
///
/// # Errors
/// It does not build.
pub fn static_pagefold_arm64() -> Result<Option<PathBuf>> {
    build_for_arm64(&["--package", "pagefold"], "pagefold")
}

fn build_for_arm64(what: &[&str], file: &str) -> Result<Option<PathBuf>> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    if !Path::new(ARM64_SYSROOT).exists() {
        return Ok(None);
    }
    let flags = format!("--sysroot {ARM64_SYSROOT} -C linker=aarch64-linux-gnu-gcc {STATIC}");
    let settings = [
        ("RUSTC", "/usr/bin/rustc"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ];
    let build = Build { dir: "target/lab/build-arm64", target: TARGET, settings: &settings };
    build.run(what, &flags, file).map(Some)
}

/// As [`static_pagefold`], the program that pins pages in a guest (`src/bin/lab-pin.rs`).
///
/// # Errors
/// It does not build.
pub fn static_pin() -> Result<PathBuf> {
    build(PIN, STATIC, "lab-pin")
}

/// As [`static_pin`], for arm64, as [`static_pagefold_arm64`].
///
/// # Errors
/// It does not build.
pub fn static_pin_arm64() -> Result<Option<PathBuf>> {
    build_for_arm64(PIN, "lab-pin")
}

/// As [`static_pagefold`], the program that starts another kernel in a guest (`src/bin/lab-kexec.rs`).
///
/// # Errors
/// It does not build.
pub fn static_kexec() -> Result<PathBuf> {
    build(&["--package", "pagefold-lab", "--bin", "lab-kexec"], STATIC, "lab-kexec")
}

/// As [`static_pagefold`], the plugin for [`QemuBuilder::count_instructions`](pagefold_qemu::QemuBuilder::count_instructions).
///
/// # Errors
/// It does not build.
pub fn counting_plugin() -> Result<PathBuf> {
    build(PLUGIN, "", PLUGIN_FILE)
}

/// As [`counting_plugin`], for QEMU 11.1.
///
/// # Errors
/// It does not build.
pub fn newer_counting_plugin() -> Result<PathBuf> {
    let what = [PLUGIN, &["--features", "newer-plugin"]].concat();
    // In a directory of its own: the file has the other one's name.
    build_in("target/lab/build-newer", &what, "", PLUGIN_FILE)
}

fn build(what: &[&str], flags: &str, file: &str) -> Result<PathBuf> {
    build_in("target/lab/build", what, flags, file)
}

fn build_in(dir: &str, what: &[&str], flags: &str, file: &str) -> Result<PathBuf> {
    Build { dir, target: TARGET, settings: &[] }.run(what, flags, file)
}

/// A build: where it goes, for which machine, and what else cargo is told in its environment.
struct Build<'b> {
    dir: &'b str,
    target: &'b str,
    settings: &'b [(&'b str, &'b str)],
}

impl Build<'_> {
    fn run(&self, what: &[&str], flags: &str, file: &str) -> Result<PathBuf> {
        let target = Path::new(WORKSPACE).join(self.dir);
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["build", "--release", "--quiet", "--locked", "--target", self.target])
            .args(what)
            .arg("--target-dir")
            .arg(&target)
            .current_dir(WORKSPACE)
            .env("RUSTFLAGS", flags)
            // Programs travel into the guest's memory: without what only a debugger reads.
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .envs(self.settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = spawn_bound(command, &[]).and_then(|child| child.wait_with_output());
        let output = output.context("cannot run cargo")?;
        if !output.status.success() {
            bail!("{file} does not build:\n{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(target.join(self.target).join("release").join(file))
    }
}
