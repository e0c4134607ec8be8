//! Results, in files and on stdout.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Writes a file that is there whole or not at all: it is written beside its place, and moved.
///
/// # Errors
/// The place cannot be written.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
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

/// Writes a file, or to stdout.
///
/// # Errors
/// The place cannot be written.
pub fn to(output: Option<&Path>, bytes: &[u8]) -> Result<()> {
    match output {
        Some(path) => file(path, bytes),
        None => Ok(io::stdout().lock().write_all(bytes)?),
    }
}

/// Writes a result as JSON, for people who look at it too.
///
/// # Errors
/// It cannot be written.
pub fn json(value: &impl Serialize, to: &mut impl Write) -> Result<()> {
    serde_json::to_writer_pretty(&mut *to, value).map_err(io::Error::from)?;
    Ok(writeln!(to)?)
}
