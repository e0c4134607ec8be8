//! Where the machine comes from: this host, a file, or the built-in sample.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pagefold_machine::live::{self, LiveError, ScanProgress};
use pagefold_machine::{Machine, snapshot};

use crate::input::{self, Input, origin};
use crate::stderr::say;

/// A machine recorded with `pagefold snapshot`; see docs/sample.md.
const SAMPLE: &[u8] = include_bytes!("../sample.pgf");

/// What is said of inputs that `report` understands, and that have no pages in them.
const NO_STATES: &str = "it tells nothing of single pages; take a snapshot, what page-types -l prints, or a directory with \
                         proc/kpageflags and proc/kpagecount";

/// What was asked for.
pub enum Source<'a> {
    /// This host, or the sample where that needs rights we do not have.
    HostOrSample,
    /// The built-in sample.
    Sample,
    /// A file, or a directory with a host's files: whatever has states of pages in it.
    File(&'a Path),
}

/// A machine, and a word for where it comes from.
pub struct Found {
    pub machine: Machine,
    pub origin: String,
}

impl Source<'_> {
    pub fn read(&self) -> Result<Found> {
        match self {
            Source::HostOrSample => match read_host("") {
                Ok(machine) => Ok(Found { machine, origin: "this host".into() }),
                Err(error) if error.is_permission() => {
                    say(format_args!("{error} without root; using the built-in sample"));
                    sample()
                }
                Err(error) => Err(error).context("reading this machine (try --sample)"),
            },
            Source::Sample => sample(),
            Source::File(path) => {
                let origin = origin(path);
                match input::read(path)? {
                    Input::Machine(machine) => Ok(Found { machine, origin }),
                    Input::Root(root) => {
                        let machine = read_root(&root, "");
                        let machine = machine.with_context(|| format!("{origin}: {NO_STATES}"))?;
                        Ok(Found { machine, origin })
                    }
                    Input::Files(_) => bail!("{origin}: {NO_STATES}"),
                }
            }
        }
    }
}

fn sample() -> Result<Found> {
    let machine = snapshot::read(SAMPLE).context("the built-in sample")?;
    Ok(Found { machine, origin: "the built-in sample".into() })
}

/// Reads this host, with a progress bar where somebody watches.
pub fn read_host(note: &str) -> Result<Machine, LiveError> {
    read_root(Path::new("/"), note)
}

/// As [`read_host`], with the `proc` and `sys` of another directory.
pub fn read_root(root: &Path, note: &str) -> Result<Machine, LiveError> {
    let progress = ScanProgress::default();
    if !std::io::stderr().is_terminal() {
        return live::read_from(root, note, &progress);
    }
    std::thread::scope(|scope| {
        let reader =
            std::thread::Builder::new().spawn_scoped(scope, || live::read_from(root, note, &progress));
        // Without a thread for the bar there is none.
        let Ok(reader) = reader else { return live::read_from(root, note, &progress) };
        let bar = bar("reading pages");
        while !reader.is_finished() {
            let (done, total) = progress.get();
            bar.set_length(total.max(1));
            bar.set_position(done);
            std::thread::sleep(Duration::from_millis(50));
        }
        bar.finish_and_clear();
        reader.join().unwrap_or(Err(LiveError::NoMemory))
    })
}

/// A progress bar on stderr; invisible where no terminal watches.
pub fn bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:<24} [{bar:40}] {percent:>3}% {eta:>4}");
    let bar = ProgressBar::new(1).with_message(what);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
