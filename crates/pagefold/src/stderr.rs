//! What is said to the person at the terminal.

use std::io::{self, Write};

/// Writes one line.
pub fn say(line: impl std::fmt::Display) {
    // Where stderr cannot be written, there is nothing left to report it to.
    let _ = writeln!(io::stderr(), "pagefold: {line}");
}
