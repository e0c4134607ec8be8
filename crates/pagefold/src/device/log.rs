//! What the device tells, on standard error, by a thread of its own. Where nobody reads it (a pipe that is full, a terminal that
//! was stopped), lines are lost and counted: the guest, the commands and the end of the process do not wait for a reader.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that wait for the thread, at most.
const LINES: usize = 4096;
/// How long the end of the process waits for lines to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log of a process.
pub struct Log {
    lines: LogLines,
    written: Receiver<()>,
}

/// Where lines go. Clones are the same.
#[derive(Clone)]
pub struct LogLines {
    to: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

enum Line {
    Text(String),
    End,
}

impl Log {
    /// Begins one.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new() -> io::Result<Self> {
        let (to, from) = sync_channel(LINES);
        let (done, written) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = LogLines { to, lost: Arc::clone(&lost) };
        thread::Builder::new().name("log".into()).spawn(move || {
            write(&from, &lost);
            let _ = done.send(());
        })?;
        Ok(Self { lines, written })
    }

    /// Where lines go.
    pub fn lines(&self) -> LogLines {
        self.lines.clone()
    }

    /// Waits until all lines are written, but not for a reader that does not come.
    pub fn finish(self) {
        // Where there is no room, nothing is read, and nothing is to be waited for.
        if self.lines.to.try_send(Line::End).is_ok() {
            let _ = self.written.recv_timeout(PATIENCE);
        }
    }
}

impl LogLines {
    /// One line, now or a little later.
    pub fn say(&self, line: &dyn Display) {
        if self.to.try_send(Line::Text(line.to_string())).is_err() {
            // Relaxed: a number that stands for itself.
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(from: &Receiver<Line>, lost: &AtomicU64) {
    while let Ok(line) = from.recv() {
        // Relaxed: as in `say`.
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            crate::stderr::say(format_args!("{lost} lines were lost: nobody has read them in time"));
        }
        match line {
            Line::Text(text) => crate::stderr::say(text),
            Line::End => return,
        }
    }
}
