//! `pagefold snapshot`.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use pagefold_machine::{Machine, snapshot};

use crate::args::SnapshotArgs;
use crate::size::{Bytes, Whole};
use crate::source::read_host;

pub fn run(args: &SnapshotArgs) -> Result<()> {
    let path = &args.file;
    check(path, args.force)?;
    let machine = read_host(&args.note).map_err(|error| {
        let hint = if error.is_permission() { "run as root" } else { "is /proc mounted?" };
        anyhow::Error::new(error).context(format!("cannot record this machine ({hint})"))
    })?;
    writeln!(io::stdout(), "{}", write(&machine, path)?)?;
    Ok(())
}

/// Refuses a file that exists.
pub fn check(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        bail!("{} exists; choose another name, or --force to overwrite it", path.display());
    }
    Ok(())
}

/// Writes a machine to a file. Returns what it wrote, in a line.
pub fn write(machine: &Machine, path: &Path) -> Result<String> {
    // Written beside its place and moved there whole: never half a snapshot under the name that was asked for.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = (|| -> Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&partial)?;
        let mut file = BufWriter::new(file);
        snapshot::write(machine, &mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&partial, path)?;
        Ok(())
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&partial);
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
    let (pages, runs) = (Whole(machine.pages()), Whole(machine.runs.len() as u64));
    Ok(format!("{}: {pages} pages in {runs} runs, {}", path.display(), Bytes(size)))
}
