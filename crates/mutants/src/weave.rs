//! Many mutants in one copy: each function that mutants change gets their versions of its body beside its own, and the
//! environment says which one runs. So the copy is built once for all of them. The product's source has no such
//! switches, only the copy.
//!
//! A mutant that changes something other than the body of a plain function (a constant function, one that returns an
//! `impl Trait`) cannot stand beside others; it is built alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::list::Mutant;

/// The variable that names the version that runs.
pub const VARIABLE: &str = "PAGEFOLD_MUTANT";

/// What is added to the root of a crate whose functions have several versions.
pub const SWITCH: &str = r#"
extern crate std as mutant_std;
pub(crate) mod mutant {
    use crate::mutant_std::{env, sync::OnceLock};
    static CHOSEN: OnceLock<usize> = OnceLock::new();
    pub(crate) fn is(number: usize) -> bool {
        let chosen = || env::var("PAGEFOLD_MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        *CHOSEN.get_or_init(chosen) == number
    }
}
"#;

/// Sources with every version in them.
#[derive(Debug, Default)]
pub struct Woven {
    /// The files that change.
    pub files: BTreeMap<PathBuf, String>,
    /// In which file, and from which line to which, the version with a number stands.
    places: Vec<(usize, PathBuf, Range<usize>)>,
    /// Mutants (by number) that have to be built alone.
    pub alone: Vec<usize>,
}

/// A body, and its versions by the numbers of their mutants.
type Versions = (Range<usize>, Vec<(usize, String)>);

/// A function: where it begins, and what lies between its brackets.
struct Function {
    header: Range<usize>,
    body: Range<usize>,
}

/// The function around `place`.
fn function_around(source: &str, place: &Range<usize>) -> Option<Function> {
    let starts: Vec<usize> =
        std::iter::once(0).chain(source.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
    let line = |index: usize| {
        let start = starts[index];
        &source[start..starts.get(index + 1).map_or(source.len(), |next| next - 1)]
    };
    let indent = |text: &str| text.len() - text.trim_start_matches(' ').len();
    let at = starts.partition_point(|&start| start <= place.start) - 1;
    let is_header = |text: &str| {
        let text = text.trim_start();
        let words = ["pub(crate) ", "pub(super) ", "pub ", "const ", "unsafe "];
        let text = words.iter().fold(text, |text, word| text.strip_prefix(word).unwrap_or(text));
        text.starts_with("fn ")
    };
    let first = (0..=at).rev().find(|&index| is_header(line(index)))?;
    let depth = indent(line(first));
    let close = (first + 1..starts.len()).find(|&index| {
        let text = line(index);
        indent(text) == depth && text.trim_end() == format!("{}}}", " ".repeat(depth))
    })?;
    let open = (first..close).find(|&index| {
        let text = line(index);
        indent(text) == depth && text.trim_end().ends_with('{')
    })?;
    let body = starts[open] + line(open).trim_end().len()..starts[close];
    let is_inside = body.start <= place.start && place.end <= body.end;
    is_inside.then_some(Function { header: starts[first]..body.start, body })
}

/// Weaves `mutants` (numbered from 1) into the sources that `read` gives. Those that have no place are left out.
pub fn weave(mutants: &[(usize, &Mutant)], mut read: impl FnMut(&Path) -> Option<String>) -> Woven {
    let mut woven = Woven::default();
    let mut by_file: BTreeMap<&Path, Vec<(usize, &Mutant)>> = BTreeMap::new();
    for &(number, mutant) in mutants {
        by_file.entry(&mutant.file).or_default().push((number, mutant));
    }
    for (file, mutants) in by_file {
        let Some(source) = read(file) else { continue };
        // Functions by where their bodies begin, with the versions of each.
        let mut functions: BTreeMap<usize, Versions> = BTreeMap::new();
        for (number, mutant) in mutants {
            let Ok(place) = mutant.place(&source) else { continue };
            let function = function_around(&source, &place).filter(|function| {
                let header = &source[function.header.clone()];
                !header.contains("const fn")
                    && !header.contains("impl Iterator")
                    && !header.contains("impl ExactSize")
            });
            let Some(Function { body, .. }) = function else {
                woven.alone.push(number);
                continue;
            };
            let version =
                [&source[body.start..place.start], &mutant.new, &source[place.end..body.end]].concat();
            functions.entry(body.start).or_insert_with(|| (body, Vec::new())).1.push((number, version));
        }
        let mut text = String::new();
        let mut copied = 0;
        for (body, versions) in functions.into_values() {
            text.push_str(&source[copied..body.start]);
            for (number, version) in versions {
                _ = write!(text, "\nif crate::mutant::is({number}) {{");
                let first = text.matches('\n').count() + 1;
                text.push_str(&version);
                let last = text.matches('\n').count() + 1;
                text.push_str("\n} else");
                woven.places.push((number, file.to_owned(), first..last + 1));
            }
            text.push_str(" {");
            text.push_str(&source[body.clone()]);
            text.push_str("\n}\n");
            copied = body.end;
        }
        text.push_str(&source[copied..]);
        woven.files.insert(file.to_owned(), text);
    }
    woven
}

impl Woven {
    /// The versions that a compiler's messages point at.
    pub fn blamed(&self, said: &str) -> Vec<usize> {
        let mut blamed = Vec::new();
        let mut in_error = false;
        for message in said.lines() {
            if message.starts_with("error") || message.starts_with("warning") {
                in_error = message.starts_with("error");
            }
            let Some(place) = message.trim_start().strip_prefix("--> ").filter(|_| in_error) else {
                continue;
            };
            let mut parts = place.rsplitn(3, ':').skip(1);
            let (Some(line), Some(path)) = (parts.next(), parts.next()) else { continue };
            let Ok(line) = line.parse::<usize>() else { continue };
            let hit = self.places.iter().filter(|(_, file, lines)| {
                lines.contains(&line) && normal(path).ends_with(file.to_string_lossy().as_ref())
            });
            blamed.extend(hit.map(|&(number, ..)| number));
        }
        blamed.sort_unstable();
        blamed.dedup();
        blamed
    }
}

/// `crates/model/../engine` is `crates/engine`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." if !parts.is_empty() => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
impl Thing {
    pub(crate) fn get(
        &self,
        at: u64,
    ) -> u64
    where
        Self: Sized,
    {
        self.load(at)
    }

    const fn fixed() -> u64 {
        17
    }
    fn many(&self) -> impl Iterator<Item = u64> {
        0..17
    }
}
fn main() {
    if true {
        start(1);
    }
    start(2);
}
";

    fn mutants(changes: &[(&str, &str)]) -> Vec<Mutant> {
        let mut text = String::from("subject = 's'\nfile = 'f.rs'\n");
        for (number, (old, new)) in changes.iter().enumerate() {
            text += &format!(
                "[[mutant]]\nid = 'm{number}'\nold = {old:?}\nnew = {new:?}\nbreaks = 'b'\nequivalent = 'e'\n"
            );
        }
        crate::list::parse(&text).unwrap()
    }

    fn weave_all(mutants: &[Mutant]) -> Woven {
        let numbered: Vec<_> =
            mutants.iter().enumerate().map(|(index, mutant)| (index + 1, mutant)).collect();
        weave(&numbered, |_| Some(SOURCE.to_owned()))
    }

    #[test]
    fn every_version_of_a_body_stands_beside_the_others() {
        let woven =
            weave_all(&mutants(&[("load(at)", "load(0)"), ("start(1)", "stop(1)"), ("start(2);", "")]));
        let text = &woven.files[Path::new("f.rs")];
        assert!(woven.alone.is_empty());
        assert!(text.contains("    {\nif crate::mutant::is(1) {\n        self.load(0)\n"), "{text}");
        assert!(text.contains("} else {\n        self.load(at)\n"), "{text}");
        assert!(text.contains("if crate::mutant::is(2) {\n    if true {\n        stop(1);"), "{text}");
        assert!(
            text.contains(
                "} else\nif crate::mutant::is(3) {\n    if true {\n        start(1);\n    }\n    \n"
            ),
            "{text}"
        );
        assert!(text.ends_with("}\n}\n"), "{text}");
    }

    #[test]
    fn what_cannot_stand_beside_others_is_built_alone() {
        let woven = weave_all(&mutants(&[
            ("17\n    }\n    fn many", "18"),
            ("0..17", "0..18"),
            ("at: u64", "at: u8"),
        ]));
        assert_eq!(woven.alone, [1, 2, 3]);
        let source = SOURCE.replace("        17", "        seventeen");
        let one = mutants(&[("seventeen", "18")]);
        assert_eq!(weave(&[(1, &one[0])], |_| Some(source.clone())).alone, [1]);
    }

    #[test]
    fn a_version_that_does_not_compile_is_found() {
        let woven = weave_all(&mutants(&[("load(at)", "load(0)"), ("start(1)", "stop(1)")]));
        let line =
            woven.files[Path::new("f.rs")].lines().position(|line| line.contains("stop(1)")).unwrap() + 1;
        let said = format!("warning: x\n   --> f.rs:9:1\nerror[E0425]: x\n   --> a/../f.rs:{line}:9\n");
        assert_eq!(woven.blamed(&said), [2]);
        assert!(woven.blamed("error: could not compile").is_empty());
    }
}
