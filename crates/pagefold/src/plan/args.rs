//! The arguments of `pagefold plan`.

use clap::{ArgGroup, Args, ValueEnum};

use super::kernel::KernelArgs;
use super::pool::{HugePages, parse_shape};
use crate::size::{UnitArgs, parse_bytes};
use crate::survey::SurveyArgs;

/// What would HVO, folding, memdesc, other blocks or pages save? Can this guest add 12 GiB?
///
/// Starts from this machine, a recorded one, or sizes alone (--memory), and computes what descriptors would cost under each
/// option, and what each costs in time, as it was measured. What Linux does not offer today is marked.
///
/// With --hotplug the question is whether a guest can add that much memory: each block that is added needs its descriptors
/// first, from memory that the kernel already has. With --device it is memory of a device (CXL, persistent memory, a GPU):
/// where its descriptors would lie, in RAM or on the device, and whether there is room.
///
/// With --kernel, --arch or --page-size all of that is asked of another kernel.
///
/// Exit codes: 0 fine (with --hotplug or --device: it can), 1 failure, 2 usage, 3 something that this kernel has could not be
/// read, 10 with --hotplug or --device: Linux as it is cannot.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("added").args(["hotplug", "device"])))]
#[command(after_help = "\
Examples:
  pagefold plan                                          this machine
  pagefold plan --memory 1T --hugetlb 2M:400000,1G:128   sizes alone
  pagefold plan web7.pgf --hugetlb 1G:200                a recorded machine with another pool
  pagefold plan --hotplug 12G                            can this guest add 12 GiB?
  pagefold plan --hotplug 12G --guest-memory 256M --free 188M --block 128M
  pagefold plan --device dax0.0                          this DAX device, brought online
  pagefold plan --device 512G                            a device that is not there yet
  pagefold plan --memory 1T --arch aarch64 --page-size 64K
  pagefold plan --kernel 5.15                            this machine, with Linux 5.15
")]
pub struct PlanArgs {
    #[command(flatten)]
    pub survey: SurveyArgs,

    /// No machine, only sizes: this much memory
    #[arg(
        long,
        visible_alias = "guest-memory",
        value_name = "SIZE",
        value_parser = parse_memory,
        conflicts_with_all = ["file", "sample", "root", "scan", "no_scan"],
    )]
    pub memory: Option<u64>,

    /// How much of --memory is free [default: none; with --hotplug 75 %]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "memory")]
    pub free: Option<u64>,

    /// Instead of the machine's pools of huge pages, pools of this shape (2M:1000,1G:4)
    #[arg(
        long,
        value_name = "SIZE:PAGES,...",
        value_parser = parse_shape,
        conflicts_with_all = ["hotplug", "device"],
    )]
    pub hugetlb: Option<HugePages>,

    /// Can this much memory be added?
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub hotplug: Option<u64>,

    /// Where would descriptors of a device's memory lie? A DAX device by its name, or a size
    #[arg(long, value_name = "NAME|SIZE", value_parser = parse_device, conflicts_with = "hotplug")]
    pub device: Option<DeviceArg>,

    /// The zone that added memory goes to [default: what the machine is set to, or movable]
    #[arg(long, value_enum, requires = "added")]
    pub online: Option<OnlineArg>,

    /// The node that added memory belongs to: auto_movable_numa_aware asks [default: a DAX device's own]
    #[arg(long, value_name = "N", requires = "added", conflicts_with = "memory")]
    pub node: Option<u32>,

    /// Memory block size [default: the machine's, or 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_block, requires = "added")]
    pub block: Option<u64>,

    /// Free memory that must stay [default: a sixteenth of kernel zones, at most 512M, or min_free_kbytes if that is more]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "added")]
    pub reserve: Option<u64>,

    #[command(flatten)]
    pub kernel: KernelArgs,

    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub units: UnitArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnlineArg {
    /// ZONE_MOVABLE: can be taken away again; its descriptors must lie elsewhere
    Movable,
    /// A kernel zone: the next block's descriptors may lie in it
    Kernel,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    /// A DAX device of the machine.
    Name(String),
    /// So many bytes of one that is not there.
    Size(u64),
}

fn parse_device(text: &str) -> Result<DeviceArg, String> {
    if text.starts_with("dax") {
        return Ok(DeviceArg::Name(text.to_owned()));
    }
    parse_memory(text).map(DeviceArg::Size).map_err(|error| format!("{error}; or name a device, as dax0.0"))
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes < 1 << 20 => Err("less than a megabyte".into()),
        bytes => Ok(bytes),
    }
}

fn parse_block(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    let fine = bytes.is_power_of_two() && (2 << 20..=1 << 40).contains(&bytes);
    if fine { Ok(bytes) } else { Err("a memory block is a power of two between 2M and 1T".into()) }
}
