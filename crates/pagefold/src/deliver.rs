//! Results, in files and on stdout.

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use serde::Serialize;

use crate::place::Place;
use crate::tty::is_hung_up;

/// The reader of stdout has gone.
static GONE: AtomicBool = AtomicBool::new(false);

/// What people and scripts read. When the reader of a pipe closes it, the rest is dropped: that is no failure, and the
/// exit code is as it would have been.
pub struct Stdout(StdoutLock<'static>);

/// Stdout, locked.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// Nothing, if the reader has gone; other errors say where they come from.
fn unless_gone<T>(done: io::Result<T>, nothing: T) -> io::Result<T> {
    match done {
        // A pipe without a reader, or a terminal that has gone away.
        Err(error) if error.kind() == ErrorKind::BrokenPipe || is_hung_up(io::stdout().as_fd()) => {
            // Relaxed: it guards nothing but needless writes.
            GONE.store(true, Ordering::Relaxed);
            Ok(nothing)
        }
        other => {
            other.map_err(|error| io::Error::new(error.kind(), format!("cannot write to stdout: {error}")))
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if GONE.load(Ordering::Relaxed) {
            return Ok(bytes.len());
        }
        unless_gone(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if GONE.load(Ordering::Relaxed) {
            return Ok(());
        }
        unless_gone(self.0.flush(), ())
    }
}

/// Sees to it that all of stdout is written: what is left in its buffer when a program ends is written without asking
/// whether it could be.
///
/// # Errors
/// It could not: its disk is full.
pub fn finish() -> Result<()> {
    Ok(stdout().flush()?)
}

/// Writes a result to its place, or to stdout.
///
/// # Errors
/// The place cannot be written.
pub fn to(output: Option<&Place>, bytes: &[u8]) -> Result<()> {
    match output {
        Some(place) => place.write_all(bytes),
        None => Ok(stdout().write_all(bytes)?),
    }
}

/// Writes a result to stdout: as JSON, or as `print` prints it.
///
/// # Errors
/// It cannot be written.
pub fn result(
    value: &impl Serialize,
    is_json: bool,
    print: impl FnOnce(&mut Stdout) -> io::Result<()>,
) -> Result<()> {
    let mut to = stdout();
    if is_json { json(value, &mut to) } else { Ok(print(&mut to)?) }
}

/// Writes a result as JSON, for people who look at it too.
///
/// # Errors
/// It cannot be written.
pub fn json(value: &impl Serialize, to: &mut impl Write) -> Result<()> {
    serde_json::to_writer_pretty(&mut *to, value).map_err(io::Error::from)?;
    Ok(writeln!(to)?)
}
