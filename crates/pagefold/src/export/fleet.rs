//! All pages of a host, for a fleet: where they come from, and where the file goes.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use pagefold_machine::host::Hvo;
use pagefold_machine::{Host, Machine};
use pagefold_picture::amount::{Bytes, Whole};
use rustix::fs::{Access, AtFlags, CWD};

use super::args::ExportArgs;
use super::parquet::{Common, write};
use super::rows::rows;
use crate::place::Place;
use crate::source::{Found, Source, read_root};
use crate::stderr::say;
use crate::{deliver, exit};

/// The last second of the year 9999: later there are no dates.
const LAST: u64 = 253_402_300_799;

pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    if args.file().is_none() && io::stdout().is_terminal() {
        return Err(exit::usage("Parquet is not text: give --output FILE or --output DIR"));
    }
    if args.survey.no_scan {
        return Err(exit::usage("Parquet has every page's state: it takes a scan, so no --no-scan"));
    }
    let output = args.file().map(FleetFile::new).transpose()?;
    let (machine, common) = read(args)?;
    let mut bytes = Vec::new();
    let count = write(&mut bytes, &common, rows(&machine)).context("cannot write Parquet")?;
    let place = match output {
        None => None,
        Some(FleetFile::File(place)) => Some(place),
        Some(FleetFile::Fleet(dir)) => {
            let path = dir.join(place(&common));
            let dir = path.parent().unwrap_or(&path);
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            Some(Place::public(&path)?)
        }
    };
    deliver::to(place.as_ref(), &bytes)?;
    if let Some(place) = place {
        let size = Bytes(bytes.len() as u64);
        say(format_args!("{}: {} rows, {size}", place.path().display(), Whole(count)));
    }
    Ok(exit::code(false, false))
}

/// Where it goes.
enum FleetFile {
    File(Place),
    /// A directory, with directories for days and hosts in it.
    Fleet(PathBuf),
}

impl FleetFile {
    /// An existing directory, or a name that can only be one's, is a fleet's. It is made now: that it cannot be is said
    /// before pages are read.
    fn new(path: &Path) -> Result<FleetFile> {
        if !path.is_dir() && !path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Ok(FleetFile::File(Place::public(path)?));
        }
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .with_context(|| format!("no file can be made in {}", path.display()))?;
        Ok(FleetFile::Fleet(path.to_owned()))
    }
}

fn read(args: &ExportArgs) -> Result<(Machine, Common)> {
    let survey = &args.survey;
    if survey.file.is_none() && !survey.sample {
        return live(args);
    }
    let source = survey.file.as_deref().map_or(Source::Sample, Source::File);
    let Found { machine, .. } = source.read()?;
    let stem = survey.file.as_deref().and_then(Path::file_stem).and_then(|stem| stem.to_str());
    let header = &machine.header;
    let common = Common {
        host: args.host.clone().unwrap_or_else(|| stem.unwrap_or("sample").to_owned()),
        boot_id: None,
        ts: micros(header.recorded),
        kernel: header.kernel.clone(),
        page_bytes: header.page_size,
        descriptor_bytes: header.descriptor_size,
        hvo: None,
        memmap_pages: header.memmap_pages,
    };
    Ok((machine, common))
}

fn live(args: &ExportArgs) -> Result<(Machine, Common)> {
    let root = args.survey.root.as_deref().unwrap_or(Path::new("/"));
    let machine = read_root(root, "").map_err(|error| {
        let hint =
            if error.is_permission() { "run as root, or name a snapshot" } else { "is /proc mounted?" };
        anyhow::Error::new(error).context(format!("cannot read every page's state ({hint})"))
    })?;
    let host = Host::read(root);
    let line = |path: &str| {
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let common = Common {
        host: args
            .host
            .clone()
            .or_else(|| line("proc/sys/kernel/hostname"))
            .context("this host has no name: give --host NAME")?,
        boot_id: line("proc/sys/kernel/random/boot_id"),
        ts: micros(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())),
        kernel: host.kernel.clone(),
        page_bytes: host.page_size.bytes,
        descriptor_bytes: host.descriptor_size(),
        hvo: match host.hvo {
            Hvo::On => Some(true),
            Hvo::Off | Hvo::Unsupported => Some(false),
            Hvo::Unknown => None,
        },
        memmap_pages: host.memmap.map(|memmap| memmap.pages),
    };
    Ok((machine, common))
}

fn micros(seconds: u64) -> i64 {
    i64::try_from(seconds.min(LAST)).unwrap_or(0) * 1_000_000
}

/// `date=2026-01-31/host=web7/20260131T235959Z.parquet`
fn place(common: &Common) -> PathBuf {
    let seconds = Duration::from_micros(common.ts.unsigned_abs()).as_secs();
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    let date = time.get(..10).unwrap_or("1970-01-01");
    let compact: String = time.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    [format!("date={date}"), format!("host={}", escaped(&common.host)), format!("{compact}.parquet")]
        .iter()
        .collect()
}

/// A name that is one part of a path: everything unusual as `%XX`, as Hive does it.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => text.push(byte.into()),
            b'.' if at > 0 => text.push('.'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    if text.is_empty() { "unknown".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_days_have_their_directories() {
        let common = |host: &str, ts| Common { host: host.into(), ts, ..Common::default() };
        let place = |host, ts| super::place(&common(host, ts)).display().to_string();
        assert_eq!(
            place("web7.example.org", 1_700_000_000_000_000),
            "date=2023-11-14/host=web7.example.org/20231114T221320Z.parquet"
        );
        assert_eq!(place("../etc", 0), "date=1970-01-01/host=%2E.%2Fetc/19700101T000000Z.parquet");
        assert_eq!(place("", micros(u64::MAX)), "date=9999-12-31/host=unknown/99991231T235959Z.parquet");
    }
}
