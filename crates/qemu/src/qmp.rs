//! QEMU's machine protocol: a line of JSON for a command, a line of JSON for an answer, and events in between.
//!
//! Our own few lines rather than the crate `qapi` (0.15, of QEMU 9.1's schema): that parses every line into the types of
//! one QEMU version, and fails the command it waits for when an event arrives that this version did not have. The events of
//! whichever QEMU is installed are none of our business here, and `qom-set` and `qom-get` have no types in it either.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::QemuError;

/// QEMU answers at once, if it does.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often we look whether somebody wants us to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// A machine from outside.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has arrived of a line.
    arrived: Vec<u8>,
    patience: Duration,
    interrupt: Option<Arc<AtomicBool>>,
    dimms: usize,
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream, interrupt: Option<Arc<AtomicBool>>) -> Result<Self, QemuError> {
        let timeouts = stream.set_read_timeout(Some(GLANCE));
        timeouts
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(QemuError::system("no socket to talk with QEMU"))?;
        let stream = BufReader::new(stream);
        let mut qmp = Qmp { stream, arrived: Vec::new(), patience: PATIENCE, interrupt, dimms: 0 };
        qmp.line("nothing yet", Instant::now() + PATIENCE)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// How long QEMU may take to answer a command, from now on (30 s).
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Executes a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refuses, is gone, or does not answer in [time](Self::set_patience); somebody wants us to stop.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|_| QemuError::Gone)?;
        let until = Instant::now() + self.patience;
        loop {
            let mut answer = self.line(command, until)?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QemuError::Refused { command: command.to_owned(), reason });
            }
            // Anything else is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Asks for `bytes` plugged in the virtio-mem device `vmem<device>`. The guest follows as it can: see
    /// [`wait_for_plugged`](Self::wait_for_plugged).
    ///
    /// # Errors
    /// There is no such device, or `bytes` is more than it has or no multiple of its block.
    pub fn resize(&mut self, device: usize, bytes: u64) -> Result<(), QemuError> {
        let path = path(device);
        self.execute("qom-set", json!({ "path": path, "property": "requested-size", "value": bytes }))?;
        Ok(())
    }

    /// Bytes plugged in the virtio-mem device `vmem<device>`.
    ///
    /// # Errors
    /// There is no such device.
    pub fn plugged(&mut self, device: usize) -> Result<u64, QemuError> {
        self.number(device, "size")
    }

    /// Where the guest's memory of the virtio-mem device `vmem<device>` begins: a physical address.
    ///
    /// # Errors
    /// There is no such device.
    pub fn address(&mut self, device: usize) -> Result<u64, QemuError> {
        self.number(device, "memaddr")
    }

    fn number(&mut self, device: usize, property: &str) -> Result<u64, QemuError> {
        let value = self.execute("qom-get", json!({ "path": path(device), "property": property }))?;
        value.as_u64().ok_or_else(|| QemuError::Nonsense {
            command: format!("qom-get {property}"),
            answer: value.to_string(),
        })
    }

    /// Waits until the guest has plugged or unplugged as much as it was asked for. (QEMU has an event for it, but tells
    /// of it a second late.)
    ///
    /// # Errors
    /// It has not after `within`.
    pub fn wait_for_plugged(&mut self, device: usize, bytes: u64, within: Duration) -> Result<(), QemuError> {
        let deadline = Instant::now() + within;
        loop {
            let plugged = self.plugged(device)?;
            if plugged == bytes {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(QemuError::NotPlugged {
                    device,
                    plugged,
                    wanted: bytes,
                    seconds: within.as_secs(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Plugs a DIMM of `bytes`, as ACPI's memory hotplug does.
    ///
    /// # Errors
    /// The machine has no room for it (see [`QemuBuilder::dimms`](crate::QemuBuilder::dimms)).
    pub fn plug_dimm(&mut self, bytes: u64) -> Result<(), QemuError> {
        let (dimm, memory) = (format!("dimm{}", self.dimms), format!("dimm{}-memory", self.dimms));
        self.dimms += 1;
        self.execute("object-add", json!({ "qom-type": "memory-backend-ram", "id": memory, "size": bytes }))?;
        self.execute("device_add", json!({ "driver": "pc-dimm", "id": dimm, "memdev": memory }))?;
        Ok(())
    }

    /// Sends every CPU a non-maskable interrupt.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn inject_nmi(&mut self) -> Result<(), QemuError> {
        self.execute("inject-nmi", json!({}))?;
        Ok(())
    }

    /// Resets the machine, as its button would; without [`QemuBuilder::resets`](crate::QemuBuilder::resets) that ends QEMU. A
    /// virtio-mem device unplugs everything then.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn system_reset(&mut self) -> Result<(), QemuError> {
        self.execute("system_reset", json!({}))?;
        Ok(())
    }

    /// Ends QEMU, in order: see [`Qemu::wait`](crate::Qemu::wait).
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn quit(&mut self) -> Result<(), QemuError> {
        self.execute("quit", json!({}))?;
        Ok(())
    }

    /// The next line, while we wait for the answer to `command`.
    fn line(&mut self, command: &str, until: Instant) -> Result<Value, QemuError> {
        loop {
            match self.stream.read_until(b'\n', &mut self.arrived) {
                Ok(0) => return Err(QemuError::Gone),
                Ok(_) => {
                    let line = std::mem::take(&mut self.arrived);
                    return serde_json::from_slice(&line).map_err(|_| QemuError::Nonsense {
                        command: command.to_owned(),
                        answer: String::from_utf8_lossy(&line).trim_end().to_owned(),
                    });
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return Err(QemuError::Gone),
            }
            // Relaxed: a flag that stands for itself.
            if self.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(QemuError::Interrupted { command: command.to_owned() });
            }
            if Instant::now() >= until {
                return Err(QemuError::Silent {
                    command: command.to_owned(),
                    seconds: self.patience.as_secs(),
                });
            }
        }
    }
}

/// Where QEMU keeps a virtio-mem device.
fn path(device: usize) -> String {
    format!("/machine/peripheral/vmem{device}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn qemu_that_hangs_up_or_talks_nonsense_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(Qmp::new(ours, None).err().unwrap().to_string(), "QEMU is gone");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"hello\n").unwrap();
        assert!(matches!(Qmp::new(ours, None), Err(QemuError::Nonsense { .. })));
    }

    #[test]
    fn who_waits_for_qemu_can_be_told_to_stop() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n{\"half\": ").unwrap();
        let flag = Arc::new(AtomicBool::new(false));
        let mut qmp = Qmp::new(ours, Some(Arc::clone(&flag))).unwrap();
        qmp.set_patience(Duration::ZERO);
        assert!(matches!(qmp.quit(), Err(QemuError::Silent { .. })));
        qmp.set_patience(Duration::from_secs(600));
        flag.store(true, Ordering::Relaxed);
        assert!(matches!(qmp.quit(), Err(QemuError::Interrupted { .. })));
        // What has arrived of a line is not lost.
        flag.store(false, Ordering::Relaxed);
        theirs.write_all(b"1}\n{\"return\": 7}\n").unwrap();
        assert_eq!(qmp.plugged(0).unwrap(), 7);
    }

    #[test]
    fn events_are_passed_over_and_refusals_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"RESUME\"}\n").unwrap();
            theirs.write_all(b"{\"return\": 7}\n{\"error\": {\"desc\": \"no such size\"}}\n").unwrap();
            let mut asked = String::new();
            theirs.read_to_string(&mut asked).unwrap();
            asked
        });
        let mut qmp = Qmp::new(ours, None).unwrap();
        assert_eq!(qmp.plugged(0).unwrap(), 7);
        let error = qmp.resize(1, 9).unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses qom-set: no such size");
        drop(qmp);
        let asked = qemu.join().unwrap();
        assert_eq!(asked.lines().count(), 3);
        assert!(
            asked.contains("/machine/peripheral/vmem0") && asked.contains("/machine/peripheral/vmem1"),
            "{asked}"
        );
        assert!(asked.contains(r#""value":9"#), "{asked}");
    }
}
