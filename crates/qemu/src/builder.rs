//! What a machine has, and QEMU's options for it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::{Arch, GIB, NumaNode, VirtioMem};

/// A machine to be: 1 GiB and one CPU, unless told otherwise.
#[derive(Clone, Debug)]
#[must_use]
pub struct QemuBuilder {
    program: PathBuf,
    arch: Arch,
    machine: String,
    cpu: String,
    /// Whatever else QEMU is to be told.
    options: Vec<(String, String)>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    /// Instead of one with a name.
    initrd_file: Option<Arc<File>>,
    interrupt: Option<Arc<AtomicBool>>,
    command_line: String,
    /// The first one always is.
    nodes: Vec<NumaNode>,
    devices: Vec<VirtioMem>,
    dimms: u64,
    ports: Vec<Port>,
    debug_exit: bool,
    resets: bool,
    counter: Option<PathBuf>,
}

/// A port of the guest that the host has the other end of.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub name: String,
    is_serial: bool,
}

impl Default for QemuBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl QemuBuilder {
    /// A machine of 1 GiB and one CPU that boots nothing.
    pub fn new() -> Self {
        QemuBuilder {
            program: Arch::X86_64.program().into(),
            arch: Arch::X86_64,
            machine: Arch::X86_64.machine().into(),
            cpu: "max".into(),
            options: Vec::new(),
            kernel: None,
            initrd: None,
            initrd_file: None,
            interrupt: None,
            command_line: String::new(),
            nodes: vec![NumaNode { memory: GIB, cpus: 1 }],
            devices: Vec::new(),
            dimms: 0,
            ports: Vec::new(),
            debug_exit: false,
            resets: false,
            counter: None,
        }
    }

    /// The QEMU to run (`qemu-system-x86_64`, wherever `PATH` has it).
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.program = path.as_ref().to_owned();
        self
    }

    /// The architecture (a PC), with its QEMU and its machine, unless others are named after this.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.program = arch.program().into();
        arch.machine().clone_into(&mut self.machine);
        self.arch = arch;
        self
    }

    /// The processors' model (`max`: all that QEMU can do).
    pub fn cpu(mut self, model: &str) -> Self {
        model.clone_into(&mut self.cpu);
        self
    }

    /// The machine's type, and its properties (`q35`): what QEMU's `-machine` takes.
    pub fn machine(mut self, words: &str) -> Self {
        words.clone_into(&mut self.machine);
        self
    }

    /// Anything else that QEMU takes, such as a device of another kind: an option and its value.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What to boot: a Linux image, or an ELF file with a PVH or multiboot entry.
    pub fn kernel(mut self, path: impl AsRef<Path>) -> Self {
        self.kernel = Some(path.as_ref().to_owned());
        self
    }

    /// The kernel's initial RAM disk, or its multiboot modules.
    pub fn initrd(mut self, path: impl AsRef<Path>) -> Self {
        self.initrd = Some(path.as_ref().to_owned());
        self
    }

    /// As [`initrd`](Self::initrd), from a file that is open and needs no name: nothing of it is left behind in the file
    /// system, however this process ends.
    pub fn initrd_file(mut self, file: File) -> Self {
        self.initrd_file = Some(Arc::new(file));
        self
    }

    /// Waiting for QEMU's answers ends with an error when somebody sets this.
    pub fn interrupted_by(mut self, flag: Arc<AtomicBool>) -> Self {
        self.interrupt = Some(flag);
        self
    }

    /// The kernel's command line.
    pub fn command_line(mut self, words: &str) -> Self {
        words.clone_into(&mut self.command_line);
        self
    }

    /// Memory at boot of the first node, in bytes (1 GiB).
    pub fn memory(mut self, bytes: u64) -> Self {
        self.nodes[0].memory = bytes;
        self
    }

    /// CPUs of the first node (1).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.nodes[0].cpus = cpus;
        self
    }

    /// One more NUMA node.
    pub fn node(mut self, node: NumaNode) -> Self {
        self.nodes.push(node);
        self
    }

    /// One more virtio-mem device.
    pub fn virtio_mem(mut self, device: VirtioMem) -> Self {
        self.devices.push(device);
        self
    }

    /// Room for DIMMs of this many bytes in all ([`Qmp::plug_dimm`](crate::Qmp::plug_dimm); none).
    pub fn dimms(mut self, bytes: u64) -> Self {
        self.dimms = bytes;
        self
    }

    /// One more serial port: of a PC the first is COM2, since COM1 is the console, and it has four; elsewhere it is one on PCI.
    /// The host's end is [`Qemu::take_port`](crate::Qemu::take_port) of this name.
    pub fn serial(mut self, name: &str) -> Self {
        self.ports.push(Port { name: name.to_owned(), is_serial: true });
        self
    }

    /// A port of a virtio console with this name, for guests with a driver for one.
    pub fn virtio_port(mut self, name: &str) -> Self {
        self.ports.push(Port { name: name.to_owned(), is_serial: false });
        self
    }

    /// The guest can end QEMU with a number ([`Exit::Guest`](crate::Exit::Guest)): a PC by a device at port 0xf4, arm64 by
    /// semihosting, with the exit code that the device would make of the number.
    pub fn debug_exit(mut self) -> Self {
        self.debug_exit = true;
        self
    }

    /// A guest that resets starts again. Without this a reset ends QEMU.
    pub fn resets(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Counts what the guest executes ([`Qemu::executed`](crate::Qemu::executed)) with this plugin: the shared object that
    /// this crate's example `insn_count` is built to. The guest runs slower by it.
    pub fn count_instructions(mut self, plugin: impl AsRef<Path>) -> Self {
        self.counter = Some(plugin.as_ref().to_owned());
        self
    }

    pub(crate) fn program_path(&self) -> &Path {
        &self.program
    }

    pub(crate) fn interrupt(&self) -> Option<Arc<AtomicBool>> {
        self.interrupt.clone()
    }

    /// Files of the caller's that QEMU inherits.
    pub(crate) fn files(&self) -> Option<RawFd> {
        self.initrd_file.as_ref().map(|file| file.as_raw_fd())
    }

    pub(crate) fn ports(&self) -> &[Port] {
        &self.ports
    }

    pub(crate) fn counts_instructions(&self) -> bool {
        self.counter.is_some()
    }

    /// CPUs of all nodes.
    pub(crate) fn all_cpus(&self) -> u32 {
        self.nodes.iter().map(|node| node.cpus).sum()
    }

    /// QEMU with all options; the sockets are its ends of QMP's and the ports' streams, and the file is for counters.
    pub(crate) fn to_command(&self, qmp: &OwnedFd, ports: &[OwnedFd], counters: Option<&File>) -> Command {
        let mut command = Command::new(&self.program);
        command.args([
            "-machine",
            &self.machine,
            "-accel",
            "tcg",
            "-cpu",
            &self.cpu,
            "-no-user-config",
            "-nodefaults",
            // Nothing runs before QEMU has greeted: a machine that ends at once ends as any other.
            "-S",
        ]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.args(["-chardev", &format!("socket,id=qmp,fd={}", qmp.as_raw_fd())]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        for (flag, file) in [("-kernel", &self.kernel), ("-initrd", &self.initrd)] {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
        if let Some(file) = self.files() {
            command.arg("-initrd").arg(format!("/proc/self/fd/{file}"));
        }
        if !self.command_line.is_empty() {
            command.args(["-append", &self.command_line]);
        }
        if !self.resets {
            command.arg("-no-reboot");
        }
        match self.arch {
            Arch::X86_64 if self.debug_exit => {
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
            }
            Arch::Aarch64 if self.debug_exit => {
                command.arg("-semihosting");
            }
            _ => {}
        }
        if let (Some(plugin), Some(counters)) = (&self.counter, counters) {
            let mut plugin = plugin.as_os_str().to_owned();
            plugin.push(format!(",counters=/proc/self/fd/{}", counters.as_raw_fd()));
            command.arg("-plugin").arg(plugin);
        }
        self.add_ports(&mut command, ports);
        self.add_memory(&mut command);
        for (name, value) in &self.options {
            command.args([name, value]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn add_ports(&self, command: &mut Command, sockets: &[OwnedFd]) {
        if self.ports.iter().any(|port| !port.is_serial) {
            command.args(["-device", "virtio-serial-pci"]);
        }
        for (at, (port, socket)) in self.ports.iter().zip(sockets).enumerate() {
            command.args(["-chardev", &format!("socket,id=port{at},fd={}", socket.as_raw_fd())]);
            match (port.is_serial, self.arch) {
                (true, Arch::X86_64) => command.args(["-serial", &format!("chardev:port{at}")]),
                (true, Arch::Aarch64) => command.args(["-device", &format!("pci-serial,chardev=port{at}")]),
                (false, _) => {
                    let name = &port.name;
                    command.args(["-device", &format!("virtserialport,chardev=port{at},name={name}")])
                }
            };
        }
    }

    fn add_memory(&self, command: &mut Command) {
        let memory: u64 = self.nodes.iter().map(|node| node.memory).sum();
        // Each device and DIMM starts at a whole GiB at worst.
        let room = |bytes: u64| bytes.next_multiple_of(GIB) + GIB;
        let devices: u64 = self.devices.iter().map(|device| room(device.size)).sum();
        let most = memory + devices + room(self.dimms);
        command.args(["-smp", &self.all_cpus().to_string()]);
        // A bare number would mean MiB.
        command.args(["-m", &format!("{memory}B,slots=8,maxmem={most}")]);
        if self.nodes.len() > 1 {
            let mut cpu = 0;
            for (at, node) in self.nodes.iter().enumerate() {
                let mut option = format!("node,nodeid={at}");
                if node.memory > 0 {
                    let size = node.memory;
                    command.args(["-object", &format!("memory-backend-ram,id=node{at}-memory,size={size}")]);
                    option += &format!(",memdev=node{at}-memory");
                }
                if node.cpus > 0 {
                    option += &format!(",cpus={cpu}-{}", cpu + node.cpus - 1);
                }
                cpu += node.cpus;
                command.args(["-numa", &option]);
            }
        }
        for (at, VirtioMem { size, block, node, requested }) in self.devices.iter().enumerate() {
            // The host gives memory when the guest touches it, and reserves none before.
            command.args([
                "-object",
                &format!("memory-backend-ram,id=vmem{at}-memory,size={size},reserve=off,prealloc=off"),
            ]);
            let mut option = format!("virtio-mem-pci,id=vmem{at},memdev=vmem{at}-memory,block-size={block}");
            option += &format!(",requested-size={requested},node={node},prealloc=off");
            command.args(["-device", &option]);
        }
    }
}
