//! A machine: QEMU, a kernel, and an agent inside.

use std::fmt::Display;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use pagefold_qemu::{Qemu, Qmp, VirtioMem};
use rustix::fs::MemfdFlags;

use crate::agent::{self, Agent, Output};
use crate::binary::static_kexec;
use crate::initramfs;
use crate::kernel::Kernel;

/// How long a boot or a command may take, unless told otherwise. TCG on a busy machine is slow: the usual boot takes
/// three seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a machine is to have.
#[derive(Clone, Debug)]
#[must_use]
pub struct VmBuilder {
    qemu: pagefold_qemu::QemuBuilder,
    kernel: Option<Kernel>,
    console: &'static str,
    busybox: PathBuf,
    command_line: String,
    files: Vec<(String, PathBuf)>,
    patience: Duration,
}

impl VmBuilder {
    /// The kernel to boot.
    pub fn kernel(mut self, kernel: &Kernel) -> Self {
        self.kernel = Some(kernel.clone());
        self
    }

    /// Memory at boot, in bytes (1 GiB).
    pub fn memory(mut self, bytes: u64) -> Self {
        self.qemu = self.qemu.memory(bytes);
        self
    }

    /// CPUs (1).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.qemu = self.qemu.cpus(cpus);
        self
    }

    /// One more virtio-mem device with blocks of 2 MiB and room for this many bytes, none of them plugged (no device).
    pub fn virtio_mem(mut self, bytes: u64) -> Self {
        self.qemu = self.qemu.virtio_mem(VirtioMem::new(bytes));
        self
    }

    /// Changes QEMU's own options.
    pub fn change_qemu(
        mut self,
        change: impl FnOnce(pagefold_qemu::QemuBuilder) -> pagefold_qemu::QemuBuilder,
    ) -> Self {
        self.qemu = change(self.qemu);
        self
    }

    /// The kernel's console, and busybox, of another architecture than this machine's (`ttyS0`,
    /// [`BUSYBOX`](crate::BUSYBOX)).
    pub fn console_and_busybox(mut self, console: &'static str, busybox: impl AsRef<Path>) -> Self {
        self.console = console;
        self.busybox = busybox.as_ref().to_owned();
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

    /// The initial RAM disk of a machine with this kernel, with more files.
    fn write_disk(&self, kernel: &Kernel, to: &File, files: &[(String, PathBuf)]) -> Result<()> {
        // These two make a machine reachable; the third is what we are after.
        let modules = kernel.modules(&["virtio_pci", "virtio_console", "virtio_mem"])?;
        initramfs::write(BufWriter::new(to), &self.busybox, &modules, files)
    }

    /// Has the guest be able to start its kernel anew without a reset of the machine: `lab-kexec /kernel /disk`.
    ///
    /// # Errors
    /// The program does not build, or `dir`, where a file goes that is read when the machine boots, cannot be written.
    pub fn with_kexec(self, dir: &Path) -> Result<Self> {
        let kernel = self.kernel.as_ref().context("a machine needs a kernel")?;
        let disk = dir.join("disk");
        self.write_disk(kernel, &File::create(&disk)?, &[])?;
        let image = kernel.image();
        Ok(self.file("/bin/lab-kexec", static_kexec()?).file("/kernel", image).file("/disk", disk))
    }

    /// Boots it; it is up when this returns. Once more if QEMU's emulation lets it down ("Oops: int3").
    ///
    /// # Errors
    /// QEMU or a file is missing, or the guest does not come up in time; with the console's last lines.
    pub fn boot(self) -> Result<Vm> {
        self.boot_once().or_else(|error| match error.to_string().contains(STALE_BREAKPOINT) {
            true => self.boot_once(),
            false => Err(error),
        })
    }

    fn boot_once(&self) -> Result<Vm> {
        let kernel = self.kernel.as_ref().context("a machine needs a kernel")?;
        // In memory: nothing is left behind, however this ends.
        let disk = rustix::fs::memfd_create("initramfs", MemfdFlags::CLOEXEC);
        let disk = File::from(disk.context("no memory for an initial RAM disk")?);
        self.write_disk(kernel, &disk, &self.files)?;

        // Panics end the machine; the console says little besides.
        let command_line = format!("console={} panic=-1 loglevel=4{}", self.console, self.command_line);
        let qemu = self.qemu.clone().virtio_port(agent::PORT).kernel(kernel.image()).initrd_file(disk);
        let mut qemu = qemu.command_line(&command_line).spawn()?;
        let mut agent = Agent(qemu.take_port(agent::PORT).context("the agent's port is taken")?);
        let up = match agent.ready(self.patience) {
            Ok(release) if release != kernel.release() => Err(anyhow!("Linux {release} is up")),
            other => other,
        };
        if let Err(error) = up {
            qemu.end();
            return Err(explain(&qemu, error, format_args!("booting Linux {}", kernel.release())));
        }
        Ok(Vm { qemu, agent, patience: self.patience })
    }
}

/// What Linux says when it dies of QEMU's emulation of several CPUs: it rewrites its code at boot while other CPUs run it, and one
/// of them met the breakpoint that Linux leaves there meanwhile, when it was gone already.
const STALE_BREAKPOINT: &str = "Oops: int3";

/// An error with what the console said last.
fn explain(qemu: &Qemu, error: anyhow::Error, what: impl Display) -> anyhow::Error {
    anyhow!("{what}: {error:#}\n{}", qemu.console().tail())
}

/// A Linux machine that runs. Dropping it turns it off.
pub struct Vm {
    qemu: Qemu,
    agent: Agent,
    patience: Duration,
}

impl Vm {
    /// A machine to be: 1 GiB, one CPU, nothing else.
    pub fn builder() -> VmBuilder {
        VmBuilder {
            qemu: pagefold_qemu::QemuBuilder::new(),
            kernel: None,
            console: "ttyS0",
            busybox: initramfs::BUSYBOX.into(),
            command_line: String::new(),
            files: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// The QEMU that it runs in.
    pub fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// The machine from outside.
    pub fn qmp(&mut self) -> &mut Qmp {
        self.qemu.qmp()
    }

    /// Runs a command with the guest's shell, as root; returns what it prints.
    ///
    /// # Errors
    /// The command fails; or, which ends the machine, it does not end in time or the guest breaks down. With the
    /// console's last lines.
    pub fn run(&mut self, command: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run_bytes(command)?).into_owned())
    }

    /// Waits until the guest is up again, after it was rebooted.
    ///
    /// # Errors
    /// It does not come up in time; with the console's last lines.
    pub fn wait_for_boot(&mut self) -> Result<()> {
        let up = self.agent.ready(self.patience);
        up.map_err(|error| explain(&self.qemu, error, "booting again"))?;
        Ok(())
    }

    /// Has the guest's shell do something that it does not come back from, such as a reboot.
    ///
    /// # Errors
    /// The guest takes no commands any more.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        self.agent.begin(command)
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
            explain(&self.qemu, error, format_args!("running '{command}'"))
        })?;
        if status == 0 {
            return Ok(stdout);
        }
        let said = [stdout, stderr].concat();
        let error = anyhow!("exit code {status}: {}", String::from_utf8_lossy(&said).trim());
        Err(explain(&self.qemu, error, format_args!("running '{command}'")))
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
        self.qemu.console().text()
    }
}
