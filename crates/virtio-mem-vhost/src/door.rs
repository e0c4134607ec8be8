//! One VMM's connection. Every message is looked at before the library has it: what the library would map or call blindly is
//! checked, and the back channel's descriptor, which the library keeps to itself, is kept for config changes.
//!
//! The library listens on a socket of its own, in a directory that only this process can enter; messages and descriptors are
//! passed on as they come, one by one. Doorbells and interrupts do not pass here.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::backend::Backend;
use crate::handler::Handler;
use crate::message::{Message, wrong};

/// Requests that are looked at (`docs/interop/vhost-user.rst`, "Front-end message types").
const SET_MEM_TABLE: u32 = 5;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const ADD_MEM_REG: u32 = 37;
/// The most regions of guest memory: as many as the library tells that there can be (`vhost-user-backend`, `MAX_MEM_SLOTS`),
/// which it does not see to. Each is a mapping and an open file of this process.
const MAX_REGIONS: usize = 509;
/// Protocol features: the VMM takes messages from us; it asks for the config space.
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;
/// How long the library may take to notice that its VMM is gone. It takes none, unless a VMM has made it wait for good.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves one VMM until it goes, or is refused.
///
/// # Errors
/// Why it was refused; or what the system would not give.
pub(crate) fn serve(client: &UnixStream, backend: &Backend) -> io::Result<()> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let handler = Handler::new(backend.clone(), memory.clone());
    let inside = own_dir()?;
    let path = inside.path().join("door");
    let listener = UnixListener::bind(&path)?;
    let library = UnixStream::connect(&path)?;
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), handler.clone(), memory).map_err(other)?;
    daemon.start(&mut Listener::from(listener)).map_err(other)?;
    drop(inside);

    let (answers_to, answers_from) = (client.try_clone()?, library.try_clone()?);
    let answers = thread::Builder::new().name("answers".into()).spawn(move || {
        let done = pass_on(&answers_from, &answers_to, |_| Ok(()));
        // The other direction ends too. The library as well: where nobody takes its answers it takes no messages, and what
        // waits to give it one would wait for ever.
        let _ = answers_to.shutdown(Shutdown::Both);
        let _ = answers_from.shutdown(Shutdown::Both);
        done
    })?;
    let mut watch = Watch { backend, handler: &handler, protocol: 0 };
    let asked = pass_on(client, &library, |message| watch.look_at(message));
    backend.link().back_channel = None;
    handler.close();
    // Whatever still waits for the other end does so no more.
    let _ = library.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    let _ = answers.join();
    // In a thread of its own: a doorbell that never comes may keep one of the library's busy for ever.
    let (ended, end) = std::sync::mpsc::channel();
    thread::Builder::new().name("library".into()).spawn(move || {
        let _ = ended.send(daemon.wait());
        drop(daemon);
    })?;
    match (asked, end.recv_timeout(PATIENCE)) {
        (Err(why), _) => Err(why),
        // The library has refused a message, and hung up.
        (Ok(()), Ok(Err(vhost_user_backend::Error::HandleRequest(why)))) if !is_gone(&why) => {
            Err(wrong(why.to_string()))
        }
        (Ok(()), _) => Ok(()),
    }
}

/// A directory that only this process can enter. Where there is none to be had for temporary files (a full disk, one that is
/// read-only), one in memory.
fn own_dir() -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("pagefold-");
    builder.tempdir().or_else(|why| builder.tempdir_in("/dev/shm").map_err(|_| why))
}

/// Whether the library only says that the VMM has hung up.
fn is_gone(error: &vhost::vhost_user::Error) -> bool {
    use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
    matches!(error, Disconnected | PartialMessage | SocketBroken(_))
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// Passes messages on until one end hangs up.
fn pass_on(
    from: &UnixStream,
    to: &UnixStream,
    mut look_at: impl FnMut(&Message) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let message = match Message::receive(from) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        look_at(&message)?;
        if message.send(to).is_err() {
            // It has hung up; why, is not to be seen from here.
            return Ok(());
        }
    }
}

/// What is looked at in a VMM's messages.
struct Watch<'a> {
    backend: &'a Backend,
    handler: &'a Handler,
    /// Protocol features that were agreed on.
    protocol: u64,
}

impl Watch<'_> {
    fn look_at(&mut self, message: &Message) -> io::Result<()> {
        match message.request {
            SET_PROTOCOL_FEATURES => self.protocol = message.word(0),
            // Two words (number of regions, padding) of 32 bits, then 32 bytes a region.
            SET_MEM_TABLE => {
                for (at, file) in message.fds.iter().enumerate() {
                    check_region(message, 8 + 32 * at, file)?;
                }
            }
            // A word of padding, then the region.
            ADD_MEM_REG => {
                if self.handler.regions() >= MAX_REGIONS {
                    return Err(wrong(format!("guest memory in more than {MAX_REGIONS} regions")));
                }
                for file in &message.fds {
                    check_region(message, 8, file)?;
                }
            }
            SET_BACKEND_REQ_FD if self.protocol & (BACKEND_REQ | CONFIG) == BACKEND_REQ | CONFIG => {
                if let Some(channel) = message.fds.first() {
                    if FileType::from_raw_mode(fstat(channel)?.st_mode) != FileType::Socket {
                        return Err(wrong("the back channel is not a socket".into()));
                    }
                    self.backend.link().back_channel = Some(channel.try_clone()?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a file has the memory that a region of it is to be: guest address, bytes, the VMM's address, offset in the file.
/// To map more than there is would end this process at the first access.
fn check_region(message: &Message, at: usize, file: &OwnedFd) -> io::Result<()> {
    let (addr, len, offset) = (message.word(at), message.word(at + 8), message.word(at + 24));
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong(format!("guest memory at {addr:#x} is no file")));
    }
    let has = stat.st_size as u64;
    match offset.checked_add(len) {
        Some(end) if end <= has => Ok(()),
        _ => Err(wrong(format!(
            "guest memory at {addr:#x} is to be {len:#x} bytes from {offset:#x} of a file that has {has:#x}"
        ))),
    }
}
