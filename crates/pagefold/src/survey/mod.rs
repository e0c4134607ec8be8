//! Looking at a machine: what it says of itself (tier 1, for everyone), and what every page is used for (tier 2, as root, or
//! from a snapshot file).

mod args;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use pagefold_machine::host::files::Files;
use pagefold_machine::host::{Gap, GapKind};
use pagefold_machine::{Host, Machine, PageState, Tally};

pub use self::args::SurveyArgs;
use crate::input::{self, Input};
use crate::source::{Source, read_root};

/// What was found out about a machine.
pub struct Survey {
    /// A word for where it comes from.
    pub origin: String,
    /// Tier 1.
    pub host: Host,
    /// Tier 2.
    pub pages: Option<Pages>,
}

/// What every page is used for, summed up.
pub struct Pages {
    pub tally: Tally,
    /// Bytes of memory that is online.
    pub memory: u64,
    /// Bytes of memory in sections: that have descriptors.
    pub described: u64,
}

impl Pages {
    fn of(machine: &Machine) -> Self {
        let tally = Tally::of(machine);
        let pages = machine.pages().saturating_sub(tally.state(PageState::NoPage).pages);
        let described = machine.described_pages().saturating_mul(4096);
        Self { tally, memory: pages.saturating_mul(4096), described }
    }
}

/// A machine, and where its pages' states are to be had.
pub struct Subject {
    /// A word for where it comes from.
    pub origin: String,
    /// What it says of itself.
    pub host: Host,
    /// Where states of pages are.
    pub pages: PagesAt,
}

/// Where states of pages are.
pub enum PagesAt {
    /// In memory: of a snapshot.
    Machine(Machine),
    /// In files of `/proc` below this.
    Root(PathBuf),
    /// Nowhere: only small files were collected.
    Nowhere,
}

impl SurveyArgs {
    /// The machine, of which no page is looked at yet.
    ///
    /// # Errors
    /// A snapshot that cannot be read; a root that says nothing at all.
    pub fn subject(&self) -> Result<Subject> {
        let machine = |machine: Machine, origin: String| Subject {
            origin,
            host: Host::of(&machine),
            pages: PagesAt::Machine(machine),
        };
        if let Some(path) = &self.file {
            let origin = input::origin(path);
            return match input::read(path)? {
                Input::Machine(found) => Ok(machine(found, origin)),
                Input::Files(files) => {
                    let host = says_something(Host::of_files(Files::of(files)), &origin)?;
                    Ok(Subject { origin, host, pages: PagesAt::Nowhere })
                }
                Input::Root(root) => {
                    let host = says_something(Host::read(&root), &root.display().to_string())?;
                    Ok(Subject { origin, host, pages: PagesAt::Root(root) })
                }
            };
        }
        if self.sample {
            let found = Source::Sample.read()?;
            return Ok(machine(found.machine, found.origin));
        }
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        if !root.join("proc").is_dir() {
            bail!("{} has no directory 'proc': is it another host's root?", root.display());
        }
        let place = root.display().to_string();
        let host = says_something(Host::read(root), &place)?;
        let origin = if self.root.is_some() { place } else { "this host".into() };
        Ok(Subject { origin, host, pages: PagesAt::Root(root.to_owned()) })
    }

    /// Looks at the machine.
    ///
    /// # Errors
    /// As [`subject`](Self::subject).
    pub fn survey(&self) -> Result<Survey> {
        let Subject { origin, mut host, pages } = self.subject()?;
        let pages = match pages {
            PagesAt::Machine(machine) => Some(Pages::of(&machine)),
            PagesAt::Root(root) if !self.no_scan => self.scan(&root, &mut host),
            PagesAt::Root(_) | PagesAt::Nowhere => None,
        };
        Ok(Survey { origin, host, pages })
    }

    /// Looks only at what the machine says of itself, unless a scan is asked for.
    ///
    /// # Errors
    /// As [`subject`](Self::subject).
    pub fn survey_quickly(&self) -> Result<Survey> {
        Self { no_scan: !self.scan, ..self.clone() }.survey()
    }

    /// Reads every page's state, if that is possible.
    fn scan(&self, root: &Path, host: &mut Host) -> Option<Pages> {
        const TELLS: &str = "every page's state";
        let asked = self.scan;
        let mut miss = |kind, why: String| {
            host.gaps.push(Gap { path: "/proc/kpageflags".into(), tells: TELLS.into(), why, kind });
        };
        if host.page_size.bytes != 4096 || host.structs.page.is_some_and(|size| size != 64) {
            let kind = if asked { GapKind::Unreadable } else { GapKind::Absent };
            miss(kind, "they are read for pages of 4 KiB with descriptors of 64 bytes only".into());
            return None;
        }
        match read_root(root, "") {
            Ok(machine) => Some(Pages::of(&machine)),
            // Without root, tier 1 is all there is, and not a part of something.
            Err(error) if error.is_permission() && !asked => {
                miss(GapKind::Absent, "it takes root".into());
                None
            }
            Err(error) if error.is_missing() && !asked => {
                miss(GapKind::Absent, "it is not there".into());
                None
            }
            Err(error) => {
                miss(
                    if error.is_permission() { GapKind::Denied } else { GapKind::Unreadable },
                    chain(&error),
                );
                None
            }
        }
    }
}

/// An error with its causes.
pub fn chain(error: &pagefold_machine::live::LiveError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The host, if it says how much memory there is.
fn says_something(host: Host, place: &str) -> Result<Host> {
    if host.meminfo.is_empty() && host.zones.is_empty() && host.blocks.is_none() {
        let why = host.gaps.first().map_or_else(String::new, |gap| format!(" ({}: {})", gap.path, gap.why));
        bail!("nothing in {place} says how much memory there is{why}");
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::{Flags, Header, MemoryRange, Run, flags};

    #[test]
    fn pages_without_memory_have_descriptors_and_are_no_memory() {
        let memory = vec![MemoryRange { start: 0, end: 3 << 15 }];
        let offline = Run { start: 1 << 15, len: 1 << 15, flags: Flags(flags::NOPAGE), count: 0 };
        let machine = Machine { header: Header { memory, ..Header::default() }, runs: vec![offline] };
        let pages = Pages::of(&machine);
        assert_eq!((pages.described, pages.memory), (3 << 27, 2 << 27));
        assert_eq!(pages.tally.state(PageState::Free).pages, 2 << 15);
    }
}
