//! The arguments of `pagefold replay`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::descriptors::DescriptorsArg;
use crate::rcu::RcuArg;
use crate::size::{parse_pages, parse_seconds};

/// Load a real machine's pages into the engine, fold what can be folded, and use them
///
/// Reads where this machine's memory is and what every page is used for (as root; otherwise a sample that was recorded
/// from a real machine is used). All descriptors are made, as Linux has them, and then folded while walkers look
/// at them. Then owners allocate, free, split, fold and unfold for a while. What is left is measured by the system and
/// compared with the engine's own count.
///
/// Exit code 1 if a promise was broken, if the system and the engine disagree by more than 1 %, or if the protocol is wrong
/// (writable-tails).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold replay                             this machine (as root), or the sample
  pagefold replay --snapshot web7.pgf         a recorded machine
  pagefold replay --sample --memory 1T        the sample, repeated until it has 1 TiB
  pagefold replay --memory 1P --all-free      a petabyte of free memory
  pagefold replay --protocol no-grace-period  see the bug happen
  pagefold replay --descriptors memdesc       a word of 8 bytes a page, an object a folio
")]
pub struct ReplayArgs {
    /// Replay a recorded machine: a snapshot, what page-types -l prints, or a directory with proc/kpageflags and
    /// proc/kpagecount
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub snapshot: Option<PathBuf>,

    /// Replay the built-in sample, recorded from a real machine
    #[arg(long)]
    pub sample: bool,

    /// Repeat the machine's layout until it has this much memory (512M, 1T, 1P)
    #[arg(long, value_name = "SIZE", value_parser = parse_pages)]
    pub memory: Option<u64>,

    /// Replay an empty machine instead: --memory of free memory, without holes
    #[arg(long, requires = "memory", conflicts_with_all = ["sample", "snapshot"])]
    pub all_free: bool,

    /// How long owners and walkers run
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub seconds: f64,

    /// What a descriptor is
    #[arg(long, value_enum, default_value_t = DescriptorsArg::Page)]
    pub descriptors: DescriptorsArg,

    /// Which rules walkers and folders follow
    #[arg(long, value_enum, default_value_t = ProtocolArg::Fold)]
    pub protocol: ProtocolArg,

    /// How grace periods reach the walkers
    #[arg(long, value_enum, default_value_t = RcuArg::Auto)]
    pub rcu: RcuArg,

    /// Trap every write to a folded page and name the walker (userfaultfd)
    #[arg(long)]
    pub strict: bool,

    /// Walker threads [default: one of each kind, or one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub walkers: Option<u16>,

    /// Owner threads [default: half the CPUs, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub owners: Option<u16>,

    /// Take the CPU from a walker between its look at a refcount and its swap, once in N looks (0: never)
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub preempt: u32,

    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// Publish the class, wait for a grace period, remap: the one to use
    Fold,
    /// Linux 6.11: RCU and a refcount check, no class table; does not find folded tails
    RefcountFirst,
    /// The bug: remap without waiting
    NoGracePeriod,
    /// The rejected fix, as wrong as the bug: remap without waiting, and let stray writes be
    WritableTails,
}
