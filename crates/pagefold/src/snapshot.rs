//! `pagefold snapshot`.

use std::io::{BufWriter, IsTerminal, Write};

use anyhow::{Context, Result};
use pagefold_machine::{Machine, snapshot};

use crate::args::SnapshotArgs;
use crate::deliver;
use crate::exit::usage;
use crate::input::is_stdin;
use crate::place::Place;
use crate::size::{Bytes, Whole};
use crate::source::read_host;

pub fn run(args: &SnapshotArgs) -> Result<()> {
    let place = match is_stdin(&args.file) {
        true if std::io::stdout().is_terminal() => {
            return Err(usage("a snapshot is no text: give it a file's name, or send stdout somewhere else"));
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
