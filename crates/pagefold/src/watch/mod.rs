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
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::app::{Action, App};
use self::screen::Screen;
use crate::survey::SurveyArgs;

/// Watch what page metadata costs this machine, live
///
/// Descriptors, HVO, huge pages, nodes and zones, free blocks by order and the kernel's own counters, with rates. Everyone
/// may: it reads what `pagefold report --no-scan` reads, and changes nothing. Keys: q quits, ? tells the others.
#[derive(Debug, ClapArgs)]
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

/// How long a signal may wait.
const PATIENCE: Duration = Duration::from_millis(250);

pub fn run(args: &WatchArgs) -> Result<ExitCode> {
    if !io::stdout().is_terminal() {
        bail!("watch needs a terminal; in scripts use pagefold report --json, or export");
    }
    let survey = SurveyArgs { root: args.root.clone(), no_scan: true, ..SurveyArgs::default() };
    let begun = Instant::now();
    let mut app = App::new(args.interval);
    // What cannot be read at all is said before the screen is taken.
    app.read(gauges::read(&survey)?, begun.elapsed());
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("cannot watch for signals")?;
    }
    let mut screen = Screen::take().context("cannot use this terminal")?;
    let mut next = Instant::now() + app.interval();
    loop {
        screen.draw(&app)?;
        let wait = next.saturating_duration_since(Instant::now()).min(PATIENCE);
        let mut is_wanted = false;
        if event::poll(wait)? {
            match event::read()? {
                Event::Key(key) => match app.key(key) {
                    Some(Action::Quit) => break,
                    Some(Action::Read) => is_wanted = true,
                    Some(Action::Interval) => next = Instant::now() + app.interval(),
                    None => {}
                },
                Event::Resize(..) => {}
                _ => continue,
            }
        }
        if ended.load(Ordering::Relaxed) {
            break;
        }
        if is_wanted || (!app.is_paused() && Instant::now() >= next) {
            match gauges::read(&survey) {
                Ok(reading) => app.read(reading, begun.elapsed()),
                // A file that is gone may come back.
                Err(error) => app.failed(format!("{error:#}")),
            }
            next = Instant::now() + app.interval();
        }
    }
    Ok(ExitCode::SUCCESS)
}
