//! Reading the small files that a host describes itself with, under any root, and keeping account of what was not to be
//! had.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::paste::Pasted;

/// No file read here is larger: the largest, a kernel's BTF, has 5 to 20 MB.
const MAX_FILE: u64 = 64 << 20;

/// Something that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gap {
    /// Which file or directory, as seen from the root.
    pub path: String,
    /// What it would have told.
    pub tells: String,
    /// Why it did not.
    pub why: String,
    /// Which sort of gap that is.
    pub kind: GapKind,
}

/// Sorts of gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// This kernel does not have it. Nothing is wrong.
    Absent,
    /// It is not among the files of another host: not collected, or that kernel does not have it.
    NotCollected,
    /// It takes more rights.
    Denied,
    /// It cannot be read.
    Unreadable,
    /// It was there, and went away while it was read.
    Vanished,
    /// It holds something else than this program knows.
    Malformed,
}

impl GapKind {
    /// Whether what was read is only a part of what the host has to tell.
    pub fn is_partial(self) -> bool {
        !matches!(self, GapKind::Absent | GapKind::NotCollected)
    }
}

/// The files under a root.
#[derive(Debug)]
pub struct Files {
    root: FileRoot,
    gaps: Vec<Gap>,
}

/// Where files are.
#[derive(Debug)]
enum FileRoot {
    /// In a directory, which has `proc` and `sys` in it.
    Disk(PathBuf),
    /// In memory, by their paths.
    Memory(Pasted),
}

impl Files {
    /// The files under `root`, which has `proc` and `sys` in it.
    pub fn new(root: &Path) -> Self {
        Self { root: FileRoot::Disk(root.to_owned()), gaps: Vec::new() }
    }

    /// These files, and no others.
    pub fn of(files: Pasted) -> Self {
        Self { root: FileRoot::Memory(files), gaps: Vec::new() }
    }

    /// Whether they are this host's own.
    pub fn is_this_host(&self) -> bool {
        matches!(&self.root, FileRoot::Disk(root) if root == Path::new("/"))
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        match &self.root {
            FileRoot::Disk(root) => read(&root.join(path)),
            FileRoot::Memory(files) => files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    /// What was not to be had so far.
    pub fn into_gaps(self) -> Vec<Gap> {
        self.gaps
    }

    /// What was not to be had since the last time; what comes is noted anew.
    pub(super) fn take_gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }

    /// Whether there is such a file or directory.
    pub fn exists(&self, path: &str) -> bool {
        match &self.root {
            FileRoot::Disk(root) => root.join(path).exists(),
            FileRoot::Memory(files) => files.contains_key(path) || below(files, path).next().is_some(),
        }
    }

    /// Notes that something is missing.
    pub fn miss(&mut self, path: &str, tells: &str, kind: GapKind, why: impl Into<String>) {
        self.gaps.push(Gap { path: format!("/{path}"), tells: tells.into(), why: why.into(), kind });
    }

    /// A whole file. Missing is noted.
    pub fn bytes(&mut self, path: &str, tells: &str) -> Option<Vec<u8>> {
        match self.read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.failed(path, tells, &error);
                None
            }
        }
    }

    /// Notes that something could not be read.
    fn failed(&mut self, path: &str, tells: &str, error: &io::Error) {
        let (kind, why) = describe(error);
        match kind {
            GapKind::Absent => self.absent(path, tells, &why),
            _ => self.miss(path, tells, kind, why),
        }
    }

    /// Notes that something is not there: on this host because its kernel does not have it (`why`). In files of another
    /// host nothing tells whether the kernel has it.
    pub fn absent(&mut self, path: &str, tells: &str, why: &str) {
        if self.is_this_host() {
            self.miss(path, tells, GapKind::Absent, why);
        } else {
            let why = "not among these files: not collected, or that kernel does not have it";
            self.miss(path, tells, GapKind::NotCollected, why);
        }
    }

    /// A whole file, as [`plain`] text.
    pub fn text(&mut self, path: &str, tells: &str) -> Option<String> {
        self.bytes(path, tells).map(|bytes| plain(&String::from_utf8_lossy(&bytes)))
    }

    /// As [`text`](Self::text); that it is missing says something too, and is not noted.
    pub fn optional_text(&mut self, path: &str, tells: &str) -> Option<String> {
        match self.read(path) {
            Ok(bytes) => Some(plain(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.failed(path, tells, &error);
                None
            }
        }
    }

    /// What `parse` makes of a file's text without space around it; that the file is missing is not noted.
    pub(super) fn optional<T>(
        &mut self,
        path: &str,
        tells: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.optional_text(path, tells)?;
        self.parsed(path, tells, &text, parse)
    }

    /// What `parse` makes of the text of a file; that it makes nothing of it is noted.
    fn parsed<T>(
        &mut self,
        path: &str,
        tells: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = parse(text.trim());
        if value.is_none() {
            self.malformed(path, tells, text);
        }
        value
    }

    /// A whole file as [`plain`] text, if it can be had: nothing is noted if it cannot.
    pub fn text_if_any(&self, path: &str) -> Option<String> {
        self.bytes_if_any(path).map(|bytes| plain(&String::from_utf8_lossy(&bytes)))
    }

    /// A whole file, if it can be had: nothing is noted if it cannot.
    pub fn bytes_if_any(&self, path: &str) -> Option<Vec<u8>> {
        self.read(path).ok()
    }

    /// A file that stood in a directory listing a moment ago.
    pub fn listed_text(&mut self, path: &str, tells: &str) -> Option<String> {
        let text = self.text(path, tells);
        if text.is_none()
            && let Some(gap) = self.gaps.last_mut()
            && gap.kind == GapKind::Absent
        {
            gap.kind = GapKind::Vanished;
            gap.why = "it went away while it was read".into();
        }
        text
    }

    /// The one number in a file; `parse` says how it is written.
    pub fn number(
        &mut self,
        path: &str,
        tells: &str,
        parse: impl FnOnce(&str) -> Option<u64>,
    ) -> Option<u64> {
        let text = self.listed_text(path, tells)?;
        self.parsed(path, tells, &text, parse)
    }

    /// Notes that a file holds something else than it should.
    pub fn malformed(&mut self, path: &str, tells: &str, text: &str) {
        let line: String = text.trim_start().chars().take_while(|&c| c != '\n').take(40).collect();
        let why = match line.trim_end() {
            "" => "it is empty".to_owned(),
            line => format!("it begins with {line:?}, which is not what it should hold"),
        };
        self.miss(path, tells, GapKind::Malformed, why);
    }

    /// Names in a directory, sorted; none if there is no such directory.
    pub fn names(&mut self, path: &str, tells: &str) -> Vec<String> {
        let listed = match &self.root {
            FileRoot::Disk(root) => fs::read_dir(root.join(path)).and_then(|entries| {
                entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
            }),
            FileRoot::Memory(files) => {
                let mut names: Vec<String> = below(files, path).map(str::to_owned).collect();
                // They are in order, but a directory stands there for each file in it.
                names.dedup();
                if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
            }
        };
        match listed {
            Ok(names) => {
                let mut names: Vec<String> = names;
                names.sort();
                names
            }
            Err(error) => {
                self.failed(path, tells, &error);
                Vec::new()
            }
        }
    }

    /// Numbers that follow `prefix` in a directory's names, sorted.
    pub fn numbered(&mut self, path: &str, prefix: &str, tells: &str) -> Vec<u64> {
        let names = self.names(path, tells);
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// Names in a directory, in order, some of them more than once.
fn below<'f>(files: &'f Pasted, dir: &str) -> impl Iterator<Item = &'f str> + use<'f> {
    let prefix = format!("{dir}/");
    let from = files.range(prefix.clone()..);
    from.map_while(move |(path, _)| path.strip_prefix(&prefix)).filter_map(|rest| rest.split('/').next())
}

/// Text without control characters but for ends of lines and tabs, so that it can be shown on a terminal. Others become
/// U+FFFD, as bytes that are no text do; no parser takes that for anything.
pub fn plain(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Another root may hold anything, and opening a FIFO would wait for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 64 MiB"));
    }
    Ok(bytes)
}

fn describe(error: &io::Error) -> (GapKind, String) {
    match error.kind() {
        io::ErrorKind::NotFound => (GapKind::Absent, "this kernel does not have it".into()),
        io::ErrorKind::PermissionDenied => (GapKind::Denied, "permission denied".into()),
        // ENODEV and ENXIO: what sysfs says of a device that is being removed.
        _ if matches!(error.raw_os_error(), Some(6 | 19)) => {
            (GapKind::Vanished, "it went away while it was read".into())
        }
        _ => (GapKind::Unreadable, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_are_as_files_in_directories() {
        let paths = [
            "sys/node/node0/meminfo",
            "sys/node/node0/memory1/state",
            "sys/node/node10/meminfo",
            "sys/nodes",
        ];
        let mut files = Files::of(paths.iter().map(|path| (path.to_string(), b"7".to_vec())).collect());
        assert_eq!(files.numbered("sys/node", "node", ""), [0, 10]);
        assert_eq!(files.names("sys/node/node0", ""), ["meminfo", "memory1"]);
        assert!(files.exists("sys/node/node0") && files.exists("sys/nodes") && !files.exists("sys/nod"));
        assert_eq!(files.text("sys/nodes", "").as_deref(), Some("7"));
        assert_eq!(files.text("sys/node", ""), None);
        assert!(files.names("sys/none", "").is_empty());
        assert!(files.into_gaps().iter().all(|gap| gap.kind == GapKind::NotCollected));
    }

    #[test]
    fn every_sort_of_gap_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/number"), "no number\n").unwrap();
        fs::write(root.path().join("proc/empty"), "").unwrap();
        let mut files = Files::new(root.path());
        assert_eq!(files.text("proc/nothing", "nothing"), None);
        assert_eq!(files.listed_text("proc/gone", "nothing"), None);
        assert_eq!(files.bytes("proc", "nothing"), None);
        assert_eq!(files.number("proc/number", "nothing", |text| text.parse().ok()), None);
        assert_eq!(files.number("proc/empty", "nothing", |text| text.parse().ok()), None);
        assert_eq!(files.optional_text("proc/option", "nothing"), None);
        let gaps = files.into_gaps();
        let kinds: Vec<_> = gaps.iter().map(|gap| gap.kind).collect();
        use GapKind::{Malformed, NotCollected, Unreadable};
        assert_eq!(kinds, [NotCollected, NotCollected, Unreadable, Malformed, Malformed]);
        assert!(gaps[3].why.contains("no number"), "{}", gaps[3].why);
        assert!(gaps[4].why.contains("empty"), "{}", gaps[4].why);
    }

    #[test]
    fn a_fifo_does_not_hold_up_the_reader() {
        let root = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(root.path().join("pipe")).status().unwrap();
        assert!(made.success());
        let mut files = Files::new(root.path());
        assert_eq!(files.text("pipe", "nothing"), None);
        assert_eq!(files.into_gaps()[0].kind, GapKind::Unreadable);
    }
}
