//! `pagefold export`: the report for scripts and fleets.

mod args;
mod csv;
mod prometheus;

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

pub use self::args::ExportArgs;
use self::args::Format;
use crate::exit;
use crate::report::model::Report;

pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    if args.schema {
        let schema = serde_json::to_string_pretty(&schemars::schema_for!(Report))?;
        deliver(args.output.as_deref(), (schema + "\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = Report::of(&args.survey.survey()?);
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Prometheus => prometheus::text(&report)?,
        Format::Csv => csv::text(&report)?,
    };
    deliver(args.output.as_deref(), text.as_bytes())?;
    Ok(exit::code(report.partial, false))
}

/// To stdout, or to a file that is there whole or not at all: it is written beside its place, and moved.
fn deliver(output: Option<&Path>, bytes: &[u8]) -> Result<()> {
    let Some(path) = output else {
        io::stdout().lock().write_all(bytes)?;
        return Ok(());
    };
    let write = || -> io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut file = tempfile::Builder::new().prefix(".pagefold-").tempfile_in(dir)?;
        file.write_all(bytes)?;
        // Collectors run as somebody else.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
