//! The file behind the region.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pagefold_virtio_mem_device::{Memfd, Pages};
use rustix::fs::{FileType, FlockOperation, flock, fstat};

/// `--memory` for a file without a name.
const MEMFD: &str = "memfd";

/// A file that was made for a device that does not run yet: it goes, unless it does.
#[derive(Default)]
pub struct NewFile(Option<PathBuf>);

impl NewFile {
    /// The device runs: its memory stays when it ends.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The error that ends the device is the one to print. A file that stays is empty, or of a size that was asked for.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens the memory of a region of `size` bytes, or makes it; no other device has it. Says where a VMM finds it.
///
/// # Errors
/// It is no file, has another size, is another device's, or the system refuses.
pub fn open(path: &Path, size: u64) -> Result<(Memfd, NewFile)> {
    if path.as_os_str() == MEMFD {
        let memory = Memfd::new(size, Pages::Normal)?;
        let (process, file) = (std::process::id(), memory.file().as_raw_fd());
        crate::stderr::say(format_args!("the device's memory is /proc/{process}/fd/{file}"));
        return Ok((memory, NewFile::default()));
    }
    let name = path.display();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let made = options.clone().create_new(true).open(path);
    let new = NewFile(made.is_ok().then(|| path.to_owned()));
    let file = match made {
        // A link that leads nowhere is there, and what it leads to is made.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            options.create(true).truncate(false).open(path)
        }
        made => made,
    };
    let file = file.with_context(|| format!("cannot open {name}"))?;
    let stat = fstat(&file).with_context(|| format!("cannot look at {name}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!("{name} is not a regular file: the region's memory is a file on tmpfs or hugetlbfs");
    }
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{name} is in use: another device has it; give each device a file of its own");
    }
    match stat.st_size as u64 {
        0 => file.set_len(size).with_context(|| format!("cannot make {name} {size} bytes long"))?,
        is if is == size => {}
        is => bail!("{name} has {is} bytes, the region has {size}: name another file, or remove this one"),
    }
    let memory =
        Memfd::from_file(file, size).with_context(|| format!("{name} cannot be a region's memory"))?;
    Ok((memory, new))
}
