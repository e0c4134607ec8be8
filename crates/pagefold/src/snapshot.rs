//! `pagefold snapshot`.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagefold_machine::{Machine, snapshot};
use pagefold_picture::amount::{Bytes, Whole};

use crate::deliver;
use crate::exit::usage;
use crate::input::is_stdin;
use crate::place::Place;
use crate::source::read_host;

/// Record this machine's memory layout and every page's state in a file
///
/// Needs root, because /proc/kpageflags does. The file holds page flags and map counts, no contents and no names; it is
/// compact, versioned and checksummed.
#[derive(Debug, Args)]
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

pub fn run(args: &SnapshotArgs) -> Result<()> {
    let place = match is_stdin(&args.file) {
        true if std::io::stdout().is_terminal() => {
            return Err(usage(
                "a snapshot is not text: give it a file's name, or send stdout somewhere else",
            ));
        }
        true => None,
        false => Some(Place::private(&args.file, args.force)?),
    };
    let machine = read_host(&args.note).map_err(|error| {
        let hint = if error.is_permission() { "run as root" } else { "is /proc mounted?" };
        anyhow::Error::new(error).context(format!("cannot record this machine ({hint})"))
    })?;
    match place {
        Some(place) => writeln!(deliver::stdout(), "{}", write(&machine, &place)?)?,
        None => {
            snapshot::write(&machine, BufWriter::new(deliver::stdout())).context("cannot write to stdout")?
        }
    }
    Ok(())
}

/// Writes a machine to a file. Returns what it wrote, in a line.
pub fn write(machine: &Machine, place: &Place) -> Result<String> {
    let size = place.write(|to| Ok(snapshot::write(machine, to)?))?;
    let (pages, runs) = (Whole(machine.pages()), Whole(machine.runs.len() as u64));
    Ok(format!("{}: {pages} pages in {runs} runs, {}", place.path().display(), Bytes(size)))
}
