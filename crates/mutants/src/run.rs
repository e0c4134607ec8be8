//! Building the test binaries of a copy, running their tests, and saying what that means for a mutant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::list::{Binary, Mutant, Test, Verdict};
use crate::scratch::{PROFILE_NAME, Scratch};
use crate::weave::{self, VARIABLE, Woven};

/// How long a build may take, and a test that must fail. A test that is expected to hang gets less.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
const TEST_LIMIT: Duration = Duration::from_secs(150);
const BASELINE_LIMIT: Duration = Duration::from_secs(400);
const HANG_LIMIT: Duration = Duration::from_secs(25);

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its test failed, as it should.
    Killed,
    /// Its test did not end, as it should not.
    KilledByTimeout,
    /// Its test passed.
    Survived,
    /// Its test did not end, and the list does not say so.
    TimedOut,
    /// There is no place for it in the source.
    DoesNotApply,
    /// The changed source is no program.
    DoesNotBuild,
    /// The test that should notice it is not there.
    NoSuchTest,
    /// The test that should notice it does not pass without the change either.
    FailsUnchanged,
    /// It is equivalent, or a litmus test's: that it builds is all that was checked.
    Argued,
}

impl Outcome {
    /// Whether that is as it should be.
    pub fn is_good(self) -> bool {
        matches!(self, Outcome::Killed | Outcome::KilledByTimeout | Outcome::Argued)
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Killed => "killed",
            Outcome::KilledByTimeout => "killed (does not end)",
            Outcome::Survived => "survived",
            Outcome::TimedOut => "does not end",
            Outcome::DoesNotApply => "does not apply",
            Outcome::DoesNotBuild => "does not build",
            Outcome::NoSuchTest => "no such test",
            Outcome::FailsUnchanged => "its test fails without a change",
            Outcome::Argued => "argued",
        }
    }
}

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It passed.
    Passed,
    /// It failed, or took its process with it.
    Failed,
    /// It was ended.
    TimedOut,
    /// It is not in the binary.
    Missing,
}

/// Runs `command` for at most `limit`; `None` if it had to be ended, with every process it started.
fn run(command: &mut Command, output: &Path, limit: Duration) -> Result<Option<ExitStatus>> {
    let file = File::create(output).with_context(|| format!("{}", output.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
                // The group is gone already, then: what is left is to wait.
                let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tests to be tried: these of a binary, or all of them.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The binary.
    pub binary: Binary,
    /// Names of tests; none for all.
    pub names: Vec<String>,
}

/// A test binary that was built.
#[derive(Clone, Debug)]
pub struct Built {
    executable: PathBuf,
    folder: PathBuf,
}

#[derive(serde::Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

/// A copy, built and run.
#[derive(Debug)]
struct Copy {
    scratch: Scratch,
}

/// What a program said, and how it ended (not at all, if it had to be ended).
struct Said {
    status: Option<ExitStatus>,
    text: String,
}

impl Said {
    fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl Copy {
    fn run(&self, command: &mut Command, limit: Duration) -> Result<Said> {
        // A file for each thread: they run tests side by side.
        let name = format!("output-{:?}", std::thread::current().id());
        let folder = self.scratch.root().join("target");
        std::fs::create_dir_all(&folder)?;
        let output = folder.join(name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"));
        let status = run(command, &output, limit)?;
        let text = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
        std::fs::remove_file(&output)?;
        Ok(Said { status, text })
    }

    fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(command).args(["--quiet", "--profile", PROFILE_NAME]);
        cargo.current_dir(self.scratch.root());
        // Which toolchain builds is the caller's choice; which package cargo itself was run for is not inherited.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_")
                || text.starts_with("CARGO_PROFILE_")
                || text == "CARGO_MANIFEST_DIR"
            {
                cargo.env_remove(&name);
            }
        }
        cargo.env("CARGO_TARGET_DIR", self.scratch.root().join("target"));
        cargo
    }

    /// Builds a test binary of the copy as it is now; if that fails, what the compiler said.
    fn build(&self, binary: &Binary) -> Result<Result<Built, String>> {
        let mut cargo = self.cargo("test");
        let (package, feature) = binary.package_and_feature();
        cargo.args(["--package", package]);
        cargo.args(feature.iter().flat_map(|feature| ["--features", feature]));
        match binary.target.as_str() {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
        let said = self.run(&mut cargo, BUILD_LIMIT)?;
        if !said.is_success() {
            return Ok(Err(said.text));
        }
        let mut messages = said.text.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
        let built = messages.find_map(|message| {
            let executable = message.executable.filter(|_| message.reason == "compiler-artifact")?;
            Some(Built { executable, folder: message.manifest_path?.parent()?.to_owned() })
        });
        built.map(Ok).with_context(|| format!("{binary}: cargo did not say where the test binary is"))
    }

    /// Whether the copy as it is now compiles at all, as the package of `file`.
    fn compiles(&self, file: &Path) -> Result<bool> {
        let mut folders = file.ancestors().map(|folder| self.scratch.root().join(folder).join("Cargo.toml"));
        let manifest = folders.find(|path| path.exists());
        let manifest = manifest.with_context(|| format!("{}: in which package?", file.display()))?;
        let mut cargo = self.cargo("check");
        Ok(self.run(cargo.arg("--manifest-path").arg(manifest), BUILD_LIMIT)?.is_success())
    }

    /// Runs one test of version `number`.
    fn test(&self, built: &Built, name: &str, number: usize, limit: Duration) -> Result<(Ran, String)> {
        let mut command = Command::new(&built.executable);
        command.args(["--exact", name, "--test-threads=1"]).current_dir(&built.folder);
        command.env_remove("MODEL_PREEMPTIONS").env(VARIABLE, number.to_string());
        let said = self.run(&mut command, limit)?;
        let ran = match said.status {
            None => Ran::TimedOut,
            Some(status) if !status.success() => Ran::Failed,
            Some(_) if said.text.contains("running 1 test\n") => Ran::Passed,
            Some(_) => Ran::Missing,
        };
        Ok((ran, said.text))
    }

    /// The names of all tests of a binary.
    fn tests(&self, built: &Built) -> Result<Vec<String>> {
        let mut command = Command::new(&built.executable);
        let said = self.run(command.arg("--list").current_dir(&built.folder), TEST_LIMIT)?;
        Ok(said.text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect())
    }
}

/// Every mutant that was chosen, ready to be tried.
#[derive(Debug)]
pub struct Bench {
    /// Has all versions of every function.
    woven: Copy,
    /// Is changed for one mutant at a time.
    alone: Copy,
    built: BTreeMap<Binary, Built>,
    /// By number.
    mutants: BTreeMap<usize, Mutant>,
    needs_its_own_build: BTreeSet<usize>,
    does_not_build: BTreeSet<usize>,
}

impl Bench {
    /// Copies the workspace `source` below `root`, weaves the mutants into the copy, and builds `binaries`.
    ///
    /// # Errors
    /// If the source does not build without a change, or a file cannot be read or written.
    pub fn new(
        source: &Path,
        root: &Path,
        mutants: BTreeMap<usize, Mutant>,
        binaries: &BTreeSet<Binary>,
        progress: impl Fn(&str),
    ) -> Result<Self> {
        let mut bench = Self {
            woven: Copy { scratch: Scratch::new(source, &root.join("woven"))? },
            alone: Copy { scratch: Scratch::new(source, &root.join("alone"))? },
            built: BTreeMap::new(),
            mutants,
            needs_its_own_build: BTreeSet::new(),
            does_not_build: BTreeSet::new(),
        };
        let mut woven = bench.weave()?;
        for binary in binaries {
            progress(&format!("building {binary}"));
            loop {
                let said = match bench.woven.build(binary)? {
                    Ok(built) => {
                        bench.built.insert(binary.clone(), built);
                        break;
                    }
                    Err(said) => said,
                };
                let blamed = woven.blamed(&said);
                if blamed.is_empty() {
                    bail!("{binary} does not build, and no mutant is to blame:\n{said}");
                }
                bench.does_not_build.extend(blamed);
                woven = bench.weave()?;
            }
        }
        Ok(bench)
    }

    fn weave(&mut self) -> Result<Woven> {
        let scratch = &self.woven.scratch;
        let fit = self.mutants.iter().filter(|(number, _)| !self.does_not_build.contains(number));
        let fit: Vec<(usize, &Mutant)> = fit.map(|(&number, mutant)| (number, mutant)).collect();
        let mut woven = weave::weave(&fit, |file| scratch.original(file).ok());
        let files: Vec<PathBuf> = woven.files.keys().cloned().collect();
        for file in files {
            let package = file.ancestors().find(|folder| folder.ends_with("src"));
            let root =
                package.with_context(|| format!("{} is not below src/", file.display()))?.join("lib.rs");
            if !woven.files.get(&root).is_some_and(|text| text.ends_with(weave::SWITCH)) {
                let text = match woven.files.remove(&root) {
                    Some(text) => text,
                    None => scratch.original(&root)?,
                };
                woven.files.insert(root, text + weave::SWITCH);
            }
        }
        for (file, text) in &woven.files {
            scratch.write(file, text.as_bytes())?;
        }
        self.needs_its_own_build = woven.alone.iter().copied().collect();
        Ok(woven)
    }

    /// Mutants that have to be built one by one.
    pub fn needs_its_own_build(&self, number: usize) -> bool {
        self.needs_its_own_build.contains(&number)
    }

    fn built(&self, binary: &Binary) -> Result<&Built> {
        self.built.get(binary).with_context(|| format!("{binary} was not built"))
    }

    /// Runs a test on the source without a change.
    ///
    /// # Errors
    /// If the test binary cannot be run.
    pub fn unchanged(&self, test: &Test) -> Result<Ran> {
        Ok(self.woven.test(self.built(&test.binary)?, &test.name, 0, BASELINE_LIMIT)?.0)
    }

    /// Looks whether the test of mutant `number` notices it. Of those that need their own build, one at a time.
    ///
    /// # Errors
    /// If something other than the mutant is wrong.
    pub fn judge(&self, number: usize) -> Result<Outcome> {
        let mutant = self.mutants.get(&number).context("no such mutant")?;
        if mutant.place(&self.woven.scratch.original(&mutant.file)?).is_err() {
            return Ok(Outcome::DoesNotApply);
        }
        if self.does_not_build.contains(&number) {
            return Ok(Outcome::DoesNotBuild);
        }
        let limit = if mutant.hang { HANG_LIMIT } else { TEST_LIMIT };
        let Verdict::Killed(test) = &mutant.verdict else {
            if !self.needs_its_own_build(number) {
                return Ok(Outcome::Argued);
            }
            let compiles = self.alone.scratch.with(mutant, || self.alone.compiles(&mutant.file))?;
            return Ok(if compiles == Some(true) { Outcome::Argued } else { Outcome::DoesNotBuild });
        };
        let ran = if self.needs_its_own_build(number) {
            let ran = self.alone.scratch.with(mutant, || {
                let Ok(built) = self.alone.build(&test.binary)? else { return Ok(None) };
                Ok(Some(self.alone.test(&built, &test.name, 0, limit)?.0))
            })?;
            let Some(ran) = ran.flatten() else { return Ok(Outcome::DoesNotBuild) };
            ran
        } else {
            self.woven.test(self.built(&test.binary)?, &test.name, number, limit)?.0
        };
        Ok(match ran {
            Ran::Passed => Outcome::Survived,
            Ran::Failed => Outcome::Killed,
            Ran::TimedOut if mutant.hang => Outcome::KilledByTimeout,
            Ran::TimedOut => Outcome::TimedOut,
            Ran::Missing => Outcome::NoSuchTest,
        })
    }

    /// Which of the candidates notice mutant `number`; the first one alone, if that is enough.
    ///
    /// # Errors
    /// If something other than the mutant is wrong.
    pub fn search(
        &self,
        number: usize,
        candidates: &[Candidates],
        limit: Duration,
        is_one_enough: bool,
    ) -> Result<Vec<(Test, Ran, Duration)>> {
        let mutant = self.mutants.get(&number).context("no such mutant")?;
        if self.does_not_build.contains(&number) {
            bail!("does not build");
        }
        let mut found = Vec::new();
        let mut search = || {
            for Candidates { binary, names } in candidates {
                let own;
                let (copy, built) = if self.needs_its_own_build(number) {
                    own = self
                        .alone
                        .build(binary)?
                        .map_err(|said| anyhow::anyhow!("does not build: {said}"))?;
                    (&self.alone, &own)
                } else {
                    (&self.woven, self.built(binary)?)
                };
                let names = if names.is_empty() { copy.tests(built)? } else { names.clone() };
                for name in names {
                    let began = Instant::now();
                    let (ran, _) = copy.test(built, &name, number, limit)?;
                    if ran != Ran::Passed {
                        found.push((Test { binary: binary.clone(), name }, ran, began.elapsed()));
                    }
                    if ran == Ran::Failed && is_one_enough {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        if self.needs_its_own_build(number) {
            self.alone.scratch.with(mutant, search)?.context("does not apply")?;
        } else {
            search()?;
        }
        Ok(found)
    }
}
