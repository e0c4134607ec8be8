//! `pagefold map`: physical memory as a picture.

mod args;
mod folding;
pub mod json;
mod state;

use std::cell::Cell;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args, FromArgMatches};
use pagefold_machine::{Extent, Header, ZoneRecord};
use pagefold_picture::Grid;
use pagefold_picture::{Extra, Piece, Repeated, Subject, ZoneSpan};

use self::args::By;
pub use self::args::MapArgs;
use crate::deliver;
use crate::picture::{PAPER, PictureFiles};
use crate::source::{Found, Source};
use crate::tiles::Tiles;

pub fn run(args: &MapArgs) -> Result<ExitCode> {
    // That a picture has no place is said before memory is read.
    let output = args.picture.files()?;
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
    show(&args, found, &args.picture.files()?)
}

fn show(args: &MapArgs, found: &Found, output: &PictureFiles) -> Result<ExitCode> {
    let tiles = Tiles::new(&found.machine, args.memory)
        .ok_or_else(|| anyhow!("the machine has no memory, or more than page numbers can name (4 PiB)"))?;
    // Map pages that stay materialised. Tiles are whole map pages, so none is another tile's too.
    let mapped = Cell::new(0);
    let visit =
        |part: &mut dyn Iterator<Item = Extent>, visit: &mut dyn FnMut(Piece), times: u64| match args.by {
            By::State => state::pieces(part, visit),
            By::Folding => mapped.set(mapped.get() + folding::pieces(part, visit) * times),
        };
    let tile = |to: &mut dyn FnMut(Piece)| visit(&mut tiles.tile(), to, tiles.whole());
    let rest = |to: &mut dyn FnMut(Piece)| visit(&mut tiles.rest(), to, 1);
    let mut subject = subject(args, found, &tiles);
    subject.repeated = Some(Repeated { pieces: &tile, span: tiles.span(), times: tiles.whole() });
    subject.pieces = &rest;
    let order = args.picture.order();
    let terminal = args.picture.terminal();
    let size = if args.json || output.is_file() { PAPER } else { terminal.size(order) };
    let grid = Grid::new(&subject, order, size);
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
    let page_bytes = header.page_bytes();
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
        zones: if tiles.count() > 1 { Vec::new() } else { zone_spans(header) },
        page_bytes,
        units,
        palette: match args.by {
            By::State => &state::PALETTE,
            By::Folding => &folding::PALETTE,
        },
        extra: None,
        repeated: None,
        pieces: &|_| {},
    }
}

/// Where its zones are.
pub fn zone_spans(header: &Header) -> Vec<ZoneSpan> {
    let span = |zone: &ZoneRecord| ZoneSpan {
        node: zone.node,
        name: zone.name.clone(),
        start: zone.start,
        pages: zone.spanned,
    };
    header.zones.iter().map(span).collect()
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
            bytes[folding::MapPageFate::Mapped as usize] = mapped * 4096;
            Extra { title: "left of descriptors", bytes }
        }
    }
}
