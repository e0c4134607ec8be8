//! Commands from a terminal, or from a file.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// Lines, one after the other.
pub enum Script {
    /// From a person: with a prompt and a history.
    Person(Box<DefaultEditor>),
    /// From anything else.
    File(io::StdinLock<'static>),
}

impl Script {
    /// Whoever is at stdin.
    pub fn from_stdin() -> Result<Script> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Ok(Script::Person(Box::new(DefaultEditor::new()?)));
        }
        Ok(Script::File(stdin.lock()))
    }

    /// Whether somebody watches.
    pub fn is_person(&self) -> bool {
        matches!(self, Script::Person(_))
    }

    /// The next line that says something; none at the end, or after Ctrl-C and Ctrl-D.
    pub fn next(&mut self) -> Result<Option<String>> {
        loop {
            let line = match self {
                Script::Person(editor) => match editor.readline("guest> ") {
                    Ok(line) => {
                        // A history that cannot grow is no reason to stop.
                        let _ = editor.add_history_entry(&line);
                        line
                    }
                    Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
                    Err(error) => return Err(error.into()),
                },
                Script::File(stdin) => {
                    let mut line = String::new();
                    if stdin.read_line(&mut line)? == 0 {
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
