//! Places in the file system for results: looked at before the work, written after it.
//!
//! A result appears whole or not at all: it is written to a file without a name, beside its place, and then takes the
//! place of what is there, if that is a regular file or nothing. Anything else (a device, a FIFO, an open file under
//! `/proc`) is written to as it is: replacing it would take it away from the system. Symbolic links stay; what they lead to
//! is replaced or written.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// Symbolic links that are followed, one after the other: as many as the kernel does.
const LINKS: usize = 40;
/// The mode of a new file, of which the umask takes away.
const NEW: u32 = 0o666;
/// The mode of a new file that everyone may read, whatever the umask is.
const PUBLIC: u32 = 0o644;
/// `O_NOCTTY`: a terminal that is written to does not become this process's own.
const NO_CONTROL: i32 = OFlags::NOCTTY.bits() as i32;

/// A place that could be written when it was looked at.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    replaces: bool,
    is_public: bool,
}

/// What a path leads to.
enum PlaceTarget {
    /// A regular file, or nothing, in a directory that exists. The path ends in no symbolic link.
    File { path: PathBuf, old: Option<std::fs::Metadata> },
    /// Something that is written to as it is.
    Stream,
}

impl Place {
    /// A place whose file everyone may read: collectors run as somebody else. One that is there is replaced.
    ///
    /// # Errors
    /// It cannot be written; the error says why.
    pub fn public(path: &Path) -> Result<Place> {
        Place { path: path.to_owned(), replaces: true, is_public: true }.checked()
    }

    /// A place with the usual permissions. A file that is there is replaced only if `replaces` is set.
    ///
    /// # Errors
    /// It cannot be written, or is taken; the error says why.
    pub fn private(path: &Path, replaces: bool) -> Result<Place> {
        Place { path: path.to_owned(), replaces, is_public: false }.checked()
    }

    /// Its name, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether it can be written, and changes nothing. Nothing is opened that somebody could notice: the reader of a
    /// FIFO would take that for a writer that has written nothing.
    fn checked(self) -> Result<Place> {
        self.look().with_context(|| self.failure())?;
        Ok(self)
    }

    fn failure(&self) -> String {
        format!("cannot write {}", self.path.display())
    }

    fn look(&self) -> Result<()> {
        let allowed = |path: &Path, access| {
            rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS).map_err(io::Error::from)
        };
        match self.target()? {
            PlaceTarget::Stream => allowed(&self.path, Access::WRITE_OK)?,
            PlaceTarget::File { path, old } => {
                if old.is_some() {
                    allowed(&path, Access::WRITE_OK)?;
                }
                let dir = parent(&path);
                match std::fs::metadata(dir) {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(_) => bail!("{} is not a directory", dir.display()),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        bail!("there is no directory {}; make it, or choose another place", dir.display())
                    }
                    Err(error) => return Err(error.into()),
                }
                // There is no surer way to know: rights, file systems that are read-only, directories of the kernel's.
                drop(
                    ScratchFile::new(dir)
                        .with_context(|| format!("no file can be made in {}", dir.display()))?,
                );
            }
        }
        Ok(())
    }

    /// What is there now.
    fn target(&self) -> Result<PlaceTarget> {
        let bytes = self.path.as_os_str().as_bytes();
        if bytes.is_empty() {
            bail!("the path has no file name");
        }
        let target = target(&self.path)?;
        let is_taken = !matches!(target, PlaceTarget::File { old: None, .. });
        if is_taken && !self.replaces {
            bail!("it exists; choose another name, or --force to overwrite it");
        }
        if bytes.ends_with(b"/") {
            bail!("this is the name of a directory, not of a file");
        }
        Ok(target)
    }

    /// Writes what `fill` writes. Returns how many bytes that were.
    ///
    /// # Errors
    /// It cannot be written, or `fill` fails: a file that was there before is as it was, and a new one is not there.
    pub fn write(&self, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
        self.put(fill).with_context(|| self.failure())
    }

    /// Writes these bytes.
    ///
    /// # Errors
    /// As of [`write`](Self::write).
    pub fn write_all(&self, bytes: &[u8]) -> Result<()> {
        self.write(|to| Ok(to.write_all(bytes)?)).map(|_| ())
    }

    fn put(&self, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
        match self.target()? {
            PlaceTarget::Stream => {
                // O_CREAT, though it is there: with it the kernel refuses FIFOs that others have put in a shared
                // directory (fs.protected_fifos).
                let mut options = File::options();
                options.write(true).create(true).truncate(false).custom_flags(NO_CONTROL).mode(NEW);
                let stream = options.open(&self.path)?;
                let written = filled(&stream, fill)?;
                match stream.sync_all() {
                    // What cannot be synchronised keeps nothing.
                    Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                    Err(error) if is_errno(&error, Errno::NOTSUP) || is_errno(&error, Errno::ROFS) => {}
                    other => other?,
                }
                Ok(written)
            }
            PlaceTarget::File { path, old } => {
                let dir = parent(&path);
                let scratch = ScratchFile::new(dir)?;
                let written = filled(scratch.file(), fill)?;
                match old.filter(|old| is_ours_to_keep(dir, old)) {
                    Some(old) => resemble(scratch.file(), &old, self.is_public)?,
                    None if self.is_public => {
                        scratch.file().set_permissions(Permissions::from_mode(PUBLIC))?;
                    }
                    None => {}
                }
                scratch.file().sync_all()?;
                scratch.appear(&path, self.replaces)?;
                Ok(written)
            }
        }
    }
}

/// What a path leads to.
fn target(path: &Path) -> Result<PlaceTarget> {
    let open =
        |path: &Path, flags| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty());
    // The kernel may refuse to follow a link that somebody else has put in a shared directory (fs.protected_symlinks).
    // It is asked first, so that following it here step by step does not get around that.
    match open(path, OFlags::empty()) {
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let there = match open(&path, OFlags::NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Ok(PlaceTarget::File { path, old: None }),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let mode = rustix::fs::fstat(&there).map_err(io::Error::from)?.st_mode;
        let is_kernels =
            || -> io::Result<bool> { Ok(KERNELS.contains(&(rustix::fs::fstatfs(&there)?.f_type as u64))) };
        match FileType::from_raw_mode(mode) {
            // A link of /proc/self/fd leads to an open file, whatever its text says.
            FileType::Symlink if is_kernels()? => return Ok(PlaceTarget::Stream),
            FileType::Symlink => {
                let to = rustix::fs::readlink(&path, Vec::new()).map_err(io::Error::from)?;
                path = parent(&path).join(OsStr::from_bytes(to.to_bytes()));
            }
            FileType::Directory => bail!("it is a directory"),
            FileType::RegularFile if is_kernels()? => return Ok(PlaceTarget::Stream),
            FileType::RegularFile => {
                let old = std::fs::symlink_metadata(&path)?;
                return Ok(PlaceTarget::File { path, old: Some(old) });
            }
            FileType::Socket => bail!("it is a socket, which only its owner can open"),
            _ => return Ok(PlaceTarget::Stream),
        }
    }
    Err(anyhow!("too many symbolic links"))
}

/// Whether two paths lead to one file, which need not be there yet.
pub fn is_one_file(one: &Path, other: &Path) -> bool {
    let file = |path| match target(path).ok()? {
        PlaceTarget::File { path, .. } => {
            Some((parent(&path).canonicalize().ok()?, path.file_name()?.to_owned()))
        }
        PlaceTarget::Stream => None,
    };
    file(one).is_some_and(|one| file(other) == Some(one))
}

/// File systems that are the kernel's own: what is regular there is no file that could be replaced.
const KERNELS: [u64; 2] = [PROC_SUPER_MAGIC, SYSFS_MAGIC];
/// Linux, `include/uapi/linux/magic.h`.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;

/// The directory that a path is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Fills a file.
fn filled(file: &File, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
    let mut to = CountedWriter { to: BufWriter::with_capacity(1 << 16, file), bytes: 0 };
    fill(&mut to)?;
    to.flush()?;
    Ok(to.bytes)
}

/// Counts what it passes on.
struct CountedWriter<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for CountedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

/// Whether the mode and the owner of a file that is replaced are to be kept. In a directory where everyone may make files
/// it may be another user's, put there to read what comes.
fn is_ours_to_keep(dir: &Path, old: &std::fs::Metadata) -> bool {
    const SHARED: u32 = 0o1002;
    let is_shared = std::fs::metadata(dir).is_ok_and(|dir| dir.mode() & SHARED == SHARED);
    !is_shared || old.uid() == rustix::process::geteuid().as_raw()
}

/// Gives a file the mode and, as far as this process may, the owner and the group of the one that it replaces. Everyone may
/// read it if it is public.
fn resemble(file: &File, old: &std::fs::Metadata, is_public: bool) -> io::Result<()> {
    let new = file.metadata()?;
    let owner = (old.uid() != new.uid()).then_some(old.uid());
    let group = (old.gid() != new.gid()).then_some(old.gid());
    if owner.is_some() || group.is_some() {
        use std::os::unix::fs::fchown;
        // Without the right to give files away, the group alone may still work; without either it is this user's file,
        // as any that this user makes.
        let given = fchown(file, owner, group).or_else(|_| fchown(file, None, group));
        match given {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    let readable = if is_public { PUBLIC & 0o444 } else { 0 };
    file.set_permissions(Permissions::from_mode(old.mode() & 0o777 | readable))
}

/// A file that has no name yet, or one that is not known elsewhere. It is gone when it is dropped, and the first kind also when this
/// process is killed.
enum ScratchFile {
    Unnamed(File),
    Named(NamedTempFile),
}

impl ScratchFile {
    fn new(dir: &Path) -> io::Result<ScratchFile> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let unnamed = rustix::fs::open(dir, flags, Mode::from_raw_mode(NEW));
        // Its name is given by way of /proc.
        let unnamed = unnamed.and_then(|file| match Path::new("/proc/self/fd").is_dir() {
            true => Ok(file),
            false => Err(Errno::NOTSUP),
        });
        unnamed.map(|file| ScratchFile::Unnamed(file.into())).or_else(|error| {
            // Not every file system has files without a name. Where there can be none at all, the first error says why.
            let named = builder().permissions(Permissions::from_mode(NEW)).tempfile_in(dir);
            named.map(ScratchFile::Named).map_err(|_| error.into())
        })
    }

    fn file(&self) -> &File {
        match self {
            ScratchFile::Unnamed(file) => file,
            ScratchFile::Named(file) => file.as_file(),
        }
    }

    /// Takes the place of what is at `path`; of nothing, unless it `replaces`.
    fn appear(self, path: &Path, replaces: bool) -> io::Result<()> {
        let named = match self {
            ScratchFile::Named(named) => named.into_temp_path(),
            ScratchFile::Unnamed(file) => {
                let open = format!("/proc/self/fd/{}", file.as_raw_fd());
                let link = |path: &Path| -> io::Result<()> {
                    Ok(rustix::fs::linkat(CWD, &*open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
                };
                match link(path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists && replaces => {}
                    other => return other,
                }
                // A link does not replace: for a moment the new file has a name of its own beside the old one.
                builder().make_in(parent(path), link)?.into_temp_path()
            }
        };
        match replaces {
            true => named.persist(path).map_err(|error| error.error),
            false => named.persist_noclobber(path).map_err(|error| error.error),
        }
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".pagefold-");
    builder
}
