//! The arguments of `pagefold export`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::schema::SchemaOf;
use crate::survey::SurveyArgs;

/// The report for scripts and fleets: JSON, Prometheus text, or CSV; and all pages as Parquet
///
/// The same numbers as `pagefold report`. JSON has a schema (--schema prints it) and a version in it. Prometheus text is for
/// node_exporter's textfile collector. CSV has one number a line. Parquet has the pages themselves, as runs: for fleets, and
/// for questions that come later (docs/fleet.md). With --output the file appears whole or not at all.
///
/// Exit codes: 0 fine, 1 failure, 2 usage, 3 something that this kernel has could not be read (the rest is written).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold export > host.json
  pagefold export --format prometheus --no-scan --output /var/lib/node_exporter/pagefold.prom
  pagefold export --format csv web7.pgf
  pagefold export --format parquet --output /srv/fleet/          as date=.../linux=.../TIME.parquet
  pagefold export --format parquet web7.pgf --output web7.parquet
  pagefold export --schema > report.schema.json
  pagefold export --schema plan                                   what plan --json prints
")]
pub struct ExportArgs {
    #[command(flatten)]
    pub survey: SurveyArgs,

    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Json)]
    pub format: Format,

    /// Write to FILE, readable by everyone; it is replaced in one step; '-' is stdout. Parquet: to a directory, too [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Parquet: the host's name [default: its own; of a snapshot: the file's, without .pgf]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,

    /// Print the JSON Schema of what a command prints with --json, and nothing else [default: report's]
    #[arg(
        long,
        value_name = "COMMAND",
        value_enum,
        num_args = 0..=1,
        default_missing_value = "report",
        conflicts_with_all = ["file", "sample", "root", "scan", "no_scan", "format"],
    )]
    pub schema: Option<SchemaOf>,
}

impl ExportArgs {
    /// The file or directory to write to; `None` for stdout.
    pub fn file(&self) -> Option<&Path> {
        self.output.as_deref().filter(|path| *path != Path::new("-"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Everything, as `report --json`
    Json,
    /// Gauges with few labels
    Prometheus,
    /// One number a line
    Csv,
    /// All pages, as runs that are alike (as root, or from a snapshot)
    Parquet,
}
