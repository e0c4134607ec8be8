//! `pagefold watch`: the report, live.

mod app;
mod gauges;
mod history;
mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use self::app::{Action, App};
use self::screen::Screen;
use crate::survey::SurveyArgs;
use crate::tty::Tty;

/// Watch what page metadata costs this machine, live
///
/// Descriptors, HVO, huge pages, nodes and zones, free blocks by order and the kernel's own counters, with rates. Everyone
/// may: it reads what `pagefold report --no-scan` reads, and changes nothing. Keys: q quits, ? tells the others.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold watch
  pagefold watch --interval 0.5
  pagefold watch --root /host       from a container that has the host's /proc and /sys there
")]
pub struct WatchArgs {
    /// Seconds from one reading to the next
    #[arg(long, short, value_name = "SECONDS", default_value = "2", value_parser = parse_interval)]
    pub interval: Duration,

    /// Read DIR/proc and DIR/sys: another host's files, or a container's view of the host
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = crate::size::parse_seconds(text)?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("between 0.1 and 3600 seconds".into())
    }
}

/// How long a signal may wait, or a terminal that goes away.
const PATIENCE: Duration = Duration::from_millis(250);

/// What signals ask for.
struct Signals {
    end: Arc<AtomicBool>,
    suspend: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> Result<Signals> {
        let signals = Signals { end: Arc::default(), suspend: Arc::default() };
        let all = [SIGTERM, SIGINT, SIGHUP, SIGQUIT].map(|signal| (signal, &signals.end));
        for (signal, flag) in all.into_iter().chain([(SIGTSTP, &signals.suspend)]) {
            signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot watch for signals")?;
        }
        Ok(signals)
    }
}

pub fn run(args: &WatchArgs) -> Result<ExitCode> {
    if !io::stdout().is_terminal() {
        bail!("watch needs a terminal; in scripts use pagefold report --json, or export");
    }
    let tty = Tty::open().context("watch needs a terminal for its keys: stdin is not one")?;
    let survey = SurveyArgs { root: args.root.clone(), no_scan: true, ..SurveyArgs::default() };
    let mut app = App::new(args.interval);
    // What cannot be read at all is said before the screen is taken.
    app.read(gauges::read(&survey)?, Duration::ZERO);
    let signals = Signals::catch()?;
    let mut screen = Screen::take().context("cannot use this terminal")?;
    let shown = show(&mut app, &survey, &tty, &signals, &mut screen);
    // There is no terminal left to report it to.
    if tty.is_gone() { Ok(ExitCode::SUCCESS) } else { shown.map(|()| ExitCode::SUCCESS) }
}

fn show(app: &mut App, survey: &SurveyArgs, tty: &Tty, signals: &Signals, screen: &mut Screen) -> Result<()> {
    let begun = Instant::now();
    let events = events()?;
    let mut next = begun + app.interval;
    loop {
        screen.draw(app)?;
        let wait = next.saturating_duration_since(Instant::now()).min(PATIENCE);
        let mut is_wanted = false;
        match events.recv_timeout(wait) {
            Ok(Event::Key(key)) => match app.key(key) {
                Some(Action::Quit) => return Ok(()),
                Some(Action::Suspend) => signals.suspend.store(true, Ordering::Relaxed),
                Some(Action::Read) => is_wanted = true,
                Some(Action::Interval) => next = Instant::now() + app.interval,
                None => {}
            },
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("cannot read this terminal's keys"),
        }
        // Relaxed: flags that stand for themselves.
        if signals.end.load(Ordering::Relaxed) || tty.is_gone() {
            return Ok(());
        }
        if signals.suspend.swap(false, Ordering::Relaxed) {
            screen.give()?;
            // This returns when somebody lets the program go on.
            signal_hook::low_level::emulate_default_handler(SIGTSTP).context("cannot stop")?;
            screen.take_again().context("cannot use this terminal again")?;
        }
        if is_wanted || (!app.is_paused && Instant::now() >= next) {
            match gauges::read(survey) {
                Ok(reading) => app.read(reading, begun.elapsed()),
                // A file that is gone may come back.
                Err(error) => app.failed(format!("{error:#}")),
            }
            next = Instant::now() + app.interval;
        }
    }
}

/// Keys, and other events of the terminal. A thread of its own reads them: reading from a terminal that is gone, or that has
/// sent the first half of a key, does not return.
fn events() -> Result<Receiver<Event>> {
    let (to, events) = channel();
    let read = move || {
        while let Ok(event) = event::read() {
            if to.send(event).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".into()).spawn(read).context("no thread to read keys")?;
    Ok(events)
}
