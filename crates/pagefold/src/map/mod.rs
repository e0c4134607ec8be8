//! `pagefold map`: physical memory as a picture.

mod folding;
mod json;
mod state;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args as ClapArgs, FromArgMatches, ValueEnum};
use pagefold_machine::Header;

use crate::covered::Covered;
use crate::deliver;
use crate::picture::args::PictureArgs;
use crate::picture::grid::Grid;
use crate::picture::output::{Output, PAPER};
use crate::picture::terminal::Terminal;
use crate::picture::{Extra, Piece, Subject};
use crate::size::{UnitArgs, parse_pages};
use crate::source::{Found, Source};
use crate::tiles::Tiles;

/// Show physical memory as a picture: what its pages are used for, or what folding leaves of their descriptors
///
/// Reads this machine (as root; otherwise the built-in sample), or a file recorded with `pagefold snapshot`. A cell of the
/// picture stands for as many pages as it must; holes are made short. On the terminal half blocks show two cells, or
/// letters one where there are no colours (NO_COLOR); --svg and --png write files instead.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagefold map                            this machine (as root), or the sample
  pagefold map web7.pgf                   a recorded machine
  pagefold map web7.pgf --by folding      what folding leaves of its descriptors
  pagefold map --layout hilbert --svg map.svg --png map.png
  pagefold map --sample --memory 1T       the sample, repeated until it has 1 TiB
")]
pub struct MapArgs {
    /// A machine recorded with `pagefold snapshot`
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

pub fn run(args: &MapArgs) -> Result<ExitCode> {
    // That a picture has no place is said before memory is read.
    let output = args.picture.output()?;
    let found = match (&args.file, args.sample) {
        (Some(path), _) => Source::File(path).read(),
        (None, true) => Source::Sample.read(),
        (None, false) => Source::HostOrSample.read(),
    }?;
    show(args, &found, &output)
}

/// A machine by the usual arguments, on the terminal.
pub fn show_plainly(found: &Found) -> Result<ExitCode> {
    let command = MapArgs::augment_args(clap::Command::new("map"));
    let args = MapArgs::from_arg_matches(&command.try_get_matches_from(["map"])?)?;
    show(&args, found, &args.picture.output()?)
}

fn show(args: &MapArgs, found: &Found, output: &Output) -> Result<ExitCode> {
    let tiles = Tiles::new(&found.machine, args.memory)
        .ok_or_else(|| anyhow!("the machine has no memory, or more than page numbers can name (4 PiB)"))?;
    let covered = || Covered::new(tiles.memory(), tiles.extents());
    let by_state = |visit: &mut dyn FnMut(Piece)| state::pieces(covered(), visit);
    let mapped = Cell::new(0);
    let by_folding = |visit: &mut dyn FnMut(Piece)| {
        mapped.set(folding::pieces(covered(), visit));
    };
    let mut subject = subject(args, found, &tiles);
    subject.pieces = match args.by {
        By::State => &by_state,
        By::Folding => &by_folding,
    };
    let layout = args.picture.layout;
    let terminal = Terminal::of_stdout(args.picture.color);
    let size = if args.json || output.is_file() { PAPER } else { terminal.size(layout) };
    let grid = Grid::new(&subject, layout, size);
    subject.extra = Some(descriptors(args.by, &grid, mapped.get()));
    if args.json {
        json::write(&mut deliver::stdout(), args.by, found, &subject, &grid)?;
    } else if output.is_file() {
        output.write(&subject, &grid)?;
    } else {
        terminal.write(&mut deliver::stdout(), &subject, &grid)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn subject<'a>(args: &MapArgs, found: &'a Found, tiles: &Tiles<'_>) -> Subject<'a> {
    let header = &found.machine.header;
    let memory: Vec<_> = tiles.memory().collect();
    let page_bytes = page_bytes(header);
    let units = args.units.units();
    let bytes = units.words(tiles.pages().saturating_mul(page_bytes));
    let kernel = if header.kernel.is_empty() { String::new() } else { format!(", Linux {}", header.kernel) };
    let repeated =
        if tiles.count() > 1 { format!(", repeated {} times", tiles.count()) } else { String::new() };
    let source = match args.by {
        By::State => "Colours: what pages are used for, counted from page flags.",
        By::Folding => {
            "Colours: what folding would leave of the page descriptors, computed from page states."
        }
    };
    Subject {
        title: format!("Physical memory of {}: {bytes}{kernel}{repeated}", found.origin),
        notes: vec![header.note.clone(), source.into()],
        memory,
        // The zones of one tile say nothing about the next.
        zones: if tiles.count() > 1 { &[] } else { &header.zones },
        page_bytes,
        units,
        palette: match args.by {
            By::State => &state::PALETTE,
            By::Folding => &folding::PALETTE,
        },
        extra: None,
        pieces: &|_| {},
    }
}

/// Bytes in a page of that machine.
pub fn page_bytes(header: &Header) -> u64 {
    if header.page_size == 0 { 4096 } else { header.page_size }
}

/// What descriptors cost: of Linux, by what they describe; or what folding leaves.
fn descriptors(by: By, grid: &Grid, mapped: u64) -> Extra {
    match by {
        By::State => Extra {
            title: "descriptors (computed)",
            bytes: grid.cells.totals().iter().map(|pages| pages.saturating_mul(64)).collect(),
        },
        By::Folding => {
            let mut bytes = vec![0; grid.cells.totals().len()];
            bytes[folding::Fate::Mapped as usize] = mapped * 4096;
            Extra { title: "left of descriptors", bytes }
        }
    }
}
