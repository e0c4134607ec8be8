//! The initial RAM disk: all that the guest has for a file system.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::agent;

/// Debian's static busybox (package busybox-static).
pub const BUSYBOX: &str = "/bin/busybox";

/// Writes an archive (cpio, "newc") with busybox, the agent as `/init`, modules, and the caller's files (guest path, host
/// path), all of them executable.
pub(crate) fn write(
    to: impl Write,
    busybox: &Path,
    modules: &[PathBuf],
    files: &[(String, PathBuf)],
) -> Result<()> {
    let mut archive = Archive { to, inode: 0 };
    for dir in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.add(dir, ModeFileType::Directory, &[])?;
    }
    archive.add("init", ModeFileType::Regular, agent::INIT.as_bytes())?;
    archive.add_file("bin/busybox", busybox)?;
    for (at, module) in modules.iter().enumerate() {
        // Loaded in the order of their names.
        archive.add_file(&format!("modules/{at:02}.ko"), module)?;
    }
    for (guest, host) in files {
        archive.add_file(guest.trim_start_matches('/'), host)?;
    }
    archive.end()
}

struct Archive<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let entry = Builder::new(name).ino(self.inode).nlink(1).mode(0o755).set_mode_file_type(kind);
        let mut entry = entry.write(&mut self.to, content.len() as u32);
        std::io::copy(&mut Cursor::new(content), &mut entry)?;
        entry.finish()?;
        Ok(())
    }

    fn add_file(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(name, ModeFileType::Regular, &content)
    }

    fn end(self) -> Result<()> {
        trailer(self.to)?.flush()?;
        Ok(())
    }
}
