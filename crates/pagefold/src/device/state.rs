//! The device's state, kept in a file while the device does not run.
//!
//! A device that has taken a state up changes what it says. So the file says that it is taken, from then until the device
//! ends in order: one that was killed leaves no state that could be mistaken for its last.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use pagefold_virtio_mem_device::{Memfd, Snapshot};
use pagefold_virtio_mem_vhost::Backend;
use serde::{Deserialize, Serialize};

use crate::place::Place;

/// The most bytes of a state: 16 bytes a run of blocks, in text.
const MOST: u64 = 64 << 20;

/// Where the state is kept.
pub struct State(Place);

/// What the file says while a device has its state.
#[derive(Serialize, Deserialize)]
struct Taken {
    /// The device's process.
    taken_by: u32,
}

impl State {
    /// Looks at a state, and whether it can be written again; reads the saved device, where there is one.
    ///
    /// # Errors
    /// It is no device's state, or one that has not ended in order, or cannot be read or written.
    pub fn open(path: &Path, memory: &Memfd) -> Result<(Self, Option<Snapshot>)> {
        let name = path.display();
        let saved = match fs::metadata(path) {
            Ok(found) => {
                let region = memory.file().metadata().context("cannot look at the region's memory")?;
                if (found.dev(), found.ino()) == (region.dev(), region.ino()) {
                    bail!("{name} is the region's memory: keep the state in another file");
                }
                // Nothing is opened that could wait for somebody, or has no end.
                if !found.is_file() {
                    bail!("{name} is no regular file: the state is kept in one");
                }
                if found.len() > MOST {
                    bail!(
                        "{name} has {} bytes, more than any device's state: take another file",
                        found.len()
                    );
                }
                Some(read(path)?)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot look at {name}")),
        };
        // Now: at the end it would be too late to choose another.
        Ok((Self(Place::private(path, true)?), saved))
    }

    /// The device runs from here on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take(&self) -> Result<()> {
        self.0.write_all(&serde_json::to_vec(&Taken { taken_by: std::process::id() })?)
    }

    /// The device runs no more.
    ///
    /// # Errors
    /// The file cannot be written. It says still that a device has it.
    pub fn keep(&self, backend: &Backend) -> Result<()> {
        self.0.write_all(&serde_json::to_vec(&backend.snapshot())?)
    }
}

fn read(path: &Path) -> Result<Snapshot> {
    let name = path.display();
    let mut text = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    file.take(MOST).read_to_end(&mut text).with_context(|| format!("cannot read {name}"))?;
    if let Ok(Taken { taken_by }) = serde_json::from_slice(&text) {
        bail!(
            "{name}: the device that had it (process {taken_by}) has not ended in order, so nothing says what its guest has \
             plugged: remove {name} and the memory file, and boot the guest anew"
        );
    }
    serde_json::from_slice(&text).with_context(|| format!("{name} is no device's state: take another file"))
}
