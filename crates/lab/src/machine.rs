//! A machine: QEMU, a kernel, and an agent inside.

use std::fmt::Display;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::agent::{self, Agent, Output};
use crate::console::Console;
use crate::kernel::Kernel;
use crate::qmp::Qmp;
use crate::{GIB, initramfs};

/// QEMU's name.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long a boot or a command may take, unless told otherwise. TCG on a busy machine is slow: the usual boot takes
/// three seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a machine is to have.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    kernel: Option<Kernel>,
    memory: u64,
    cpus: u32,
    virtio_mem: u64,
    dimms: u64,
    command_line: String,
    files: Vec<(String, PathBuf)>,
    patience: Duration,
}

impl Builder {
    /// The kernel to boot.
    pub fn kernel(mut self, kernel: &Kernel) -> Self {
        self.kernel = Some(kernel.clone());
        self
    }

    /// Memory at boot, in bytes (1 GiB).
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// CPUs (1).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// A virtio-mem device with blocks of 2 MiB and room for this many bytes, none of them plugged (no device).
    pub fn virtio_mem(mut self, bytes: u64) -> Self {
        self.virtio_mem = bytes;
        self
    }

    /// Room for DIMMs of this many bytes in all ([`Qmp::plug_dimm`]; none).
    pub fn dimms(mut self, bytes: u64) -> Self {
        self.dimms = bytes;
        self
    }

    /// More for the kernel's command line.
    pub fn command_line(mut self, words: &str) -> Self {
        self.command_line.push(' ');
        self.command_line.push_str(words);
        self
    }

    /// A file of the host's that the guest has under this path, executable.
    pub fn file(mut self, guest: &str, host: impl AsRef<Path>) -> Self {
        self.files.push((guest.to_owned(), host.as_ref().to_owned()));
        self
    }

    /// How long the boot and each command may take (120 s).
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Boots it; it is up when this returns.
    ///
    /// # Errors
    /// QEMU or a file is missing, or the guest does not come up in time; with the console's last lines.
    pub fn boot(self) -> Result<Machine> {
        let kernel = self.kernel.as_ref().context("a machine needs a kernel")?;
        let dir = tempfile::tempdir().context("no room for an initial RAM disk")?;
        let disk = dir.path().join("initramfs");
        // These two make a machine reachable; the third is what we are after.
        let modules = kernel.modules(&["virtio_pci", "virtio_console", "virtio_mem"])?;
        initramfs::write(File::create(&disk)?, &modules, &self.files)?;

        let (agent, agent_end) = socket_pair()?;
        let (qmp, qmp_end) = socket_pair()?;
        let mut command = self.command(&kernel.image(), &disk, &agent_end, &qmp_end);
        let mut child = command.spawn().with_context(|| format!("cannot run {QEMU}"))?;
        // With our copies closed, we see it when QEMU ends.
        drop((agent_end, qmp_end));
        let console = Console::default();
        let out = child.stdout.take().map(|out| console.collect(out));
        let err = child.stderr.take().map(|err| console.collect(err));
        let mut qemu = Qemu { child, console, collectors: out.into_iter().chain(err).collect() };
        let machine = (|| {
            let qmp = Qmp::new(qmp)?;
            let mut agent = Agent(agent);
            let release = agent.ready(self.patience)?;
            if release != kernel.release() {
                bail!("Linux {release} is up");
            }
            Ok((qmp, agent))
        })();
        match machine {
            Ok((qmp, agent)) => Ok(Machine { qemu, agent, qmp, patience: self.patience }),
            Err(error) => {
                qemu.end();
                Err(qemu.explain(error, format_args!("booting Linux {}", kernel.release())))
            }
        }
    }

    fn command(&self, image: &Path, disk: &Path, agent: &OwnedFd, qmp: &OwnedFd) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-no-user-config", "-nodefaults"]);
        command.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-smp", &self.cpus.to_string()]);
        // Room for devices is counted in whole GiB, since each DIMM is aligned to one.
        let room = (self.virtio_mem + self.dimms).next_multiple_of(GIB);
        let most = self.memory + room + GIB;
        command.args(["-m", &format!("{},slots=8,maxmem={most}", Bytes(self.memory))]);
        command.arg("-kernel").arg(image).arg("-initrd").arg(disk);
        // Panics end the machine; the console says little besides.
        command.args(["-append", &format!("console=ttyS0 panic=-1 loglevel=4{}", self.command_line)]);
        command.args(["-chardev", &format!("socket,id=qmp,fd={}", qmp.as_raw_fd())]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        command.args(["-chardev", &format!("socket,id=agent,fd={}", agent.as_raw_fd())]);
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", &format!("virtserialport,chardev=agent,name={}", agent::PORT)]);
        if self.virtio_mem > 0 {
            let size = self.virtio_mem;
            command.args(["-object", &format!("memory-backend-ram,id=vmem0-memory,size={size},reserve=off")]);
            command.args([
                "-device",
                "virtio-mem-pci,id=vmem0,memdev=vmem0-memory,block-size=2M,requested-size=0",
            ]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A size as `-m` wants it: a bare number there means MiB.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}B", self.0)
    }
}

/// Two ends of a stream; the second is for a child to inherit.
fn socket_pair() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    Ok((ours, theirs))
}

/// A running QEMU; ends with this.
struct Qemu {
    child: Child,
    console: Console,
    /// The threads that hear the console; they end with QEMU.
    collectors: Vec<JoinHandle<()>>,
}

impl Qemu {
    /// Ends it; all that it said is then known.
    fn end(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for collector in self.collectors.drain(..) {
            let _ = collector.join();
        }
    }

    /// An error with what the console said last.
    fn explain(&self, error: anyhow::Error, what: impl Display) -> anyhow::Error {
        anyhow!("{what}: {error:#}\n{}", self.console.tail())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// A Linux machine that runs. Dropping it turns it off.
pub struct Machine {
    qemu: Qemu,
    agent: Agent,
    qmp: Qmp,
    patience: Duration,
}

impl Machine {
    /// A machine to be: 1 GiB, one CPU, nothing else.
    pub fn builder() -> Builder {
        Builder {
            kernel: None,
            memory: GIB,
            cpus: 1,
            virtio_mem: 0,
            dimms: 0,
            command_line: String::new(),
            files: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// The machine from outside.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Runs a command with the guest's shell, as root; returns what it prints.
    ///
    /// # Errors
    /// The command fails; or, which ends the machine, it does not end in time or the guest breaks down. With the
    /// console's last lines.
    pub fn run(&mut self, command: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run_bytes(command)?).into_owned())
    }

    /// As [`run`](Self::run), for commands that print no text.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn run_bytes(&mut self, command: &str) -> Result<Vec<u8>> {
        let output = self.agent.run(command, self.patience);
        let Output { status, stdout, stderr } = output.map_err(|error| {
            // It is of no use any more.
            self.qemu.end();
            self.qemu.explain(error, format_args!("running '{command}'"))
        })?;
        if status == 0 {
            return Ok(stdout);
        }
        let said = [stdout, stderr].concat();
        let error = anyhow!("exit code {status}: {}", String::from_utf8_lossy(&said).trim());
        Err(self.qemu.explain(error, format_args!("running '{command}'")))
    }

    /// Waits until a command of the guest's shell succeeds, asking again and again.
    ///
    /// # Errors
    /// It has not in time; with the console's last lines.
    pub fn wait_for(&mut self, condition: &str) -> Result<()> {
        self.run(&format!("until {condition}; do sleep 0.05; done"))?;
        Ok(())
    }

    /// The first number of the line that begins with `key` in a file of the guest, such as `/proc/vmstat`.
    ///
    /// # Errors
    /// There is no such file, or no such line in it.
    pub fn number(&mut self, file: &str, key: &str) -> Result<u64> {
        let text = self.run(&format!("cat {file}"))?;
        let value = text.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()?.trim_end_matches(':') == key).then(|| words.next()?.parse().ok())?
        });
        value.with_context(|| format!("{file} of the guest has no number for {key}"))
    }

    /// All that the console has said.
    pub fn console(&self) -> String {
        self.qemu.console.text()
    }
}
