//! The command line.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::size::{parse_pages, parse_seconds};

const STYLES: Styles =
    Styles::styled().header(AnsiColor::Yellow.on_default().bold()).literal(AnsiColor::Green.on_default());

/// Page metadata that folds away.
///
/// Every page of memory costs a descriptor: 64 bytes for each 4 KiB, 16 GiB in a TiB. `pagefold` takes the pages of a
/// real machine, gives their descriptors back while walkers are looking, and measures what is left.
///
/// Exit codes: 0 fine; 1 failure; 2 usage; 3 a part of what this machine has could not be read, the rest was printed; 10 a
/// threshold was passed (report --fail-over), or the answer is no (plan --hotplug); 129 and 143 SIGHUP or SIGTERM ended a
/// long command early, with the result so far.
#[derive(Debug, Parser)]
#[command(name = "pagefold", version, styles = STYLES, max_term_width = 100, after_help = "\
Examples:
  pagefold report              what page metadata costs this machine, and where
  pagefold plan --hotplug 12G  can this guest add so much memory?
  pagefold explain             what the words mean
  pagefold map                 see what its pages are used for
  pagefold replay              fold this machine's page metadata, and see what is left
  pagefold replay --sample     the same with a machine that was recorded
  pagefold snapshot FILE       record this machine
  pagefold run                 memory that grows and shrinks, under walkers
  pagefold boot                the same in a kernel of its own, on QEMU's device
  pagefold device --help       a virtio-mem device for your own VMM
")]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Report(crate::report::ReportArgs),
    Plan(crate::plan::PlanArgs),
    Export(crate::export::ExportArgs),
    Explain(crate::explain::ExplainArgs),
    Replay(ReplayArgs),
    Map(crate::map::MapArgs),
    Diff(crate::diff::DiffArgs),
    Watch(crate::watch::WatchArgs),
    Run(crate::run::RunArgs),
    Boot(crate::boot::BootArgs),
    Device(crate::device::DeviceArgs),
    Snapshot(SnapshotArgs),
    Completions(crate::shell::CompletionsArgs),
    Man(crate::shell::ManArgs),
}

/// Load a real machine's pages into the engine, fold what can be folded, and live with them
///
/// Reads where this machine's memory is and what every page is used for (as root; otherwise a sample that was recorded
/// from a real machine is used). All descriptors are made, as Linux has them; then folded, while walkers look at them;
/// then owners allocate, free, split, fold and unfold for a while. What is left is measured from the system beside
/// our own count.
///
/// Exit code 1 if a promise was broken, if the system and the engine disagree by more than 1 %, or if the protocol is wrong
/// (writable-tails).
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagefold replay                             this machine (as root), or the sample
  pagefold replay --snapshot web7.pgf         a recorded machine
  pagefold replay --sample --memory 1T        the sample, repeated until it has 1 TiB
  pagefold replay --memory 1P --all-free      a petabyte of free memory
  pagefold replay --protocol no-grace-period  see the bug happen
")]
pub struct ReplayArgs {
    /// Replay a machine recorded with `pagefold snapshot`
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub snapshot: Option<PathBuf>,

    /// Replay the built-in sample, recorded from a real machine
    #[arg(long)]
    pub sample: bool,

    /// Repeat the machine's layout until it has this much memory (512M, 1T, 1P)
    #[arg(long, value_name = "SIZE", value_parser = parse_pages)]
    pub memory: Option<u64>,

    /// A machine of its own: --memory of it, without holes, all of it free
    #[arg(long, requires = "memory", conflicts_with_all = ["sample", "snapshot"])]
    pub all_free: bool,

    /// How long to live with the pages
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub seconds: f64,

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

/// Record this machine's memory layout and every page's state in a file
///
/// Needs root, because /proc/kpageflags does. The file holds page flags and map counts, no contents and no names; it is
/// compact, versioned and checksummed.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagefold snapshot web7.pgf
  pagefold snapshot web7.pgf --note 'web server, 256 GiB, two nodes'
  ssh web7 pagefold snapshot - | pagefold report -
")]
pub struct SnapshotArgs {
    /// Where to write it; - for standard output
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,

    /// A line about the machine, kept in the file
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub note: String,

    /// Overwrite FILE if it exists
    #[arg(long)]
    pub force: bool,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RcuArg {
    /// membarrier where the kernel has it, else fences
    Auto,
    /// membarrier(2): walkers pay nothing
    Membarrier,
    /// Sequentially consistent fences on both sides: works everywhere
    Fences,
}
