//! What a machine says while it runs: the serial console, and QEMU's own complaints.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lines of it that an error shows: a whole panic.
const TAIL: usize = 60;

/// Everything said so far.
#[derive(Clone, Default)]
pub struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    /// Those who may still say something.
    speakers: usize,
}

impl Console {
    /// Collects what comes from `from`, in a thread that ends with it.
    pub(crate) fn collect(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        self.said().speakers += 1;
        let console = self.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                console.said().bytes.extend(&bytes[..read]);
                console.0.more.notify_all();
            }
            console.said().speakers -= 1;
            console.0.more.notify_all();
        })
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until these words are among all that was said. False if QEMU ended, or `within` passed, without them.
    pub fn wait_for(&self, words: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut said = self.said();
        loop {
            if said.bytes.windows(words.len()).any(|bytes| bytes == words.as_bytes()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.speakers == 0 || left.is_zero() {
                return false;
            }
            said = self.0.more.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said().bytes).into_owned()
    }

    /// The last lines, fit for a terminal, for the end of an error.
    pub fn tail(&self) -> String {
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
    use std::io::Write;

    const MINUTE: Duration = Duration::from_secs(60);

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

    #[test]
    fn words_are_waited_for_until_all_is_said() {
        let console = Console::default();
        let (from, mut to) = std::os::unix::net::UnixStream::pair().unwrap();
        console.collect(from);
        to.write_all(b"up and ").unwrap();
        assert!(console.wait_for("up", MINUTE));
        assert!(!console.wait_for("running", Duration::from_millis(1)));
        to.write_all(b"running").unwrap();
        assert!(console.wait_for("and running", MINUTE));
        drop(to);
        assert!(!console.wait_for("away", MINUTE));
    }
}
