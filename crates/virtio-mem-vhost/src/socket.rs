//! A socket's name in the file system: taken, left behind, free, or another's by now.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A Unix socket that others can connect to. Its name goes when it is dropped, if it is still this socket's.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// What the name led to when it was made: file system and file.
    made: Option<(u64, u64)>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{} is in use: another process listens on it; end that one, or take another name", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} exists and is not a socket: take another name", .0.display())]
    NoSocket(PathBuf),
    /// The system does not give it.
    #[error("cannot create socket {}: {source}", .path.display())]
    System {
        /// Its name.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Socket {
    /// Makes the socket. One that a process left behind, where no process listens, is replaced.
    ///
    /// # Errors
    /// [`SocketError`]; whatever has the name stays.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        let path = path.as_ref().to_owned();
        let system = |source| SocketError::System { path: path.clone(), source };
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path)),
            // Asked by a socket of another kind, which does not connect to the process that listens. A device that waits for its only VMM
            // would take a connection for that, and end when it is gone.
            Ok(_) => match UnixDatagram::unbound().and_then(|probe| probe.connect(&path)) {
                Ok(()) => return Err(SocketError::InUse(path)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(&path).map_err(system)?;
                }
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PROTOTYPE) => {
                    return Err(SocketError::InUse(path));
                }
                Err(error) => return Err(system(error)),
            },
            // What cannot be looked at shows when it is made.
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(system)?;
        let made = identity(&path);
        Ok(Self { listener, path, made })
    }

    /// What accepts connections.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes its name away. One that somebody has removed, and given to another socket since, is that one's.
    pub fn remove_name(&self) {
        if self.made.is_some() && identity(&self.path) == self.made {
            // Nothing can be done about a name that stays: the next process replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove_name();
    }
}

/// File system and file that a name leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_anothers_by_now_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = Socket::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Socket::new(&path).unwrap();
        drop(first);
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn names_that_are_taken_are_refused_and_those_left_behind_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = Socket::new(&path).unwrap();
        assert!(matches!(Socket::new(&path), Err(SocketError::InUse(_))));
        socket.listener().set_nonblocking(true).unwrap();
        let knock = socket.listener().accept();
        assert_eq!(knock.unwrap_err().kind(), io::ErrorKind::WouldBlock, "asking is not connecting");
        drop(socket);
        assert!(!path.exists());
        // A process that was killed leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Socket::new(&path).unwrap());
        fs::write(&path, "").unwrap();
        let error = Socket::new(&path).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert!(path.exists());
        assert!(matches!(Socket::new(dir.path().join("a/b")), Err(SocketError::System { .. })));
    }
}
