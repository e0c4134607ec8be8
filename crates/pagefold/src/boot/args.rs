//! The command line of `pagefold boot`.

use std::path::PathBuf;

use clap::Args;
use pagefold_boot_protocol::{
    BarrierChoice, Break, DescriptorsChoice, LeftoversChoice, Options, ProtocolChoice,
};
use pagefold_engine::{Descriptors, Memdesc, Page64};
use pagefold_picture::amount::Bytes;
use pagefold_workload::WorkloadArg;

use super::arch::ArchArg;
use super::step::Wishes;
use crate::descriptors::DescriptorsArg;
use crate::size::{parse_bytes, parse_seconds};

/// Boot a small kernel on the engine in QEMU, and let its memory grow and shrink by virtio-mem
///
/// The kernel (guest/ in the sources) keeps its page metadata with the same engine as all other commands, on its own page
/// tables, with walkers on all CPUs; QEMU's own virtio-mem device is the memory that it plugs and unplugs. Each size of
/// --resize is a step; after each, the guest says what its metadata costs: by the engine's count, and as its page tables
/// have it. Everything is emulated, so it needs no rights and no virtualisation, and times compare only with each other.
///
/// Exit codes: 0 fine; 1 a promise was broken, numbers disagree, or the guest crashed or went silent (then with the
/// guest's dump); 2 usage, and machines that cannot be. A step that falls short of its size is told with the reason, and is
/// no failure. Ctrl-C ends it with the result so far and exit code 1, SIGTERM and SIGHUP with 143 and 129.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold boot                                 64 MiB of memory grow to 4 GiB, and shrink again
  pagefold boot --resize 64G --touch            1,024 times its boot memory in one request, all of it usable
  pagefold boot --device 8G --device 8G,node=1 --resize 0:4G+1:4G,0:0
                                                two devices on two nodes, resized together; then one
  pagefold boot --memory 512M --resize 4G,0 --work page-cache=1G,touch --work pinned=64K
                                                what returns of memory that is in use
  pagefold boot --resize 4G --snapshot guest.pgf --map
                                                see its pages; 'pagefold map', 'report' and 'diff' read the file
  pagefold boot --interactive                   a prompt; 'help' lists what it takes
  printf 'resize 4G\\ncycle 100\\n' | pagefold boot --interactive --json
  pagefold boot --descriptors memdesc --resize 4G,0
  pagefold boot --protocol no-grace-period --resize 256M --cycle 10000
                                                the bug: the guest traps, and says where
  pagefold boot --arch aarch64 --cpu neoverse-v1 --gic 2 --resize 4G,0 --cycle 1000
                                                on arm64, by break-before-make
")]
pub struct BootArgs {
    #[command(flatten)]
    pub machine: MachineArgs,

    #[command(flatten)]
    pub course: CourseArgs,

    #[command(flatten)]
    pub guest: GuestArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// The machine's architecture
    #[arg(long, value_enum, default_value_t = ArchArg::X86_64)]
    pub arch: ArchArg,

    /// The processors' model, as QEMU names it [default: all that QEMU can do]
    #[arg(long, value_name = "MODEL", default_value = "max", hide_default_value = true)]
    pub cpu: String,

    /// The interrupt controller's version on arm64; 2 is for up to 8 CPUs
    #[arg(long, value_name = "VERSION", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub gic: u8,

    /// Memory at boot
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_bytes)]
    pub memory: u64,

    /// CPUs
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,

    /// A virtio-mem device: its size, and the unit in which memory is plugged and its NUMA node (can be repeated: devices
    /// 0, 1, ...)
    #[arg(long = "device", value_name = "SIZE[,block=2M][,node=0]", default_value = "64G")]
    #[arg(value_parser = BootDevice::parse)]
    pub devices: Vec<BootDevice>,

    /// The QEMU to run [default: qemu-system-x86_64 or qemu-system-aarch64, wherever PATH has it]
    #[arg(long, value_name = "PROGRAM")]
    pub qemu: Option<PathBuf>,

    /// The guest's kernel [default: PAGEFOLD_GUEST, or what guest/build made or installed]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Course")]
pub struct CourseArgs {
    /// Sizes to plug, one after the other: SIZE for device 0, N:SIZE for device N, and + between those of one step
    /// [default: 4G,1G,0]
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = Wishes::parse)]
    pub resize: Vec<Wishes>,

    /// A workload, as in page-cache=1G,orders=0:0.2+9:0.8,fragmentation=0.5,touch,free=0.5,pin=0.1; they begin when the
    /// first size is reached (can be repeated)
    #[arg(long, value_name = "SPEC", value_parser = parse_work)]
    pub work: Vec<String>,

    /// After each size, take memory from all over the machine, write to it, read it back, and free it
    #[arg(long)]
    pub touch: bool,

    /// At the end, fold and unfold this many folios of 2 MiB while walkers look
    #[arg(long, value_name = "N")]
    pub cycle: Option<u64>,

    /// At the end, keep running for this long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub seconds: Option<f64>,

    /// Read commands from the terminal, or a script of them from stdin
    #[arg(long, conflicts_with_all = ["resize", "touch", "cycle", "seconds"])]
    pub interactive: bool,

    /// How often a step is retried
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retries: u32,

    /// Time limit of a step
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_seconds)]
    pub deadline: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Guest")]
pub struct GuestArgs {
    /// Walkers, spread over all CPUs [default: one of each kind, or one for each CPU]
    #[arg(long, value_name = "N")]
    pub walkers: Option<u16>,

    /// Owners that allocate, free, split and fold all the time
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub owners: u16,

    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Which rules walkers and folders follow
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Fold)]
    pub protocol: ProtocolChoice,

    /// What a descriptor is
    #[arg(long, value_enum, default_value_t = DescriptorsArg::Page)]
    pub descriptors: DescriptorsArg,

    /// How grace periods reach walkers on other CPUs [default: what suits the architecture]
    #[arg(long, value_enum)]
    pub barrier: Option<BarrierChoice>,

    /// Drive virtio-mem in big-block mode: whole memory blocks only
    #[arg(long)]
    pub big_blocks: bool,

    /// What the driver does with memory that is plugged already when it starts
    #[arg(long, value_enum, default_value_t = LeftoversChoice::Unplug)]
    pub leftovers: LeftoversChoice,

    /// Seconds without progress on a CPU that end the guest, with a dump (0: never)
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub watchdog: u16,

    /// Break something on purpose, to see that it is noticed
    #[arg(long = "break", value_enum, value_name = "WHAT", hide = true)]
    pub breaks: Option<Break>,

    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", hide = true)]
    pub append: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Record the guest's pages in a file at the end, as 'pagefold snapshot' does a machine's
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,

    /// Overwrite the file of --snapshot if it exists
    #[arg(long, requires = "snapshot")]
    pub force: bool,

    /// Show the guest's pages as a picture at the end, as 'pagefold map' does a machine's
    #[arg(long, conflicts_with = "json")]
    pub map: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// A virtio-mem device to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootDevice {
    /// Bytes it has room for.
    pub size: u64,
    /// Bytes that are plugged at once.
    pub block: u64,
    /// Its NUMA node.
    pub node: usize,
}

const GIB: u64 = 1 << 30;
/// Bytes of which memory at boot is a multiple.
pub const UNIT: u64 = 2 << 20;
/// Bytes of memory at boot that the guest needs for itself, whatever it does: its kernel, what that takes at boot, and what
/// keeps its memory map going.
const LEAST: u64 = 24 << 20;
/// Bytes more for each CPU: stacks, walkers, and frames for them.
const LEAST_FOR_CPU: u64 = 512 << 10;
/// Devices that QEMU has slots for.
const DEVICES: usize = 30;
/// Bytes that all memory may have in QEMU, as it places it: what it emulates has 40 bits of physical addresses, and the last
/// part of them is taken.
const MOST: u64 = 960 * GIB;

/// Bytes of memory at boot that a guest with so many CPUs needs.
fn least(cpus: u32) -> u64 {
    (LEAST + u64::from(cpus) * LEAST_FOR_CPU).next_multiple_of(UNIT)
}

/// Bytes of a block at least, for QEMU (`VIRTIO_MEM_MIN_BLOCK_SIZE`).
const LEAST_BLOCK: u64 = 1 << 20;
/// Nodes that QEMU can have (`MAX_NODES`).
const NODES: usize = 128;

impl BootDevice {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut spec =
            BootDevice { size: parse_bytes(parts.next().unwrap_or_default())?, block: 2 << 20, node: 0 };
        for part in parts {
            match part.split_once('=') {
                Some(("block", size)) => spec.block = parse_bytes(size)?,
                Some(("node", node)) => {
                    let number = node.parse().ok().filter(|&node| node < NODES);
                    spec.node = number.ok_or(format!("'{node}' is no node: 0 to {}", NODES - 1))?;
                }
                _ => return Err(format!("'{part}': expected block=SIZE or node=N")),
            }
        }
        if !spec.block.is_power_of_two() || spec.block < LEAST_BLOCK {
            return Err("a block is a power of two of 1M or more".into());
        }
        if spec.size == 0 || !spec.size.is_multiple_of(spec.block) {
            return Err(format!("the size must be a multiple of its block, {}", Bytes(spec.block)));
        }
        Ok(spec)
    }
}

/// A workload, as the guest will read it.
fn parse_work(text: &str) -> Result<String, String> {
    WorkloadArg::parse(text).map(|_| text.to_owned()).map_err(|mistake| mistake.to_string())
}

impl MachineArgs {
    /// Whether QEMU can make this machine and the guest come up on it. `host` is the memory that this machine has, if that
    /// is known.
    pub fn possible(&self, host: Option<u64>) -> Result<(), String> {
        self.arch.possible(self.gic, self.cpus)?;
        let memory = Bytes(self.memory);
        let least = least(self.cpus);
        if self.memory < least {
            let cpus = if self.cpus == 1 { "one CPU".into() } else { format!("{} CPUs", self.cpus) };
            return Err(format!(
                "--memory: {memory} are too little for {cpus}: give --memory {}M or more{}",
                least >> 20,
                if self.cpus > 1 && self.memory >= self::least(1) { ", or fewer --cpus" } else { "" }
            ));
        }
        if !self.memory.is_multiple_of(UNIT) {
            let below = (self.memory / UNIT * UNIT) >> 20;
            return Err(format!(
                "--memory: a multiple of 2M; the next ones are {below}M and {}M",
                below + (UNIT >> 20)
            ));
        }
        if let Some(host) = host.filter(|&host| host < self.memory) {
            return Err(format!(
                "--memory: {memory} are more than this machine has, {}; --device gives memory that takes none of this \
                 machine's before it is used",
                Bytes(host)
            ));
        }
        if self.devices.len() > DEVICES {
            let given = self.devices.len();
            return Err(format!("--device: {given} devices are too many; there is room for {DEVICES}"));
        }
        let room = |bytes: u64| bytes.checked_next_multiple_of(GIB)?.checked_add(GIB);
        let all = self.devices.iter().map(|device| room(device.size));
        let all =
            all.chain([self.memory.checked_add(GIB)]).try_fold(0u64, |sum, part| sum.checked_add(part?));
        if all.is_none_or(|all| all > MOST) {
            return Err(format!(
                "--device: the emulated machine has room for {} in all, and a GiB is lost for each device",
                Bytes(MOST)
            ));
        }
        let nodes = self.nodes();
        if nodes > 1 && self.memory / nodes < UNIT {
            return Err(format!(
                "--memory: {memory} are too little for {nodes} nodes: give --memory {}M or more, or lower nodes to \
                 --device",
                (nodes * UNIT) >> 20
            ));
        }
        Ok(())
    }

    /// How many NUMA nodes there are: as many as devices name.
    pub fn nodes(&self) -> u64 {
        self.devices.iter().map(|device| device.node as u64 + 1).max().unwrap_or(1)
    }

    /// Whether these sizes are sizes of these devices.
    pub fn check(&self, wishes: &Wishes) -> Result<(), String> {
        for &(number, bytes) in &wishes.0 {
            let Some(device) = self.devices.get(number) else {
                return Err(format!("there is no device {number}; --device makes them, from 0 on"));
            };
            if bytes > device.size {
                return Err(format!(
                    "device {number} has room for {}, not for {}",
                    Bytes(device.size),
                    Bytes(bytes)
                ));
            }
            if !bytes.is_multiple_of(device.block) {
                return Err(format!("device {number} is plugged in units of {}", Bytes(device.block)));
            }
        }
        Ok(())
    }
}

impl CourseArgs {
    /// Whether something else than a size was asked for.
    pub fn is_otherwise_given(&self) -> bool {
        self.touch || self.cycle.is_some() || self.seconds.is_some()
    }
}

impl GuestArgs {
    /// The protocol, as the command line spells it.
    pub fn protocol_name(&self) -> &'static str {
        self.protocol.word()
    }

    /// What a descriptor is, as the command line spells it.
    pub fn descriptors_name(&self) -> &'static str {
        match self.descriptors {
            DescriptorsArg::Page => Page64::NAME,
            DescriptorsArg::Memdesc => Memdesc::NAME,
        }
    }

    /// The kernel's command line.
    pub fn command_line(&self, work: &[String]) -> String {
        let options = Options {
            protocol: self.protocol,
            descriptors: match self.descriptors {
                DescriptorsArg::Page => DescriptorsChoice::Page,
                DescriptorsArg::Memdesc => DescriptorsChoice::Memdesc,
            },
            barrier: self.barrier,
            walkers: self.walkers,
            owners: self.owners,
            seed: self.seed,
            work: work.to_vec(),
            leftovers: self.leftovers,
            big_blocks: self.big_blocks,
            watchdog: self.watchdog,
            breaks: self.breaks,
        };
        let mut line = options.to_string();
        if let Some(more) = &self.append {
            line.push(' ');
            line.push_str(more);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_or_refused() {
        let spec = |size, block, node| Ok(BootDevice { size, block, node });
        assert_eq!(BootDevice::parse("64G"), spec(64 << 30, 2 << 20, 0));
        assert_eq!(BootDevice::parse("1G,block=4M,node=3"), spec(1 << 30, 4 << 20, 3));
        assert_eq!(BootDevice::parse("1G,node=1,block=1M"), spec(1 << 30, 1 << 20, 1));
        for text in
            ["", "0", "1G,", "1G,block=3M", "1G,block=512K", "3M", "1G,node=128", "1G,node=-1", "1G,size=1G"]
        {
            assert!(BootDevice::parse(text).is_err(), "{text}");
        }
    }
}
