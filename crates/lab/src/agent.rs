//! The agent that runs commands in the guest, and the host's end of it.
//!
//! They talk over a virtio-serial port. A request is a line: the command, in hexadecimal. An answer is a line, `status
//! bytes-of-stdout bytes-of-stderr`, and those bytes. After the boot the agent says `ready` and the kernel's release.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The port's name.
pub(crate) const PORT: &str = "agent";

/// `/init` of the guest.
pub(crate) const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    [ ! -e "$module" ] || insmod "$module"
done
# The host's message that makes the port may come a little later than its device.
until port=$(grep -l '^agent$' /sys/class/virtio-ports/*/name 2>/dev/null) && [ -n "$port" ]; do sleep 0.02; done
port=${port%/name}
port=/dev/${port##*/}
until [ -c "$port" ]; do sleep 0.02; done
exec 3<>"$port"
echo "ready $(uname -r)" >&3
while read -r command <&3; do
    echo "$command" | xxd -r -p >/tmp/command
    sh /tmp/command >/tmp/stdout 2>/tmp/stderr </dev/null
    status=$?
    set -- $(wc -c </tmp/stdout) $(wc -c </tmp/stderr)
    echo "$status $1 $2" >&3
    cat /tmp/stdout /tmp/stderr >&3
done
poweroff -f
"#;

/// What a command left behind.
#[derive(Debug, PartialEq)]
pub(crate) struct Output {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// The host's end.
pub(crate) struct Agent(pub(crate) UnixStream);

impl Agent {
    /// Waits for the guest to be up; returns its kernel's release.
    pub(crate) fn ready(&mut self, within: Duration) -> Result<String> {
        let line = self.line(Instant::now() + within)?;
        match line.strip_prefix("ready ") {
            Some(release) => Ok(release.to_owned()),
            None => bail!("the guest's first word is '{line}'"),
        }
    }

    /// Runs a command with the guest's shell.
    pub(crate) fn run(&mut self, command: &str, within: Duration) -> Result<Output> {
        let deadline = Instant::now() + within;
        self.begin(command)?;
        let line = self.line(deadline)?;
        let numbers: Vec<usize> = line.split(' ').map_while(|number| number.parse().ok()).collect();
        let [status, stdout, stderr] = numbers[..] else { bail!("the guest's answer is '{line}'") };
        Ok(Output {
            status: status as i32,
            stdout: self.bytes(stdout, deadline)?,
            stderr: self.bytes(stderr, deadline)?,
        })
    }

    /// Has the guest's shell begin a command; the answer, if one comes, is not read.
    pub(crate) fn begin(&mut self, command: &str) -> Result<()> {
        let mut request: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        request.push('\n');
        self.0.write_all(request.as_bytes()).context("the guest takes no commands any more")
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match self.bytes(1, deadline)?[0] {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte => line.push(byte),
            }
        }
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the guest does not answer in time");
            }
            self.0.set_read_timeout(Some(left))?;
            match self.0.read(&mut bytes[filled..]) {
                Ok(0) => bail!("the guest is gone"),
                Ok(read) => filled += read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("the guest cannot be heard any more"),
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SECOND: Duration = Duration::from_secs(1);

    /// An agent that says these bytes, whatever it is asked.
    fn agent(says: &'static [u8]) -> Agent {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            theirs.write_all(says).unwrap();
            // Until the host hangs up.
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        Agent(ours)
    }

    #[test]
    fn answers_have_a_status_and_any_bytes() {
        let mut agent = agent(b"ready 6.1\n3 2 5\n\0\nhello0 0 0\n");
        assert_eq!(agent.ready(SECOND).unwrap(), "6.1");
        let output = Output { status: 3, stdout: b"\0\n".into(), stderr: b"hello".into() };
        assert_eq!(agent.run("false", SECOND).unwrap(), output);
        assert_eq!(agent.run("true", SECOND).unwrap().status, 0);
    }

    #[test]
    fn silence_ends_by_a_deadline() {
        let error = agent(b"ready").ready(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "the guest does not answer in time");
    }

    #[test]
    fn nonsense_and_hanging_up_are_errors() {
        assert!(agent(b"panic\n").ready(SECOND).is_err());
        assert!(agent(b"0 x\n").run("", SECOND).is_err());
        let (ours, _) = UnixStream::pair().unwrap();
        assert_eq!(Agent(ours).ready(SECOND).unwrap_err().to_string(), "the guest is gone");
    }
}
