//! Signals that end a command early, with the result so far.
//!
//! After Ctrl-C (SIGINT) what was done until then is the result, and the exit code is as if no more
//! had been asked for. SIGTERM and SIGHUP come from a supervisor, or from a terminal that goes away: the same, but the exit
//! code is 128 and the signal's number, as a shell would have it. A second signal ends the command at once.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// What the signals set.
struct Caught {
    /// Set by the first signal: long work looks at it, ends early, and prints the result so far.
    flag: Arc<AtomicBool>,
    /// The last one that says so in the exit code; 0 for none.
    last: Arc<AtomicUsize>,
}

static CAUGHT: OnceLock<Caught> = OnceLock::new();

/// A flag that the first signal sets.
pub fn interrupted() -> Arc<AtomicBool> {
    let caught = CAUGHT.get_or_init(|| {
        let caught = Caught { flag: Arc::default(), last: Arc::default() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if signal == SIGHUP && is_ignored(signal) {
                continue;
            }
            // A signal that cannot be caught ends the program, as it would have anyway. The order is that of the handlers:
            // the first one ends the program if the flag was set before.
            let caught_so = signal_hook::flag::register_conditional_shutdown(
                signal,
                128 + signal,
                Arc::clone(&caught.flag),
            )
            .and_then(|_| match signal {
                SIGINT => Ok(()),
                _ => signal_hook::flag::register_usize(signal, Arc::clone(&caught.last), signal as usize)
                    .map(|_| ()),
            })
            .and_then(|()| signal_hook::flag::register(signal, Arc::clone(&caught.flag)));
            if let Err(error) = caught_so {
                crate::stderr::say(format_args!("signal {signal} will end this command at once: {error}"));
            }
        }
        caught
    });
    Arc::clone(&caught.flag)
}

/// Makes a file that grows beyond what this process may write (`ulimit -f`) an error of that write, where the signal would end
/// the process in the middle of its work.
pub fn outlive_large_files() {
    // Nobody looks at the flag: that the signal is caught is all. If it cannot be, it ends the process as before.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// The exit code, if a signal decides it.
pub fn code() -> Option<ExitCode> {
    // Relaxed: the number stands for itself.
    match CAUGHT.get()?.last.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(ExitCode::from(128 + signal as u8)),
    }
}

/// Whether this command was started with a signal ignored, as nohup(1) does with SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 != 0
}
