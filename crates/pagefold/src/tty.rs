//! The terminal that a person sits at: whether it is there still, and how it was before.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Where keys come from and where the picture goes.
pub struct Tty {
    /// The controlling terminal, if stdin is none.
    keys: Option<File>,
}

impl Tty {
    /// The terminal: stdin, or else the controlling terminal.
    ///
    /// # Errors
    /// There is neither.
    pub fn open() -> io::Result<Tty> {
        let keys = if isatty(io::stdin()) { None } else { Some(File::open("/dev/tty")?) };
        Ok(Tty { keys })
    }

    /// Whether it has gone away: its window was closed, its connection broke. Reading then returns at once, for ever.
    pub fn is_gone(&self) -> bool {
        let stdin = io::stdin();
        let keys = self.keys.as_ref().map_or(stdin.as_fd(), File::as_fd);
        is_hung_up(keys) || is_hung_up(io::stdout().as_fd())
    }
}

/// Whether the other end of a terminal is gone.
pub fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    // These are told without being asked for.
    const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    match rustix::event::poll(&mut polled, Some(&AT_ONCE)) {
        Ok(_) => polled[0].revents().intersects(GONE),
        // Nothing was learnt: a signal came.
        Err(_) => false,
    }
}

/// How stdin's terminal was. It is put back when this goes, for programs that leave while their keys are raw.
pub struct Restore(Option<Termios>);

impl Restore {
    /// Notes how it is now.
    pub fn later() -> Restore {
        Restore(tcgetattr(io::stdin()).ok())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs nothing back.
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
        }
    }
}
