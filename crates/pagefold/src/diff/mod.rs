//! `pagefold diff`: what became of pages between two snapshots.

mod change;
mod compare;
mod model;
mod print;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use pagefold_machine::Machine;
use pagefold_picture::Grid;
use pagefold_picture::{Piece, Subject};

use self::compare::Compared;
pub use self::model::DiffReport;
use crate::deliver;
use crate::map::zone_spans;
use crate::picture::PAPER;
use crate::picture::PictureArgs;
use crate::size::UnitArgs;
use crate::source::{Found, Source, read_host};

/// Compare two snapshots: what pages were used for, and what they became
///
/// A is earlier, B later; without B, this machine as it is now (as root). Pages are compared by number, so the two should
/// be of one machine; where only one has memory, the other says "not there". Map counts are not compared.
///
/// Exit codes: 0 when both could be read, whether or not they differ (two moments of a running machine always do), 1
/// failure, 2 usage. With --exit-code as diff(1): 0 no page differs, 1 some do, 2 trouble.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold diff before.pgf after.pgf
  pagefold diff before.pgf                    before, and this machine now
  pagefold diff before.pgf after.pgf --map    the table, and where it happened
  pagefold diff before.pgf after.pgf --svg diff.svg
  pagefold diff --exit-code a.pgf b.pgf > /dev/null || echo they differ
")]
pub struct DiffArgs {
    /// The earlier snapshot, or what page-types -l printed
    #[arg(value_name = "A")]
    pub a: PathBuf,

    /// The later snapshot [default: this machine, as root]
    #[arg(value_name = "B")]
    pub b: Option<PathBuf>,

    /// Also show where pages changed
    #[arg(long, conflicts_with = "json")]
    pub map: bool,

    #[command(flatten)]
    pub picture: PictureArgs,

    /// Print the comparison as JSON
    #[arg(long, conflicts_with_all = ["svg", "png"], help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub units: UnitArgs,

    /// Exit with 1 if any page differs, and with 2 in case of trouble
    #[arg(long)]
    pub exit_code: bool,
}

pub fn run(args: &DiffArgs) -> Result<ExitCode> {
    let done = compare(args);
    match (done, args.exit_code) {
        (Ok(_), false) | (Ok(false), true) => Ok(ExitCode::SUCCESS),
        (Ok(true), true) => Ok(ExitCode::from(1)),
        (Err(error), true) => {
            crate::stderr::say(format_args!("{error:#}"));
            Ok(ExitCode::from(2))
        }
        (Err(error), false) => Err(error),
    }
}

/// Returns whether any page differs.
fn compare(args: &DiffArgs) -> Result<bool> {
    // That a picture has no place is said before anything is read.
    let output = args.picture.files()?;
    let a = Source::File(&args.a).read()?;
    let b = match &args.b {
        Some(path) => Source::File(path).read()?,
        None => Found {
            machine: read_host("").context("cannot read this machine as B (run as root, or name a file)")?,
            origin: "this host".into(),
        },
    };
    let units = args.units.units();
    let page_bytes = page_bytes(&a, &b)?;
    let compared = Compared::of(&a.machine, &b.machine);
    let report = DiffReport::new(&a, &b, page_bytes, &compared);
    let pieces = |visit: &mut dyn FnMut(Piece)| {
        compare::changes(&a.machine, &b.machine).for_each(|change| {
            visit(Piece { start: change.start, pages: change.pages, category: change::category(&change) });
        });
    };
    let subject = Subject {
        title: format!("From {} to {}", name(&a.origin), name(&b.origin)),
        notes: vec![
            report.a.line("A", units),
            report.b.line("B", units),
            "Colours: what became of pages, computed from the flags of both.".into(),
        ],
        memory: union(&a.machine, &b.machine),
        zones: zone_spans(if b.machine.header.zones.is_empty() {
            &a.machine.header
        } else {
            &b.machine.header
        }),
        page_bytes,
        units,
        palette: &change::PALETTE,
        extra: None,
        repeated: None,
        pieces: &pieces,
    };
    let order = args.picture.order();
    let mut stdout = deliver::stdout();
    if args.json {
        deliver::json(&report, &mut stdout)?;
    } else if !output.is_stdout() {
        print::print(&mut stdout, &report, units)?;
        if args.map {
            let terminal = args.picture.terminal();
            writeln!(stdout)?;
            let grid = Grid::new(&subject, order, terminal.size(order));
            terminal.write(&mut stdout, &subject, &grid)?;
        }
    }
    drop(stdout);
    if output.is_file() {
        output.write(&subject, &Grid::new(&subject, order, PAPER))?;
    }
    Ok(report.changed_pages + report.regrouped_pages > 0)
}

/// The last part of a path.
fn name(origin: &str) -> &str {
    Path::new(origin).file_name().and_then(|name| name.to_str()).unwrap_or(origin)
}

fn page_bytes(a: &Found, b: &Found) -> Result<u64> {
    let (of_a, of_b) = (a.machine.header.page_bytes(), b.machine.header.page_bytes());
    if of_a != of_b {
        bail!("{} has pages of {of_a} bytes and {} of {of_b}: they cannot be compared", a.origin, b.origin);
    }
    Ok(of_a)
}

/// Where either has memory.
fn union(a: &Machine, b: &Machine) -> Vec<Range<u64>> {
    let ranges = a.header.memory.iter().chain(&b.header.memory);
    let mut ranges: Vec<_> = ranges.map(|range| range.start..range.end).collect();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    ranges
}
