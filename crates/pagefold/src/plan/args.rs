//! The arguments of `pagefold plan`.

use clap::{Args, ValueEnum};

use super::pool::{HugePages, parse_shape};
use crate::size::{UnitArgs, parse_bytes};
use crate::survey::SurveyArgs;

/// What would HVO, folding, memdesc, other blocks or pages save? Can this guest add 12 GiB?
///
/// Starts from this machine, a recorded one, or sizes alone (--memory), and computes what descriptors would cost under each
/// option, and what each costs in time, as it was measured. What Linux does not offer today is marked.
///
/// With --hotplug the question is whether a guest can add so much memory: each block that is added needs its descriptors
/// first, from memory that the kernel already has.
///
/// Exit codes: 0 fine (with --hotplug: it can), 1 failure, 2 usage, 3 something that this kernel has could not be read,
/// 10 with --hotplug: Linux as it is cannot.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold plan                                          this machine
  pagefold plan --memory 1T --hugetlb 2M:400000,1G:128   sizes alone
  pagefold plan web7.pgf --hugetlb 1G:200                a recorded machine with another pool
  pagefold plan --hotplug 12G                            can this guest add 12 GiB?
  pagefold plan --hotplug 12G --guest-memory 256M --free 188M --block 128M
")]
pub struct PlanArgs {
    #[command(flatten)]
    pub survey: SurveyArgs,

    /// No machine, only sizes: so much memory
    #[arg(
        long,
        visible_alias = "guest-memory",
        value_name = "SIZE",
        value_parser = parse_memory,
        conflicts_with_all = ["file", "sample", "root", "scan", "no_scan"],
    )]
    pub memory: Option<u64>,

    /// Of --memory, so much is free [default: none; with --hotplug 75 %]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "memory")]
    pub free: Option<u64>,

    /// Instead of the machine's pools of huge pages, pools of this shape (2M:1000,1G:4)
    #[arg(long, value_name = "SIZE:PAGES,...", value_parser = parse_shape, conflicts_with = "hotplug")]
    pub hugetlb: Option<HugePages>,

    /// Can so much memory be added?
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub hotplug: Option<u64>,

    /// The zone that added memory goes to [default: what the machine is set to, or movable]
    #[arg(long, value_enum, requires = "hotplug")]
    pub online: Option<OnlineArg>,

    /// Memory block size [default: the machine's, or 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_block, requires = "hotplug")]
    pub block: Option<u64>,

    /// Free memory that must stay [default: a sixteenth of kernel zones, at most 512M, or min_free_kbytes if that is more]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "hotplug")]
    pub reserve: Option<u64>,

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

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes < 1 << 20 => Err("less than a megabyte".into()),
        bytes => Ok(bytes),
    }
}

fn parse_block(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    let fine = bytes.is_power_of_two() && (2 << 20..=1 << 40).contains(&bytes);
    if fine { Ok(bytes) } else { Err("a memory block is a power of two of at least 2M".into()) }
}
