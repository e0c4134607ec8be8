//! The arguments of `pagefold map`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::picture::PictureArgs;
use crate::size::{UnitArgs, parse_pages};

/// Show physical memory as a picture: what its pages are used for, or what folding leaves of their descriptors
///
/// Reads this machine (as root; otherwise the built-in sample), or a file recorded with `pagefold snapshot`. The size of
/// a cell follows from the picture's; holes are shortened. On a terminal each character shows two cells in colour, or one as
/// a letter where there are no colours (NO_COLOR). --svg and --png write files instead.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold map                            this machine (as root), or the sample
  pagefold map web7.pgf                   a recorded machine
  pagefold map web7.pgf --by folding      what folding leaves of its descriptors
  pagefold map --layout hilbert --svg map.svg --png map.png
  pagefold map --sample --memory 1T       the sample, repeated until it has 1 TiB
")]
pub struct MapArgs {
    /// A recorded machine: a snapshot, what page-types -l prints, or a directory with proc/kpageflags and
    /// proc/kpagecount
    #[arg(value_name = "FILE", conflicts_with = "sample")]
    pub file: Option<PathBuf>,

    /// Show the built-in sample, recorded from a real machine
    #[arg(long)]
    pub sample: bool,

    /// Repeat the machine's layout until it has this much memory (512M, 1T)
    #[arg(long, value_name = "SIZE", value_parser = parse_pages)]
    pub memory: Option<u64>,

    /// What the colours stand for
    #[arg(long, value_enum, default_value_t = By::State)]
    pub by: By,

    #[command(flatten)]
    pub picture: PictureArgs,

    /// Print cells and sums as JSON
    #[arg(long, conflicts_with_all = ["svg", "png"], help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub units: UnitArgs,
}

/// What the colours stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// What pages are used for, as the kernel's flags tell
    State,
    /// What folding would leave of their descriptors (computed)
    Folding,
}
