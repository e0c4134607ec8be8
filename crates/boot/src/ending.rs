//! How a guest ended, and what it said of it.

use std::path::Path;

use pagefold_boot_protocol::GuestExit;
use pagefold_qemu::Exit;
use serde::Serialize;

use crate::lost::Lost;
use crate::symbols;

/// How a guest ended.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ending {
    /// In a word, for scripts.
    pub how: &'static str,
    /// In a line.
    pub meaning: String,
    /// What the guest and QEMU said at the end, if it was not asked to stop; functions named.
    pub dump: Option<String>,
    #[serde(skip)]
    console: String,
}

/// Lines of a console that do not belong to a dump.
const TAIL: usize = 12;

impl Ending {
    /// By QEMU's exit, if it ended by itself; by what was the matter before; and by what the console had to say.
    pub fn new(exit: Option<Exit>, why: &Lost, console: String) -> Ending {
        let (how, meaning) = match exit {
            Some(Exit::Guest(number)) => {
                let code = i32::from(number) << 1 | 1;
                match GuestExit::from_qemu_code(code) {
                    Some(exit) => (name(exit), exit.meaning().to_owned()),
                    None => ("unknown", format!("the guest ended with {number}, which means nothing here")),
                }
            }
            Some(Exit::Off) => ("reset", "the machine was reset: a fault that could not be handled".into()),
            Some(Exit::Failed(code)) => ("qemu-failed", format!("QEMU gave up (exit code {code})")),
            Some(Exit::Signal(signal)) => ("qemu-killed", format!("signal {signal} ended QEMU")),
            None => ("killed", "the guest did not end, not even by an interrupt: QEMU was killed".into()),
        };
        let (how, meaning) = match why {
            Lost::Interrupted => ("interrupted", "interrupted; the result so far".to_owned()),
            // The exit says it all.
            Lost::Ended => (how, meaning),
            lost => (how, format!("{lost}; then: {meaning}")),
        };
        let console = if matches!(how, "stopped" | "interrupted") { String::new() } else { console };
        Ending { how, meaning, dump: None, console }
    }

    /// Whether it was asked to stop, and did.
    pub fn is_in_order(&self) -> bool {
        self.how == name(GuestExit::Stopped)
    }

    /// Whether the kernel did not understand its command line.
    pub fn is_usage(&self) -> bool {
        self.how == name(GuestExit::Usage)
    }

    /// What the guest said last.
    pub fn last_line(&self) -> &str {
        self.dump.as_deref().and_then(|dump| dump.lines().last()).unwrap_or(&self.meaning)
    }

    /// Takes the dump out of the console's text, and names functions of `kernel` in it.
    pub fn explain(mut self, kernel: &Path) -> Ending {
        if !self.console.is_empty() {
            let last = last_words(&self.console);
            self.dump = Some(symbols::name_all(kernel, &last));
        }
        self
    }
}

/// From the line on that says what happened; the last lines if none does.
fn last_words(console: &str) -> String {
    let clean = |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
    let lines: Vec<String> = console.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    let says = |line: &String| GuestExit::ALL.iter().any(|exit| line.starts_with(exit.meaning()));
    let from = lines.iter().position(says).unwrap_or(lines.len().saturating_sub(TAIL));
    lines[from..].join("\n")
}

/// A word for scripts.
fn name(exit: GuestExit) -> &'static str {
    match exit {
        GuestExit::Stopped => "stopped",
        GuestExit::Panic => "panic",
        GuestExit::StrayWrite => "stray-write",
        GuestExit::StrayRead => "stray-read",
        GuestExit::Exception => "exception",
        GuestExit::DoubleFault => "double-fault",
        GuestExit::StackOverflow => "stack-overflow",
        GuestExit::Hang => "hang",
        GuestExit::Usage => "usage",
        GuestExit::Unsupported => "unsupported",
        GuestExit::HostGone => "host-gone",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(exit: Option<Exit>, why: &Lost) -> Ending {
        Ending::new(exit, why, "SeaBIOS\r\nup\r\n".into())
    }

    #[test]
    fn every_end_has_a_name_and_a_line() {
        let asked = ending(Some(Exit::Guest(GuestExit::Stopped as u8)), &Lost::Ended);
        assert!(asked.is_in_order() && asked.explain(Path::new("none")).dump.is_none());
        let trapped = ending(Some(Exit::Guest(GuestExit::StrayWrite as u8)), &Lost::Ended);
        assert_eq!((trapped.how, trapped.is_in_order()), ("stray-write", false));
        assert_eq!(trapped.explain(Path::new("none")).dump.as_deref(), Some("SeaBIOS\nup"));
        let silent = Lost::Silent { request: "status".into(), seconds: 60 };
        let hung = ending(Some(Exit::Guest(GuestExit::Hang as u8)), &silent);
        assert_eq!(hung.how, "hang");
        assert!(
            hung.meaning.starts_with("the guest did not answer 'status' for 60 s; then: "),
            "{}",
            hung.meaning
        );
        assert_eq!(ending(None, &silent).how, "killed");
        assert_eq!(ending(Some(Exit::Off), &Lost::Ended).how, "reset");
        assert_eq!(ending(None, &Lost::Interrupted).how, "interrupted");
    }

    #[test]
    fn a_dump_begins_where_the_guest_says_what_happened() {
        let console = format!("booting\n\n{}: on processor 1\n  rax 0\n", GuestExit::DoubleFault.meaning());
        let words = last_words(&console);
        assert_eq!(words, "a double fault: on processor 1\n  rax 0");
        let long: String = (0..50).map(|line| format!("line {line}\n")).collect();
        assert_eq!(last_words(&long).lines().count(), TAIL);
    }
}
