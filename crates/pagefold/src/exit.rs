//! Exit codes. 0: fine. 1: failure. 2: usage (clap's). And these:

use std::process::ExitCode;

/// Something that the machine has could not be read; the rest was printed.
pub const PARTIAL: u8 = 3;
/// A threshold was passed, or the answer to the question asked is no.
pub const OVER: u8 = 10;

/// The exit code of a result.
pub fn code(is_partial: bool, is_over: bool) -> ExitCode {
    match (is_over, is_partial) {
        (true, _) => OVER.into(),
        (false, true) => PARTIAL.into(),
        (false, false) => ExitCode::SUCCESS,
    }
}
