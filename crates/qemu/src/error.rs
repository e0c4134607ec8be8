//! What can go wrong with a QEMU.

use std::io;
use std::path::PathBuf;

/// Why QEMU does not run, or does not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// There is no such program.
    #[error("there is no {}: install QEMU (Debian's package is qemu-system-x86)", program.display())]
    Missing {
        /// The program.
        program: PathBuf,
    },
    /// The program is there, but does not run.
    #[error("cannot run {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU ran, but did not greet: most likely it does not like an option, and its last lines say which.
    #[error("QEMU does not start: {source}\n{console}")]
    Start {
        /// What happened instead of a greeting.
        source: Box<QemuError>,
        /// What QEMU said last.
        console: String,
    },
    /// QEMU ended, and does not hear commands any more.
    #[error("QEMU is gone")]
    Gone,
    /// QEMU does not answer a command in time.
    #[error("QEMU does not answer {command} within {seconds} s")]
    Silent {
        /// The command.
        command: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A signal asked for an end: see [`QemuBuilder::interrupted_by`](crate::QemuBuilder::interrupted_by).
    #[error("interrupted while QEMU had {command} to answer")]
    Interrupted {
        /// The command.
        command: String,
    },
    /// QEMU refuses a command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's reason.
        reason: String,
    },
    /// QEMU's answer to a command is not of the form it must have.
    #[error("QEMU's answer to {command} is '{answer}'")]
    Nonsense {
        /// The command.
        command: String,
        /// The answer.
        answer: String,
    },
    /// The guest has not plugged or unplugged what it was asked for.
    #[error("the guest has {plugged} bytes of vmem{device} plugged, not {wanted}, after {seconds} s")]
    NotPlugged {
        /// The device.
        device: usize,
        /// Bytes plugged now.
        plugged: u64,
        /// Bytes asked for.
        wanted: u64,
        /// How long we waited.
        seconds: u64,
    },
    /// The guest has not come to rest after a request.
    #[error(
        "the guest still works, with {plugged} bytes of vmem{device} plugged, {wanted} asked for, after {seconds} s"
    )]
    Busy {
        /// The device.
        device: usize,
        /// Bytes plugged now.
        plugged: u64,
        /// Bytes asked for.
        wanted: u64,
        /// How long we waited.
        seconds: u64,
    },
    /// The machine was not built to count instructions.
    #[error("instructions are not counted: the machine was built without QemuBuilder::count_instructions")]
    NotCounted,
    /// QEMU runs on.
    #[error("QEMU still runs after {seconds} s")]
    Running {
        /// How long we waited.
        seconds: u64,
    },
    /// The system refuses what we need to talk with QEMU.
    #[error("{what}: {source}")]
    System {
        /// What it was for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl QemuError {
    /// For `map_err`: the system refuses something.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> QemuError {
        move |source| QemuError::System { what, source }
    }
}
