//! Tries the mutants of the list on a copy of the workspace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pagefold_mutants::list::{self, Binary, Mutant, Test, Verdict};
use pagefold_mutants::run::{Bench, Candidates, Outcome, Ran};
use pagefold_mutants::{litmus, table};
use serde::Serialize;

/// Changes the engine's source at one place at a time, in a copy below target/, and sees that a test notices.
///
/// Exit code 0 if every mutant that was tried is noticed by the test that the list names (or is argued there to be
/// equivalent, or a litmus test's), 1 if one is not, or has no place in the source any more.
#[derive(Parser)]
struct Arguments {
    /// Only these mutants, or those of these subjects.
    #[arg(long, num_args = 1..)]
    only: Vec<String>,
    /// The Nth of M shares of the list, as N/M.
    #[arg(long, value_parser = share)]
    share: Option<(usize, usize)>,
    /// In an order that this number decides, so that a budget ends at other mutants each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Begin no mutant after so many seconds of trying; building comes before.
    #[arg(long, value_parser = seconds)]
    budget: Option<Duration>,
    /// See only that each mutant has exactly one place in the source.
    #[arg(long)]
    check: bool,
    /// Print the tables of docs/verification.md, or write them there with --docs.
    #[arg(long)]
    tables: bool,
    /// Put the tables into docs/verification.md.
    #[arg(long)]
    docs: bool,
    /// Instead of the tests that the list names, run these (as "package target test", or "package target" for all tests
    /// of a binary), and say which notice.
    #[arg(long, num_args = 1.., value_parser = candidates)]
    against: Vec<Candidates>,
    /// With --against: one test that notices is enough.
    #[arg(long)]
    first: bool,
    /// With --against: the longest that one test may take.
    #[arg(long, value_parser = seconds, default_value = "20")]
    limit: Duration,
    /// Print every result as JSON.
    #[arg(long)]
    json: bool,
    /// Copies that are worked on at the same time.
    #[arg(long, default_value_t = default_jobs())]
    jobs: usize,
    /// The workspace.
    #[arg(long, default_value_os_t = pagefold_mutants::workspace())]
    root: PathBuf,
    /// Where the copies lie; target/mutants in the workspace if nothing else is said. One run at a time.
    #[arg(long)]
    scratch: Option<PathBuf>,
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

fn share(text: &str) -> Result<(usize, usize)> {
    let (number, of) = text.split_once('/').context("write N/M")?;
    let (number, of) = (number.parse()?, of.parse()?);
    ensure!(1 <= number && number <= of, "N must be from 1 to M");
    Ok((number, of))
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs(text.strip_suffix('s').unwrap_or(text).parse()?))
}

fn candidates(text: &str) -> Result<Candidates> {
    let mut words = text.split_whitespace().map(str::to_owned);
    let (package, target) = words.next().zip(words.next()).context("write \"package target\"")?;
    Ok(Candidates { binary: Binary { package, target }, names: words.collect() })
}

/// What became of one mutant.
#[derive(Serialize)]
struct Report {
    id: String,
    subject: String,
    outcome: Outcome,
    seconds: f64,
    test: Option<String>,
}

fn main() -> ExitCode {
    match try_main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pagefold-mutants: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn try_main() -> Result<bool> {
    let arguments = Arguments::parse();
    let all = list::read(&arguments.root)?;
    if arguments.tables || arguments.docs {
        return documentation(&arguments, &all);
    }
    if arguments.check {
        return check(&arguments, &all);
    }
    let mutants = select(&arguments, &all)?;
    if !arguments.against.is_empty() {
        return against(&arguments, &mutants);
    }
    let began = Instant::now();
    let reports = judge(&arguments, &mutants)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        print(&reports, all.len(), began.elapsed());
    }
    Ok(reports.iter().all(|report| report.outcome.is_good()))
}

fn documentation(arguments: &Arguments, all: &[Mutant]) -> Result<bool> {
    let tables = table::documentation(all);
    if !arguments.docs {
        print!("{tables}");
        return Ok(true);
    }
    let path = arguments.root.join("docs/verification.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let text = table::put_into(&text, &tables).context("docs/verification.md has no place for the tables")?;
    std::fs::write(&path, text)?;
    Ok(true)
}

/// Whether every mutant has its place, and every litmus test that is named is there.
fn check(arguments: &Arguments, all: &[Mutant]) -> Result<bool> {
    let misplaced = list::check(&arguments.root, all)?;
    for (mutant, why) in &misplaced {
        println!("{} ({}): {why}", mutant.id, mutant.file.display());
    }
    let mut missing = 0;
    for mutant in all {
        if let Verdict::Litmus(name) = &mutant.verdict
            && !arguments.root.join(litmus::FOLDER).join(name).with_extension("litmus").exists()
        {
            println!("{}: there is no litmus test {name}", mutant.id);
            missing += 1;
        }
    }
    println!("{} mutants, {} of them without a place", all.len(), misplaced.len());
    Ok(misplaced.is_empty() && missing == 0)
}

/// The mutants to be tried, with their numbers, in the order in which they are.
fn select(arguments: &Arguments, all: &[Mutant]) -> Result<Vec<(usize, Mutant)>> {
    for name in &arguments.only {
        if !all.iter().any(|mutant| mutant.id == *name || mutant.subject == *name) {
            bail!("there is no mutant and no subject called {name:?}");
        }
    }
    let is_wanted = |mutant: &Mutant| {
        arguments.only.is_empty()
            || arguments.only.iter().any(|name| *name == mutant.id || *name == mutant.subject)
    };
    let mut mutants: Vec<(usize, Mutant)> = (1..)
        .zip(all)
        .filter(|(_, mutant)| is_wanted(mutant))
        .map(|(number, mutant)| (number, mutant.clone()))
        .collect();
    if let Some((number, of)) = arguments.share {
        let mut place = 0;
        mutants.retain(|_| {
            place += 1;
            place % of == number % of
        });
    }
    match arguments.seed {
        Some(seed) => fastrand::Rng::with_seed(seed).shuffle(&mut mutants),
        // What has to be built alone follows on its like: fewer builds.
        None => mutants.sort_by(|(_, one), (_, other)| test_of(one).cmp(&test_of(other))),
    }
    Ok(mutants)
}

fn test_of(mutant: &Mutant) -> Option<&Test> {
    match &mutant.verdict {
        Verdict::Killed(test) => Some(test),
        _ => None,
    }
}

/// A line on the terminal that the next one overwrites.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        // Only a comfort.
        let _flushed = std::io::stderr().flush();
    }
}

/// Everything ready: the copies, the mutants in them, and the test binaries.
fn bench(arguments: &Arguments, mutants: &[(usize, Mutant)], binaries: &BTreeSet<Binary>) -> Result<Bench> {
    let root = std::path::absolute(
        arguments.scratch.clone().unwrap_or_else(|| arguments.root.join("target/mutants")),
    )?;
    Bench::new(&arguments.root, &root, mutants.iter().cloned().collect(), binaries, progress)
}

fn judge(arguments: &Arguments, mutants: &[(usize, Mutant)]) -> Result<Vec<Report>> {
    let tests: BTreeSet<&Test> = mutants.iter().filter_map(|(_, mutant)| test_of(mutant)).collect();
    let bench = bench(arguments, mutants, &tests.iter().map(|test| test.binary.clone()).collect())?;
    // From here on: a slow build must not leave all of them out.
    let end = arguments.budget.map(|budget| Instant::now() + budget);
    let is_over = || end.is_some_and(|end| Instant::now() >= end);
    // With a budget, tests are tried on the unchanged source as they come up; without one, all of them first.
    let unchanged: Mutex<BTreeMap<Test, bool>> = Mutex::default();
    let passes_unchanged = |test: &Test| -> Result<bool> {
        if let Some(&passes) = lock(&unchanged).get(test) {
            return Ok(passes);
        }
        // That a test is not there is told with the mutants that name it.
        let passes = matches!(bench.unchanged(test)?, Ran::Passed | Ran::Missing);
        lock(&unchanged).insert(test.clone(), passes);
        Ok(passes)
    };
    if end.is_none() {
        let queue = Mutex::new(tests.into_iter().collect::<VecDeque<_>>());
        in_parallel(arguments.jobs, || {
            loop {
                let Some(test) = lock(&queue).pop_front() else { return Ok(()) };
                progress(&format!("without a change: {test}"));
                passes_unchanged(test)?;
            }
        })?;
    }
    // Those that have to be built are one thread's at a time: there is one copy for them.
    let (own, shared): (VecDeque<_>, VecDeque<_>) =
        mutants.iter().partition(|(number, _)| bench.needs_its_own_build(*number));
    let (own, shared) = (Mutex::new(own), Mutex::new(shared));
    let builds = Mutex::new(());
    let reports = Mutex::new(Vec::new());
    in_parallel(arguments.jobs, || {
        while !is_over() {
            let guard = builds.try_lock().ok();
            let next = guard.as_ref().and_then(|_| lock(&own).pop_front());
            let guard = guard.filter(|_| next.is_some());
            let Some((number, mutant)) = next.or_else(|| lock(&shared).pop_front()) else { break };
            let passes = test_of(mutant).map_or(Ok(true), &passes_unchanged)?;
            let began = Instant::now();
            let outcome = match passes {
                true => bench.judge(*number).with_context(|| mutant.id.clone())?,
                false => Outcome::FailsUnchanged,
            };
            drop(guard);
            let mut reports = lock(&reports);
            reports.push(Report {
                id: mutant.id.clone(),
                subject: mutant.subject.clone(),
                outcome,
                seconds: began.elapsed().as_secs_f64(),
                test: test_of(mutant).map(ToString::to_string),
            });
            progress(&format!("{}/{} {}: {}", reports.len(), mutants.len(), mutant.id, outcome.name()));
        }
        Ok(())
    })?;
    progress("");
    let mut reports = reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    reports.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(reports)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn in_parallel(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a thread of this tool panicked"),
        })
    })
}

fn print(reports: &[Report], all: usize, took: Duration) {
    let mut counts: BTreeMap<Outcome, usize> = BTreeMap::new();
    for report in reports {
        *counts.entry(report.outcome).or_default() += 1;
        if !report.outcome.is_good() {
            let test = report.test.as_deref().unwrap_or("no test");
            println!("{:<44} {} ({test})", report.id, report.outcome.name());
        }
    }
    let counts: Vec<String> =
        counts.iter().map(|(outcome, count)| format!("{count} {}", outcome.name())).collect();
    println!("{} of {all} mutants in {} s: {}", reports.len(), took.as_secs(), counts.join(", "));
}

fn against(arguments: &Arguments, mutants: &[(usize, Mutant)]) -> Result<bool> {
    let binaries = arguments.against.iter().map(|candidates| candidates.binary.clone()).collect();
    let bench = bench(arguments, mutants, &binaries)?;
    let queue = Mutex::new(mutants.iter().collect::<VecDeque<_>>());
    let builds = Mutex::new(());
    let are_all_noticed = Mutex::new(true);
    in_parallel(arguments.jobs, || {
        loop {
            let Some((number, mutant)) = lock(&queue).pop_front() else { return Ok(()) };
            let guard = bench.needs_its_own_build(*number).then(|| lock(&builds));
            let found = bench.search(*number, &arguments.against, arguments.limit, arguments.first);
            drop(guard);
            let text = match found {
                Err(error) => format!("{}: {error:#}\n", mutant.id),
                Ok(found) => {
                    *lock(&are_all_noticed) &= !found.is_empty();
                    let mut text = format!("{}: {} tests notice\n", mutant.id, found.len());
                    for (test, ran, took) in found {
                        text += &format!("    {test} {ran:?} {:.2} s\n", took.as_secs_f64());
                    }
                    text
                }
            };
            print!("{text}");
            // Seen at once, also in a file.
            std::io::stdout().flush()?;
        }
    })?;
    Ok(*lock(&are_all_noticed))
}
