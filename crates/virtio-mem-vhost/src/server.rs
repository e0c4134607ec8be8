//! VMMs that come and go, one at a time.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Backend;
use crate::door;
use crate::event::Event;
use crate::socket::Socket;

/// How long a server serves. Whatever it is, [`Stop`] ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until the first VMM is gone.
    FirstGone,
    /// For ever: a VMM that comes back finds the device as it was.
    Stopped,
}

/// How long a server that can take no connection waits before it tries again: 100 ms.
const FULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Why a server has ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The system would not give what a server needs.
    #[error("the socket cannot be served: {0}")]
    System(#[from] io::Error),
    /// The only VMM was refused.
    #[error("the connection was ended: {0}")]
    SentAway(String),
}

/// Serves a device on a socket.
#[derive(Debug)]
pub struct Server {
    backend: Backend,
    socket: Socket,
    stop: PipeReader,
    stopper: Stop,
}

/// Ends a server, from any thread; once is enough.
#[derive(Clone, Debug)]
pub struct Stop(Arc<PipeWriter>);

impl Stop {
    /// Ends it.
    pub fn stop(&self) {
        // Full, it was told before; without a reader, it has ended.
        let _ = (&*self.0).write(&[0]);
    }
}

impl Server {
    /// A server to be.
    ///
    /// # Errors
    /// The system gives no pipe.
    pub fn new(backend: Backend, socket: Socket) -> Result<Self, ServerError> {
        let (stop, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&writer, true).map_err(io::Error::from)?;
        Ok(Self { backend, socket, stop, stopper: Stop(Arc::new(writer)) })
    }

    /// What ends it.
    pub fn stopper(&self) -> Stop {
        self.stopper.clone()
    }

    /// Serves, one VMM at a time; another one that connects meanwhile is refused.
    ///
    /// # Errors
    /// [`ServerError`]. A server that stays has no error from a VMM: what was wrong with one is an [`Event`].
    pub fn run(&mut self, until: Until) -> Result<(), ServerError> {
        // Ends of connections: a byte each.
        let (mut ended, end) = io::pipe()?;
        let end = Arc::new(end);
        let mut current: Option<(UnixStream, thread::JoinHandle<io::Result<()>>)> = None;
        // Whether this process can take no connection just now, and whether that was told.
        let (mut is_full, mut was_told) = (false, false);
        loop {
            let [stop, ended_now, knocks] = {
                let mut wait = [
                    PollFd::new(&self.stop, PollFlags::IN),
                    PollFd::new(&ended, PollFlags::IN),
                    PollFd::new(
                        self.socket.listener(),
                        if is_full { PollFlags::empty() } else { PollFlags::IN },
                    ),
                ];
                match poll(&mut wait, is_full.then_some(&FULL)) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(io::Error::from(error).into()),
                }
                wait.map(|fd| !fd.revents().is_empty())
            };
            if stop || ended_now {
                if ended_now {
                    ended.read_exact(&mut [0])?;
                }
                let left = current.take().map(|(client, thread)| {
                    // Already, if it has ended by itself.
                    let _ = client.shutdown(Shutdown::Both);
                    thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread has failed")))
                });
                if let Some(left) = left {
                    let why = left.err().map(|error| error.to_string());
                    self.backend.link().connected = false;
                    self.backend.log(Event::Disconnected(why.clone()));
                    match (stop, until, why) {
                        (false, Until::FirstGone, Some(why)) => return Err(ServerError::SentAway(why)),
                        (false, Until::FirstGone, None) => return Ok(()),
                        _ => {}
                    }
                }
                if stop {
                    return Ok(());
                }
            }
            is_full = false;
            if knocks {
                let client = match self.socket.listener().accept() {
                    Ok((client, _)) => {
                        was_told = false;
                        client
                    }
                    // It has gone again.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    // No more files, or no memory: the VMM that is there has its device still, and who knocks waits.
                    Err(error) => {
                        if !std::mem::replace(&mut was_told, true) {
                            self.backend.log(Event::NotAccepted(error.to_string()));
                        }
                        is_full = true;
                        continue;
                    }
                };
                if current.is_some() {
                    self.backend.log(Event::Refused);
                    continue;
                }
                let begun =
                    client.try_clone().and_then(|ours| Ok((ours, self.spawn(client, Arc::clone(&end))?)));
                match begun {
                    Ok(begun) => {
                        current = Some(begun);
                    }
                    Err(error) => self.backend.log(Event::NotAccepted(error.to_string())),
                }
            }
        }
    }

    fn spawn(
        &self,
        client: UnixStream,
        end: Arc<PipeWriter>,
    ) -> io::Result<thread::JoinHandle<io::Result<()>>> {
        let backend = self.backend.clone();
        thread::Builder::new().name("vmm".into()).spawn(move || {
            backend.link().connected = true;
            backend.log(Event::Connected);
            let done = door::serve(&client, &backend);
            // The server waits for it; without one, nothing does.
            let _ = (&*end).write(&[0]);
            done
        })
    }
}
