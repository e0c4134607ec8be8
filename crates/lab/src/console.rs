//! What a machine says while it runs: the serial console, and QEMU's own complaints.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Lines of it that an error shows: a whole panic.
const TAIL: usize = 60;

/// Everything said so far.
#[derive(Clone, Default)]
pub(crate) struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// Collects what comes from `from`, in a thread that ends with it.
    pub(crate) fn collect(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let all = Arc::clone(&self.0);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                all.lock().unwrap_or_else(PoisonError::into_inner).extend(&bytes[..read]);
            }
        })
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The last lines, fit for a terminal.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let clean = |line: &&str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
        let tail: Vec<_> = lines[lines.len().saturating_sub(TAIL)..].iter().map(clean).collect();
        format!("---- the console's last lines\n{}\n----", tail.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_short_and_has_no_control_characters() {
        let console = Console::default();
        let said = (0..100).map(|line| format!("line {line}\x1b[2J\r\n\n")).collect::<String>();
        console.collect(std::io::Cursor::new(said.clone().into_bytes())).join().unwrap();
        assert_eq!(console.text(), said);
        let tail = console.tail();
        assert_eq!(tail.lines().count(), TAIL + 2);
        assert!(tail.ends_with("line 99[2J\n----"), "{tail}");
    }
}
