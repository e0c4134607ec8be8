//! `pagefold export`: the report for scripts and fleets.

mod args;
mod csv;
mod fleet;
mod parquet;
mod prometheus;
mod rows;
mod schema;

use std::process::ExitCode;

use anyhow::Result;

pub use self::args::ExportArgs;
use self::args::Format;
use crate::place::Place;
use crate::report::model::Report;
use crate::{deliver, exit};

pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    if args.format == Format::Parquet {
        // Pages, not numbers about them.
        return fleet::run(args);
    }
    let place = args.file().map(Place::public).transpose()?;
    if let Some(of) = args.schema {
        deliver::to(place.as_ref(), of.text().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let write: fn(&Report) -> Result<String> = match args.format {
        Format::Json => |report| Ok(serde_json::to_string_pretty(report)? + "\n"),
        Format::Prometheus => prometheus::text,
        Format::Csv => csv::text,
        Format::Parquet => return fleet::run(args),
    };
    let report = Report::of(&args.survey.survey()?);
    let text = write(&report)?;
    deliver::to(place.as_ref(), text.as_bytes())?;
    Ok(exit::code(report.partial, false))
}
