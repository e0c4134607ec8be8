//! A running QEMU.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::child::spawn_bound;
use crate::{Console, Executed, Exit, InstructionCounters, QemuBuilder, QemuError, Qmp};

/// A QEMU that runs. Dropping it ends it.
pub struct Qemu {
    process: Process,
    qmp: Qmp,
    ports: Vec<(String, UnixStream)>,
    counters: Option<InstructionCounters>,
}

impl QemuBuilder {
    /// Starts it.
    ///
    /// # Errors
    /// There is no QEMU, or it does not like an option, such as a kernel that does not exist.
    pub fn spawn(&self) -> Result<Qemu, QemuError> {
        let (qmp, qmp_end) = socket_pair()?;
        let (mut ports, mut port_ends) = (Vec::new(), Vec::new());
        for port in self.ports() {
            let (ours, theirs) = socket_pair()?;
            ports.push((port.name.clone(), ours));
            port_ends.push(theirs);
        }
        let counters = self.counts_instructions().then(|| counters(self.all_cpus())).transpose()?;
        let (counters, file) = counters.unzip();
        let command = self.to_command(&qmp_end, &port_ends, file.as_ref());
        let files = [&qmp_end].into_iter().chain(&port_ends).map(AsRawFd::as_raw_fd);
        let files = files.chain(file.as_ref().map(AsRawFd::as_raw_fd)).chain(self.files());
        let spawned = spawn_bound(command, &files.collect::<Vec<_>>());
        // With our copies closed, we see it when QEMU ends.
        drop((qmp_end, port_ends, file));
        let mut child = spawned.map_err(|source| {
            let program = self.program_path().to_owned();
            match source.kind() {
                std::io::ErrorKind::NotFound => QemuError::Missing { program },
                _ => QemuError::Spawn { program, source },
            }
        })?;
        let console = Console::default();
        let out = child.stdout.take().map(|out| console.collect(out));
        let err = child.stderr.take().map(|err| console.collect(err));
        let mut process = Process { child, console, collectors: out.into_iter().chain(err).collect() };
        let greeted = Qmp::new(qmp, self.interrupt()).and_then(|mut qmp| {
            match qmp.execute("cont", serde_json::json!({})) {
                // The machine may have ended before QEMU answered.
                Ok(_) | Err(QemuError::Gone) => Ok(qmp),
                Err(error) => Err(error),
            }
        });
        match greeted {
            Ok(qmp) => Ok(Qemu { process, qmp, ports, counters }),
            Err(error) => {
                process.end();
                Err(QemuError::Start { source: Box::new(error), console: process.console.tail() })
            }
        }
    }
}

/// Two ends of a stream; the second is for a child to inherit.
fn socket_pair() -> Result<(UnixStream, OwnedFd), QemuError> {
    let pair = || -> std::io::Result<_> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((ours, OwnedFd::from(theirs)))
    };
    pair().map_err(QemuError::system("no socket to talk with QEMU"))
}

/// Counters, and their file for a child to inherit.
fn counters(cpus: u32) -> Result<(InstructionCounters, File), QemuError> {
    let counters = || -> std::io::Result<_> {
        let file = InstructionCounters::file(cpus as usize)?;
        let counters = InstructionCounters::map(&file)?;
        Ok((counters, file))
    };
    counters().map_err(QemuError::system("no memory for counters"))
}

impl Qemu {
    /// The machine from outside.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// What the console and QEMU itself said.
    pub fn console(&self) -> &Console {
        &self.process.console
    }

    /// The host's end of a port ([`QemuBuilder::serial`], [`QemuBuilder::virtio_port`]); once: the caller owns it.
    pub fn take_port(&mut self, name: &str) -> Option<UnixStream> {
        let at = self.ports.iter().position(|(port, _)| port == name)?;
        Some(self.ports.swap_remove(at).1)
    }

    /// What the guest has executed so far, if it is counted ([`QemuBuilder::count_instructions`]). It does not notice.
    pub fn executed(&self) -> Option<Executed> {
        self.counters.as_ref().map(InstructionCounters::read)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Whether it has ended by itself. [`wait`](Self::wait) then tells how.
    pub fn has_ended(&mut self) -> bool {
        // What cannot be asked is waited for, and shows there.
        matches!(self.process.child.try_wait(), Ok(Some(_)))
    }

    /// Waits until QEMU ends by itself; the console is then complete.
    ///
    /// # Errors
    /// It has not ended after `within`. It runs on.
    pub fn wait(&mut self, within: Duration) -> Result<Exit, QemuError> {
        self.process.wait(within)
    }

    /// Ends QEMU, if it has not ended already; the console is then complete.
    pub fn end(&mut self) {
        self.process.end();
    }
}

/// The child, and the threads that hear its console; they end with it.
struct Process {
    child: Child,
    console: Console,
    collectors: Vec<JoinHandle<()>>,
}

impl Process {
    fn wait(&mut self, within: Duration) -> Result<Exit, QemuError> {
        // Safe from the id's reuse: no other code waits for this child, and one that was waited for is not asked about again.
        let exited = match self.child.try_wait() {
            Ok(Some(status)) => Ok(Some(status)),
            Ok(None) => self.poll(within).and_then(|()| self.child.try_wait()),
            Err(error) => Err(error),
        };
        let status = exited.map_err(QemuError::system("cannot wait for QEMU"))?;
        let status = status.ok_or(QemuError::Running { seconds: within.as_secs() })?;
        self.join();
        Ok(status.into())
    }

    /// Waits until the child has ended, or as long as that.
    fn poll(&self, within: Duration) -> std::io::Result<()> {
        let deadline = Instant::now() + within;
        let child = rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&timeout)) {
                // A signal came to us, of which nothing follows for the child.
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }

    fn end(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }

    fn join(&mut self) {
        for collector in self.collectors.drain(..) {
            let _ = collector.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
