//! Commands from a terminal, or from a file.

use std::io::{self, BufRead, IsTerminal};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use pagefold_boot::Lost;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::tty::{Restore, is_hung_up};

/// How often we look around while nothing comes.
const GLANCE: Duration = Duration::from_millis(100);

/// Lines, one after the other. A thread of its own reads them: waiting for a line must not keep us from what happens
/// meanwhile, such as a signal or the guest's end.
pub struct Script {
    is_person: bool,
    wanted: Sender<()>,
    lines: Receiver<Result<Option<String>>>,
    /// The thread may be left in the midst of a line, with the terminal's keys raw.
    _restore: Option<Restore>,
}

/// Where lines come from.
enum ScriptLines {
    /// A person: with a prompt and a history.
    Person(Box<DefaultEditor>),
    /// Anything else.
    File,
}

impl Script {
    /// Who is at stdin.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn from_stdin() -> Result<Script> {
        let is_person = io::stdin().is_terminal();
        let mut from =
            if is_person { ScriptLines::Person(Box::new(DefaultEditor::new()?)) } else { ScriptLines::File };
        let (wanted, asked) = channel();
        let (to, lines) = channel();
        let read = move || {
            while let Ok(()) = asked.recv() {
                if to.send(from.next()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("script".into())
            .spawn(read)
            .context("no thread to read a script")?;
        Ok(Script { is_person, wanted, lines, _restore: is_person.then(Restore::later) })
    }

    /// Whether somebody watches.
    pub fn is_person(&self) -> bool {
        self.is_person
    }

    /// The next line that says something; none at the end, after Ctrl-C and Ctrl-D, or when the terminal is gone. While
    /// nothing comes, `look` looks around, and ends the waiting by an error.
    ///
    /// # Errors
    /// Those of `look`; or stdin cannot be read.
    pub fn next(&mut self, mut look: impl FnMut() -> Result<(), Lost>) -> Result<Option<String>> {
        const ENDED: &str = "the reader of the script has gone";
        self.wanted.send(()).map_err(|_| anyhow!(ENDED))?;
        loop {
            match self.lines.recv_timeout(GLANCE) {
                Ok(line) => return line,
                Err(RecvTimeoutError::Timeout) => look()?,
                Err(RecvTimeoutError::Disconnected) => bail!(ENDED),
            }
        }
    }
}

impl ScriptLines {
    fn next(&mut self) -> Result<Option<String>> {
        loop {
            let line = match self {
                ScriptLines::Person(editor) => match editor.readline("guest> ") {
                    Ok(line) => {
                        // A history that cannot grow is no reason to stop.
                        let _ = editor.add_history_entry(&line);
                        line
                    }
                    Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
                    Err(_) if is_hung_up(io::stdin().as_fd()) => return Ok(None),
                    Err(error) => bail!("cannot read from this terminal: {error}"),
                },
                ScriptLines::File => {
                    let mut line = String::new();
                    if io::stdin().lock().read_line(&mut line).context("cannot read the script")? == 0 {
                        return Ok(None);
                    }
                    line
                }
            };
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                return Ok(Some(line.to_owned()));
            }
        }
    }
}
