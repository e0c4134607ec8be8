//! The command line.

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

const STYLES: Styles =
    Styles::styled().header(AnsiColor::Yellow.on_default().bold()).literal(AnsiColor::Green.on_default());

/// Page metadata that folds away.
///
/// Every page of memory costs a descriptor: 64 bytes for each 4 KiB, 16 GiB in a TiB. `pagefold` takes the pages of a
/// real machine, gives their descriptors back while walkers are looking, and measures what is left.
///
/// Exit codes: 0 fine; 1 failure; 2 usage; 3 a part of what this machine has could not be read, the rest was printed; 10 a
/// threshold was passed (report --fail-over), or the answer is no (plan --hotplug, --device); 129 and 143 SIGHUP or SIGTERM ended a
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
    Replay(crate::replay::ReplayArgs),
    Map(crate::map::MapArgs),
    Diff(crate::diff::DiffArgs),
    Watch(crate::watch::WatchArgs),
    Run(crate::run::RunArgs),
    Boot(crate::boot::BootArgs),
    Device(crate::device::DeviceArgs),
    Snapshot(crate::snapshot::SnapshotArgs),
    Completions(crate::shell::CompletionsArgs),
    Man(crate::shell::ManArgs),
}
