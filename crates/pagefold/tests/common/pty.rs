//! A pseudo-terminal for a program to run on, seen from the side where the person sits.

use std::fs::{File, OpenOptions};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Much longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program on a terminal.
pub struct Session {
    pub child: Child,
    keys: Option<File>,
    /// Kept open: what the terminal is like can still be asked when the program is gone.
    pub terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    pub seen: String,
    reader: Option<(JoinHandle<()>, PipeWriter)>,
}

/// How a program is bound to its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// It is the leader of a session of which this is the terminal: its end is told by SIGHUP.
    Controlling,
    /// The same, but SIGHUP is ignored, as nohup(1) has it.
    Ignoring,
    /// The terminal is a file like others.
    None,
}

impl Session {
    /// Starts a program on a terminal of its own.
    pub fn start(command: &mut Command, bond: Bond) -> Session {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOCTTY);
        let terminal: OwnedFd = options.read(true).write(true).open(name).unwrap().into();
        resize(&terminal, 100, 30);
        let side = || Stdio::from(terminal.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
        let prepare = move || {
            // Whoever runs these tests may have the signal ignored.
            let handler = if bond == Bond::Ignoring { libc::SIG_IGN } else { libc::SIG_DFL };
            // SAFETY: no handler but these two.
            if unsafe { libc::signal(libc::SIGHUP, handler) } == libc::SIG_ERR {
                return Err(std::io::Error::last_os_error());
            }
            if bond != Bond::None {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec nothing happens but system calls.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().unwrap();
        let keys = File::from(master);
        let mut from = keys.try_clone().unwrap();
        let (to, output) = channel();
        let (stop, stopper) = std::io::pipe().unwrap();
        let read = move || {
            let mut buffer = [0; 4096];
            loop {
                let mut polled = [PollFd::new(&from, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
                rustix::event::poll(&mut polled, None).unwrap();
                if !polled[1].revents().is_empty() {
                    return;
                }
                match from.read(&mut buffer) {
                    Ok(bytes @ 1..) if to.send(buffer[..bytes].to_vec()).is_ok() => {}
                    _ => return,
                }
            }
        };
        let reader = Some((std::thread::spawn(read), stopper));
        Session { child, keys: Some(keys), terminal, output, seen: String::new(), reader }
    }

    /// Waits until the terminal has been sent this, from here on.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} never came: {:?}", self.seen),
            }
        }
        let rest = self.seen.split_off(self.seen.find(text).unwrap() + text.len());
        self.seen = rest;
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The window is closed, or the connection breaks.
    pub fn hang_up(&mut self) {
        let (reader, stopper) = self.reader.take().unwrap();
        drop(stopper);
        reader.join().unwrap();
        self.keys = None;
        // The other side shows it.
        let mut polled = [PollFd::new(&self.terminal, PollFlags::empty())];
        rustix::event::poll(&mut polled, None).unwrap();
        assert!(polled[0].revents().contains(PollFlags::HUP));
    }

    /// Waits until it has stopped, as a job that is suspended.
    pub fn wait_until_stopped(&self) {
        let pid = Pid::from_child(&self.child);
        let (_, status) =
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }
}

/// Gives a terminal a size.
pub fn resize(terminal: &impl AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
