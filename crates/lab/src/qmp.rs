//! QEMU's machine protocol: a line of JSON for a command, a line of JSON for an answer, and events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers at once, if it does.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where QEMU keeps the virtio-mem device.
const DEVICE: &str = "/machine/peripheral/vmem0";

/// A machine from outside.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    dimms: usize,
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp { stream: BufReader::new(stream), dimms: 0 };
        qmp.line().context("QEMU does not greet")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refuses, is gone, or does not answer within 30 s.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).context("QEMU is gone")?;
        loop {
            let mut answer = self.line().with_context(|| format!("QEMU does not answer {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            // Anything else is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Asks for `bytes` plugged in the virtio-mem device. The guest follows as it can: see
    /// [`wait_for_plugged`](Self::wait_for_plugged).
    ///
    /// # Errors
    /// There is no such device, or `bytes` is more than it has or no multiple of 2 MiB.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        self.execute("qom-set", json!({ "path": DEVICE, "property": "requested-size", "value": bytes }))?;
        Ok(())
    }

    /// Bytes plugged in the virtio-mem device.
    ///
    /// # Errors
    /// There is no such device.
    pub fn plugged(&mut self) -> Result<u64> {
        let value = self.execute("qom-get", json!({ "path": DEVICE, "property": "size" }))?;
        value.as_u64().with_context(|| format!("QEMU says that {value} is a size"))
    }

    /// Waits until the guest has plugged or unplugged as much as it was asked for. (QEMU has an event for it, but tells
    /// of it a second late.)
    ///
    /// # Errors
    /// It has not after `within`.
    pub fn wait_for_plugged(&mut self, bytes: u64, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let plugged = self.plugged()?;
            if plugged == bytes {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the guest has {plugged} bytes plugged, not {bytes}, after {} s", within.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Plugs a DIMM of `bytes`, as ACPI's memory hotplug does.
    ///
    /// # Errors
    /// The machine has no room for it (see [`Builder::dimms`](crate::Builder::dimms)).
    pub fn plug_dimm(&mut self, bytes: u64) -> Result<()> {
        let (dimm, memory) = (format!("dimm{}", self.dimms), format!("dimm{}-memory", self.dimms));
        self.dimms += 1;
        self.execute("object-add", json!({ "qom-type": "memory-backend-ram", "id": memory, "size": bytes }))?;
        self.execute("device_add", json!({ "driver": "pc-dimm", "id": dimm, "memdev": memory }))?;
        Ok(())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("it is gone");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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
        let mut qmp = Qmp::new(ours).unwrap();
        assert_eq!(qmp.plugged().unwrap(), 7);
        let error = qmp.resize(9).unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses qom-set: no such size");
        drop(qmp);
        let asked = qemu.join().unwrap();
        assert_eq!(asked.lines().count(), 3);
        assert!(asked.contains(r#""value":9"#), "{asked}");
    }
}
