//! Exit codes. 0: fine. 1: failure. 2: usage (clap's). And these:

use std::process::ExitCode;

/// Something that the machine has could not be read; the rest was printed.
pub const PARTIAL: u8 = 3;
/// A threshold was passed, or the answer to the question asked is no.
pub const OVER: u8 = 10;

/// A question that makes no sense: what was asked for cannot go together, or is not there to ask for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

/// The exit code for it, which is clap's too.
pub const USAGE: u8 = 2;

/// The error that says so, in a line.
pub fn usage(line: impl Into<String>) -> anyhow::Error {
    Usage(line.into()).into()
}

/// The exit code of an error.
pub fn of_error(error: &anyhow::Error) -> ExitCode {
    if error.is::<Usage>() { USAGE.into() } else { ExitCode::FAILURE }
}

/// The exit code of a result.
pub fn code(is_partial: bool, is_over: bool) -> ExitCode {
    match (is_over, is_partial) {
        (true, _) => OVER.into(),
        (false, true) => PARTIAL.into(),
        (false, false) => ExitCode::SUCCESS,
    }
}
