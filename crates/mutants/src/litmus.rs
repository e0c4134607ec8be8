//! Litmus tests: small programs whose outcomes the architecture's own memory model decides (by herd7).
//!
//! A test is a `.litmus` file that says in a comment what is to come out:
//!
//! ```text
//! AArch64 sb-fence
//! (* verdict: forbidden *)
//! ```
//!
//! `forbidden` is an outcome that no execution has, `allowed` one that some executions have, `required` one that all
//! have. A comment `(* options: ... *)` passes options to herd7, and `(* flag: ... *)` names a flag that herd7 must
//! raise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Where they lie in the workspace.
pub const FOLDER: &str = "crates/model/litmus";
/// Where the setup script puts herd7.
pub const HERD: &str = "target/herd/root";

/// A flag of Arm's model that says what we assume as well: all CPUs share memory.
const ASSUMED: &str = "Assuming-common-inner-shareable-domain";

/// What comes out of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Never.
    Forbidden,
    /// Sometimes.
    Allowed,
    /// Always.
    Required,
}

/// One test.
#[derive(Clone, Debug)]
pub struct Litmus {
    /// The path below the folder, without its ending.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What must come out.
    pub expected: Expected,
    /// For herd7.
    pub options: Vec<String>,
    /// Flags that herd7 must raise; no others may be raised.
    pub flags: Vec<String>,
}

fn comments<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    let parts = text.split("(*").skip(1).filter_map(|part| part.split_once("*)"));
    parts
        .filter_map(|(comment, _)| comment.trim().strip_prefix(key)?.strip_prefix(':').map(str::trim))
        .collect()
}

impl Litmus {
    /// # Errors
    /// If the test does not say what is to come out.
    pub fn parse(name: String, path: PathBuf, text: &str) -> Result<Self> {
        let expected = match comments(text, "verdict")[..] {
            ["forbidden"] => Expected::Forbidden,
            ["allowed"] => Expected::Allowed,
            ["required"] => Expected::Required,
            ref other => {
                bail!("{name}: the verdict must be forbidden, allowed or required, once; it is {other:?}")
            }
        };
        let words = |key| {
            let words = comments(text, key).into_iter().flat_map(str::split_whitespace);
            words.map(str::to_owned).collect()
        };
        Ok(Self { name, path, expected, options: words("options"), flags: words("flag") })
    }
}

/// All tests below `folder`, in the order of their names.
///
/// # Errors
/// If one cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Litmus>> {
    let mut tests = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(&below).with_context(|| format!("{}", below.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "litmus") {
                let name = path.strip_prefix(folder)?.with_extension("").to_string_lossy().into_owned();
                let text = fs::read_to_string(&path)?;
                tests.push(Litmus::parse(name, path, &text)?);
            }
        }
    }
    tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tests)
}

/// herd7 below `root`, started with the C library that was unpacked beside it; `None` if it is not there.
pub fn herd(root: &Path) -> Option<Command> {
    let loader = root.join("usr/lib64/ld-linux-x86-64.so.2");
    let herd = root.join("usr/bin/herd7");
    if !loader.exists() || !herd.exists() {
        return None;
    }
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu")).arg(herd);
    command.arg("-set-libdir").arg(root.join("usr/share/herdtools7/herd"));
    Some(command)
}

/// What herd7 said: what came out, and the flags it raised.
///
/// # Errors
/// If it said nothing of that.
pub fn observed(said: &str) -> Result<(Expected, Vec<String>)> {
    let line = said.lines().find(|line| line.starts_with("Observation "));
    let word = line.and_then(|line| line.split_whitespace().nth(2));
    let flags = said.lines().filter_map(|line| line.strip_prefix("Flag ")).map(str::trim);
    let flags = flags.filter(|flag| *flag != ASSUMED).map(str::to_owned);
    let seen = match word {
        Some("Never") => Expected::Forbidden,
        Some("Sometimes") => Expected::Allowed,
        Some("Always") => Expected::Required,
        _ => bail!("herd7 did not say what it observed:\n{said}"),
    };
    Ok((seen, flags.collect()))
}

/// Runs one test; why it failed, if it did.
///
/// # Errors
/// If herd7 cannot be run, or does not understand the test.
pub fn run(mut herd: Command, test: &Litmus) -> Result<Option<String>> {
    herd.args(&test.options).arg(&test.path);
    let output = herd.output().with_context(|| format!("{herd:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", test.name);
    let (seen, flags) = observed(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{}: {errors}", test.name))?;
    if seen != test.expected {
        return Ok(Some(format!("expected {:?}, herd7 says {seen:?}", test.expected)));
    }
    if flags != test.flags {
        return Ok(Some(format!("expected the flags {:?}, herd7 raises {flags:?}", test.flags)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Litmus> {
        Litmus::parse("t".into(), "t.litmus".into(), text)
    }

    #[test]
    fn a_test_says_what_is_to_come_out() {
        let test =
            parse("AArch64 t\n(* verdict: allowed *)\n(* options: -variant vmsa *) (* flag: f *)").unwrap();
        assert_eq!(
            (test.expected, test.options.len(), &test.flags[..]),
            (Expected::Allowed, 2, &["f".to_owned()][..])
        );
        assert!(parse("AArch64 t").is_err());
        assert!(parse("(* verdict: allowed *) (* verdict: forbidden *)").is_err());
    }

    #[test]
    fn what_herd_says_is_read() {
        let said = "Test t Allowed\nFlag requires-BBM\nObservation t Sometimes 1 3\n";
        assert_eq!(observed(said).unwrap(), (Expected::Allowed, vec!["requires-BBM".into()]));
        assert_eq!(observed("Observation t Never 0 3\n").unwrap(), (Expected::Forbidden, vec![]));
        let assumed = format!("Flag {ASSUMED}\nObservation t Always 3 0\n");
        assert_eq!(observed(&assumed).unwrap(), (Expected::Required, vec![]));
        assert!(observed("Warning: nothing").is_err());
    }
}
