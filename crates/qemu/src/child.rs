//! Children that end when this process does, however it ends.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use rustix::io::FdFlags;
use rustix::process::Signal;

/// A command to run, and who waits for the child.
type Job = (Command, Sender<io::Result<Child>>);

/// Starts a child that the kernel kills when this process ends, even when it is killed itself (`prctl(2)`,
/// `PR_SET_PDEATHSIG`). Of the files that this process has open, the child inherits those in `files` besides its standard
/// streams, under the same numbers.
///
/// # Errors
/// The program does not run, or there is no thread to start it from.
pub fn spawn_bound(mut command: Command, files: &[RawFd]) -> io::Result<Child> {
    let files = files.to_vec();
    let parent = rustix::process::getpid();
    let bind = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Who ended before this line sends no signal any more.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        for &file in &files {
            // SAFETY: the caller keeps it open until this function returns, which is after the child runs its program.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(file) }, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec nothing happens but system calls; nothing is allocated, locked, or freed.
    unsafe { command.pre_exec(bind) };
    let (to, child) = channel();
    spawner()?.send((command, to)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts processes has ended")
}

/// The thread that starts children. The kernel sends the signal when the *thread* ends that a child came from, so that one
/// lives as long as the process.
fn spawner() -> io::Result<&'static Sender<Job>> {
    static SPAWNER: OnceLock<Result<Sender<Job>, i32>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (to, jobs) = channel::<Job>();
        let run = move || {
            for (mut command, to) in jobs {
                if let Err(unwanted) = to.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    // No caller waits for it, so it is reaped here. It has ended already if it cannot be killed.
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        };
        let thread = thread::Builder::new().name("spawner".into()).spawn(run);
        thread.map(|_| to).map_err(|error| error.raw_os_error().unwrap_or_default())
    });
    spawner.as_ref().map_err(|&error| io::Error::from_raw_os_error(error))
}
