//! `pagefold device`: a virtio-mem device in a process of its own.

mod args;
mod commands;
mod control;
mod log;
mod memory;
mod metrics;
mod state;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use pagefold_virtio_mem_device::Settings;
use pagefold_virtio_mem_vhost::{Backend, Event, Server, Socket, Stop, Until};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub use self::args::DeviceArgs;
use self::log::Log;
use self::state::State;
use crate::exit::usage;
use crate::interrupt;

/// What a system without memory for one more thread says, and what to do.
const NO_THREAD: &str =
    "the system gives no thread: raise the limit on memory (ulimit -v) or on processes (ulimit -u)";

/// Serves the device until its VMM goes, or somebody ends it.
///
/// # Errors
/// What does not fit, and a VMM that was refused.
pub fn run(args: &DeviceArgs) -> Result<ExitCode> {
    if let Some(path) = &args.tell {
        return control::tell(path, &args.command.join(" "));
    }
    if !args.command.is_empty() {
        return Err(usage("a COMMAND is for a device that runs: say which, with --tell PATH"));
    }
    // The command line has them, or it was refused.
    let (Some(socket), Some(file), Some(addr), Some(size)) =
        (&args.socket, &args.memory, args.region, args.size)
    else {
        anyhow::bail!("give --socket, --memory, --region and --size");
    };
    pagefold_virtio_mem_vhost::outlive_cut_memory().context("SIGBUS cannot be caught")?;
    let socket = Socket::new(socket)?;
    let control = args.control.as_deref().map(Socket::new).transpose()?.map(Arc::new);
    let (memory, new) = memory::open(file, size)?;
    let memory = memory.with_prealloc(args.prealloc);
    let state = args.state.as_deref().map(|path| State::open(path, &memory)).transpose()?;
    let (state, saved) = state.map_or((None, None), |(state, saved)| (Some(state), saved));
    let settings = Settings {
        block_size: args.block,
        guest_block_size: args.guest_block,
        node: args.node,
        requested_size: args.requested,
        // A VMM is told when it comes.
        resize_without_driver: true,
        ..Settings::new(addr, size)
    };
    let log = Log::new().context(NO_THREAD)?;
    let (quiet, lines) = (args.quiet, log.lines());
    let tell = move |event: Event| {
        if !(quiet && matches!(event, Event::Request(..))) {
            lines.say(&event);
        }
    };
    let backend = Backend::new(settings, memory, saved.as_ref(), tell)?;
    let mut server = Server::new(backend.clone(), socket)?;
    if let Some(state) = &state {
        state.take()?;
    }
    stop_at_signals(server.stopper())?;
    control::from_stdin(&backend, &server.stopper()).context(NO_THREAD)?;
    if let Some(control) = &control {
        control::from_socket(&backend, &server.stopper(), Arc::clone(control)).context(NO_THREAD)?;
    }
    new.keep();
    log.lines().say(&"ready");
    let served = server.run(if args.stay { Until::Stopped } else { Until::FirstGone });
    let kept = state.map_or(Ok(()), |state| state.keep(&backend));
    log.finish();
    // The thread that listens has it for ever, so its name is taken away here.
    if let Some(control) = control {
        control.remove_name();
    }
    kept?;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM, SIGINT and SIGHUP end the server in order; a second one ends the process at once.
fn stop_at_signals(stop: Stop) -> Result<()> {
    let mut wanted = vec![SIGINT, SIGTERM];
    if !interrupt::is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted).context("signals cannot be caught")?;
    let spawned = thread::Builder::new().name("signals".into()).spawn(move || {
        for (at, signal) in signals.forever().enumerate() {
            if at > 0 {
                // As without a handler; it does not return.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            stop.stop();
        }
    });
    spawned.context(NO_THREAD)?;
    Ok(())
}
