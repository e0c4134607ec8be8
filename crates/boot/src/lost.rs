//! Why a guest gives no answer any more.

use pagefold_boot_protocol::{Answer, VERSION};

/// Why there is no answer any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// QEMU has closed the port.
    #[error("the guest ended")]
    Ended,
    /// The guest did not answer.
    #[error("the guest did not answer '{request}' for {seconds} s")]
    Silent {
        /// What it was asked.
        request: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It greets although it was not reset.
    #[error("the guest started anew by itself")]
    Restarted,
    /// What it says is no answer to what was asked.
    #[error("the guest answered '{request}' with '{answer}'")]
    Nonsense {
        /// What it was asked.
        request: String,
        /// The beginning of what it said.
        answer: String,
    },
    /// Another version of the protocol.
    #[error(
        "the guest speaks version {0} of the protocol, and this command {VERSION}: build both from the same sources"
    )]
    Version(u32),
    /// QEMU does not take requests.
    #[error(transparent)]
    Qemu(#[from] pagefold_qemu::QemuError),
    /// A signal asked for an end.
    #[error("interrupted")]
    Interrupted,
}

/// The error of an answer to another question.
pub fn nonsense(request: &str, answer: &Answer) -> Lost {
    Lost::Nonsense { request: request.to_owned(), answer: shortened(&format!("{answer:?}")) }
}

/// The beginning of a line, fit to be shown.
pub(crate) fn shortened(line: &str) -> String {
    let clean: String = line.chars().filter(|c| !c.is_control()).take(120).collect();
    if clean.len() < line.len() { clean + "..." } else { clean }
}
