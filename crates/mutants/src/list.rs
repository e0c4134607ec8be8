//! The list of mutants: what it says, and how a mutant finds its place in the source.
//!
//! A list is a TOML file, one subject a file:
//!
//! ```toml
//! subject = "grace periods"
//! file = "crates/engine/src/rcu.rs"
//!
//! [[mutant]]
//! id = "rcu-poll-slot-relaxed"
//! in = "pub fn poll("                          # optional: the item that the snippet stands in
//! old = "slot.word.load(Ordering::Acquire)"
//! new = "slot.word.load(Ordering::Relaxed)"
//! breaks = "What a section did need not be seen by who waited for it."
//! killed-by = "pagefold-model rcu what_a_section_did_happens_before_the_end_of_the_grace_period"
//! ```
//!
//! Instead of `killed-by` (package, test target, test; `package+feature` with a feature of it) a mutant may be `equivalent = "why"`, or
//! `litmus = "name"` where the test is one of the litmus tests. A test target is the name of a file in `tests/`, or
//! `lib` for tests beside the code. `hang = true` says that the mutant is noticed because the test does not end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Where the lists lie in the workspace.
pub const LISTS: &str = "crates/model/mutants";

/// One change of the source, and what should become of it.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// A name that stays.
    pub id: String,
    /// What it is about: the subject of its file.
    pub subject: String,
    /// The file that is changed, from the root of the workspace.
    pub file: PathBuf,
    /// The beginning of the item that holds the snippet, if the snippet alone is not unique.
    pub within: Option<String>,
    /// The snippet as it is.
    pub old: String,
    /// The snippet as it becomes.
    pub new: String,
    /// What goes wrong then.
    pub breaks: String,
    /// What notices.
    pub verdict: Verdict,
    /// Whether a test that does not end is how it is noticed.
    pub hang: bool,
}

/// What notices a mutant, or why nothing can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This test fails.
    Killed(Test),
    /// Nothing is wrong with it, for this reason.
    Equivalent(String),
    /// A litmus test of this name shows what is wrong.
    Litmus(String),
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Test {
    /// Where it is.
    pub binary: Binary,
    /// Its whole name.
    pub name: String,
}

/// One test binary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binary {
    /// The package; `package+feature` with a feature of it.
    pub package: String,
    /// The file in `tests/`, or `lib`.
    pub target: String,
}

impl Binary {
    /// The package's name, and the feature that it is built with.
    pub fn package_and_feature(&self) -> (&str, Option<&str>) {
        match self.package.split_once('+') {
            Some((package, feature)) => (package, Some(feature)),
            None => (&self.package, None),
        }
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.package, self.target)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.binary, self.name)
    }
}

impl Test {
    /// `package target name`.
    ///
    /// # Errors
    /// If it is not three words.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            [package, target, name] => Ok(Test {
                binary: Binary { package: package.to_owned(), target: target.to_owned() },
                name: name.to_owned(),
            }),
            _ => bail!("{text:?} does not name a test: write `package target test`"),
        }
    }
}

/// A list as it stands in its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFile {
    subject: String,
    file: Option<PathBuf>,
    #[serde(default)]
    mutant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    id: String,
    file: Option<PathBuf>,
    #[serde(rename = "in")]
    within: Option<String>,
    old: String,
    new: String,
    breaks: String,
    killed_by: Option<String>,
    equivalent: Option<String>,
    litmus: Option<String>,
    #[serde(default)]
    hang: bool,
}

impl Entry {
    fn verdict(&self) -> Result<Verdict> {
        match (&self.killed_by, &self.equivalent, &self.litmus) {
            (Some(test), None, None) => Ok(Verdict::Killed(Test::parse(test)?)),
            (None, Some(why), None) => Ok(Verdict::Equivalent(why.clone())),
            (None, None, Some(name)) => Ok(Verdict::Litmus(name.clone())),
            _ => bail!("needs exactly one of `killed-by`, `equivalent` and `litmus`"),
        }
    }
}

/// Reads every list below `root`, in the order of the files' names.
///
/// # Errors
/// If a list cannot be read or says something impossible.
pub fn read(root: &Path) -> Result<Vec<Mutant>> {
    let folder = root.join(LISTS);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("{}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut mutants = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        mutants.extend(parse(&text).with_context(|| format!("{}", path.display()))?);
    }
    let mut seen = BTreeSet::new();
    for mutant in &mutants {
        ensure!(seen.insert(&mutant.id), "two mutants are called {}", mutant.id);
    }
    Ok(mutants)
}

/// The mutants of one list.
///
/// # Errors
/// If it is not a list.
pub fn parse(text: &str) -> Result<Vec<Mutant>> {
    let list: ListFile = toml::from_str(text)?;
    list.mutant
        .into_iter()
        .map(|entry| {
            let verdict = entry.verdict().with_context(|| entry.id.clone())?;
            let file = entry.file.or_else(|| list.file.clone());
            let file = file.with_context(|| format!("{}: in which file?", entry.id))?;
            ensure!(entry.old != entry.new, "{}: changes nothing", entry.id);
            ensure!(!entry.breaks.trim().is_empty(), "{}: what does it break?", entry.id);
            Ok(Mutant {
                id: entry.id,
                subject: list.subject.clone(),
                file,
                within: entry.within,
                old: entry.old,
                new: entry.new,
                breaks: entry.breaks,
                verdict,
                hang: entry.hang,
            })
        })
        .collect()
}

/// Why a mutant has no place in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The item that should hold the snippet is not there, or is there several times.
    Item(usize),
    /// The snippet is not there, or is there several times.
    Snippet(usize),
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, times) = match self {
            Misplaced::Item(times) => ("the item that holds the snippet", times),
            Misplaced::Snippet(times) => ("the snippet", times),
        };
        match times {
            0 => write!(f, "{what} is not there"),
            times => write!(f, "{what} is there {times} times"),
        }
    }
}

impl Mutant {
    /// Where the snippet stands in `source`.
    ///
    /// # Errors
    /// [`Misplaced`], if there is not exactly one place for it.
    pub fn place(&self, source: &str) -> Result<Range<usize>, Misplaced> {
        let region = match &self.within {
            None => 0..source.len(),
            Some(item) => {
                let times = source.matches(item.as_str()).count();
                if times != 1 {
                    return Err(Misplaced::Item(times));
                }
                item_around(source, source.find(item.as_str()).unwrap_or_default())
            }
        };
        let mut places = source[region.clone()].match_indices(self.old.as_str());
        match (places.next(), places.count()) {
            (Some((at, _)), 0) => Ok(region.start + at..region.start + at + self.old.len()),
            (first, more) => Err(Misplaced::Snippet(usize::from(first.is_some()) + more)),
        }
    }

    /// `source` with the change made.
    ///
    /// # Errors
    /// [`Misplaced`], if there is not exactly one place for it.
    pub fn apply(&self, source: &str) -> Result<String, Misplaced> {
        let place = self.place(source)?;
        Ok([&source[..place.start], &self.new, &source[place.end..]].concat())
    }
}

/// From the line that `at` lies in to the line that closes what it opens: the next one that is indented as little and
/// begins with a closing bracket. Rust's formatter guarantees that this is the end of the item.
fn item_around(source: &str, at: usize) -> Range<usize> {
    let start = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = source[start..].len() - source[start..].trim_start_matches(' ').len();
    let mut end = start;
    for (number, line) in source[start..].split_inclusive('\n').enumerate() {
        end += line.len();
        let text = line.trim_start_matches(' ');
        if number > 0 && line.len() - text.len() == indent && text.starts_with(['}', ']']) {
            break;
        }
        // An item of one line.
        if number == 0 && text.trim_end().ends_with([';', '}']) {
            break;
        }
    }
    start..end
}

/// Mutants that do not apply to the sources below `root`, and why.
///
/// # Errors
/// If a source cannot be read.
pub fn check<'m>(root: &Path, mutants: &'m [Mutant]) -> Result<Vec<(&'m Mutant, Misplaced)>> {
    let mut sources = BTreeMap::new();
    let mut misplaced = Vec::new();
    for mutant in mutants {
        if !sources.contains_key(&mutant.file) {
            let path = root.join(&mutant.file);
            let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            sources.insert(mutant.file.clone(), text);
        }
        if let Err(why) = mutant.apply(&sources[&mutant.file]) {
            misplaced.push((mutant, why));
        }
    }
    Ok(misplaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
fn first() {
    word.load(Acquire);
}

impl Thing {
    fn second(&self) -> u64 {
        if self.is_ready() {
            word.load(Acquire);
        }
        word.store(1, Release);
    }
    fn third(&self) { word.load(Acquire); }
}
";

    fn mutant(within: Option<&str>, old: &str) -> Mutant {
        let within = within.map_or(String::new(), |item| format!("in = {item:?}\n"));
        let text = format!(
            "subject = 's'\nfile = 'f'\n[[mutant]]\nid = 'm'\n{within}old = {old:?}\nnew = 'NEW'\nbreaks = 'b'\n\
             equivalent = 'e'"
        );
        parse(&text).unwrap().remove(0)
    }

    #[test]
    fn a_snippet_applies_once_and_changes_nothing_else() {
        let changed = mutant(None, "word.store(1, Release);").apply(SOURCE).unwrap();
        assert_eq!(changed, SOURCE.replace("word.store(1, Release);", "NEW"));
    }

    #[test]
    fn a_snippet_that_is_there_twice_or_not_at_all_is_refused() {
        assert_eq!(mutant(None, "word.load(Acquire);").apply(SOURCE), Err(Misplaced::Snippet(3)));
        assert_eq!(mutant(None, "word.swap").apply(SOURCE), Err(Misplaced::Snippet(0)));
    }

    #[test]
    fn an_item_narrows_the_search_to_its_own_lines() {
        let changed = mutant(Some("fn second("), "word.load(Acquire);").apply(SOURCE).unwrap();
        assert_eq!(changed.matches("word.load(Acquire);").count(), 2);
        assert!(changed.contains("if self.is_ready() {\n            NEW"));
        let changed = mutant(Some("fn third("), "word.load(Acquire);").apply(SOURCE).unwrap();
        assert!(changed.contains("fn third(&self) { NEW }"));
        assert_eq!(mutant(Some("fn first("), "word.store").apply(SOURCE), Err(Misplaced::Snippet(0)));
        assert_eq!(mutant(Some("fn fourth("), "word").apply(SOURCE), Err(Misplaced::Item(0)));
        assert_eq!(mutant(Some("fn "), "word").apply(SOURCE), Err(Misplaced::Item(3)));
    }

    #[test]
    fn a_mutant_needs_one_verdict_and_a_change() {
        let entry = |rest: &str| {
            parse(&format!(
                "subject = 's'\nfile = 'f'\n[[mutant]]\nid = 'm'\nold = 'a'\nbreaks = 'b'\n{rest}"
            ))
        };
        assert!(entry("new = 'b'\nequivalent = 'e'").is_ok());
        assert!(entry("new = 'b'").is_err());
        assert!(entry("new = 'b'\nequivalent = 'e'\nlitmus = 'l'").is_err());
        assert!(entry("new = 'a'\nequivalent = 'e'").is_err());
        assert!(entry("new = 'b'\nkilled-by = 'two words'").is_err());
        assert!(entry("new = 'b'\nequivalent = 'e'\nspelled-wrong = 1").is_err());
    }
}
