//! The `pagefold` command as one file that runs in any guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `pagefold`, statically linked, in a target directory of its own, and returns its path. Quick if nothing has
/// changed.
///
/// # Errors
/// It does not build.
pub fn static_pagefold() -> Result<PathBuf> {
    let target = Path::new(WORKSPACE).join("target/lab/build");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--locked", "--package", "pagefold", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(WORKSPACE)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // It travels into the guest's memory: without what only a debugger reads.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("pagefold does not build statically:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(target.join(TARGET).join("release/pagefold"))
}
