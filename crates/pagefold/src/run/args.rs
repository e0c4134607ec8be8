//! The command line of `pagefold run`.

use std::path::PathBuf;

use clap::Args;

/// Memory that grows and shrinks while walkers look: a scenario, played with a real driver and device
///
/// A machine with boot memory and virtio-mem devices is made inside this process. Workloads fill its memory, the host
/// resizes the devices step by step, a driver plugs and unplugs over a real virtqueue, and walkers run on real threads
/// all the time. After every step the metadata that is left is measured from the system, beside our own count and beside
/// what Linux needs for the same state (computed). The memory of the devices is a sparse file: what is unplugged
/// goes back to the system, which is measured too.
///
/// SCENARIO is the name of one that comes with the command, or a TOML file. Exit code 1 if a promise was broken, if the
/// system and the engine disagree by more than 1 %, or if a step fell short that says `must = true`; 2 for a mistake in
/// the scenario.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold run                          the scenario 'elastic', in a few seconds
  pagefold run --list                   the scenarios that come with the command
  pagefold run terabyte                 128 MiB of boot memory grow by 1 TiB, and shrink again
  pagefold run elastic --svg run.svg    and a picture of it
  pagefold run --show numa > mine.toml  a scenario of your own: change it, then
  pagefold run mine.toml --json
")]
pub struct RunArgs {
    /// A scenario's name, or a TOML file [default: elastic]
    #[arg(value_name = "SCENARIO")]
    pub scenario: Option<String>,

    /// List the scenarios that come with the command
    #[arg(long, conflicts_with_all = ["scenario", "show", "json", "svg"])]
    pub list: bool,

    /// Print the text of a scenario that comes with the command
    #[arg(long, value_name = "NAME", conflicts_with_all = ["scenario", "json", "svg"])]
    pub show: Option<String>,

    /// Draw memory and metadata over time into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Seed of all random choices [default: the scenario's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
