//! Random programs over the engine's safe calls, on several threads, with failures at every allocation: no such program
//! breaks a promise.
//!
//! A program is a value that a seed makes ([`generate`]): what it runs on, and a list of steps of two or three threads.
//! Half of the programs run one step after the other, so that all that is answered can be foretold and a failure repeats;
//! the others run their threads at once. Owners seal what is theirs, and a ledger beside the engine knows which pages are
//! whose ([`ledger`]). Memory runs out, and folds are refused, wherever a program says so ([`failing`]). At the end
//! everything is dropped but what was forgotten, and the machine must be as empty as that leaves it ([`run`]).
//!
//! * `PAGEFOLD_PROGRAMS=100000` runs so many programs; without it about a minute's worth.
//! * `PAGEFOLD_PROGRAM_SEED=...` runs the program of that seed, many times if its threads run at once.
//!
//! A program that fails is made smaller and printed ([`shrink`]). One that hangs is printed by a watchdog.

mod actor;
mod blocks;
mod failing;
mod folding;
mod generate;
mod ledger;
mod looking;
mod owners;
mod program;
mod run;
mod shrink;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use generate::Random;
use pagefold_engine::Config;
use pagefold_engine::platform::TableKind;
use program::{Program, Schedule};
use run::Pulse;

#[global_allocator]
static ALLOCATOR: failing::Heap = failing::Heap;

/// Programs that run where nobody says how many: about a minute's worth.
const PROGRAMS: u64 = 20_000;
/// How often a program whose threads run at once is run to see whether it fails.
const ATTEMPTS: usize = 60;
/// A program without a step for so long hangs. Nothing but a hang takes as long, on whatever machine.
const DEADLINE: Duration = Duration::from_secs(300);
/// Programs that run at the same time.
const WORKERS: usize = 2;

/// The seeds that are running, for when the process dies of one of them.
static RUNNING: [AtomicU64; WORKERS] = [const { AtomicU64::new(0) }; WORKERS];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let hexadecimal = text.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
    Some(
        hexadecimal
            .unwrap_or_else(|| text.parse())
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Says something, whoever captures what tests print.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What one worker is at, for the watchdog.
#[derive(Default)]
struct Worker {
    pulse: Pulse,
    program: Mutex<Option<(u64, Program)>>,
}

impl Worker {
    /// How the program fails, if it does within so many attempts.
    fn fails(&self, seed: u64, program: &Program, attempts: usize) -> Option<String> {
        *self.program.lock().unwrap() = Some((seed, program.clone()));
        let attempts = if program.setup.schedule == Schedule::Turns { 1 } else { attempts };
        let wrong = (0..attempts).find_map(|_| {
            self.pulse.beat();
            run::run(program, &self.pulse).err()
        });
        *self.program.lock().unwrap() = None;
        wrong
    }
}

/// Ends the process with a listing when a worker has not made a step for too long.
fn watch(workers: Vec<Arc<Worker>>, is_over: Arc<AtomicBool>) {
    let second = Duration::from_secs(1);
    let mut quiet = vec![(0, Duration::ZERO); workers.len()];
    while !is_over.load(SeqCst) {
        std::thread::sleep(second);
        for (worker, (last, since)) in workers.iter().zip(&mut quiet) {
            let beats = worker.pulse.beats.load(SeqCst);
            let Some((seed, program)) = worker.program.lock().unwrap().clone() else { continue };
            *since = if beats == *last { *since + second } else { Duration::ZERO };
            *last = beats;
            if *since >= DEADLINE {
                say(&format!("\nPAGEFOLD_PROGRAM_SEED={seed:#x} hangs:\n{program}"));
                std::process::exit(101);
            }
        }
    }
}

/// Says which programs were running when the process dies of a signal.
fn name_the_dead() {
    extern "C" fn dies(_: libc::c_int) {
        for running in &RUNNING {
            // Nothing here allocates or locks.
            let mut line = *b"\nPAGEFOLD_PROGRAM_SEED=0x0000000000000000 was running\n";
            let seed = running.load(SeqCst);
            for (at, digit) in line[25..41].iter_mut().enumerate() {
                *digit = b"0123456789abcdef"[(seed >> (60 - 4 * at) & 15) as usize];
            }
            // SAFETY: a write of our own bytes.
            unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
        }
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL] {
        // SAFETY: the handler only calls what may be called in one; afterwards the signal does what it always does.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = dies as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Runs the programs of these seeds. The first that failed: its seed, smallest form, and what is wrong.
fn run_all(
    seeds: &(dyn Fn(u64) -> u64 + Sync),
    programs: u64,
    attempts: usize,
) -> Option<(u64, Program, String)> {
    name_the_dead();
    pagefold_linux::preempt_every(7);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    let workers: Vec<Arc<Worker>> = (0..WORKERS).map(|_| Arc::default()).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let watchdog = std::thread::spawn({
        let (workers, is_over) = (workers.clone(), Arc::clone(&is_over));
        move || watch(workers, is_over)
    });
    std::thread::scope(|scope| {
        for (worker, running) in workers.iter().zip(&RUNNING) {
            let (next, failed) = (&next, &failed);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, SeqCst);
                    if at >= programs {
                        return;
                    }
                    let seed = seeds(at);
                    running.store(seed, SeqCst);
                    let program = generate::program(seed);
                    if let Some(wrong) = worker.fails(seed, &program, attempts) {
                        next.store(programs, SeqCst);
                        say(&format!("\nPAGEFOLD_PROGRAM_SEED={seed:#x}: {wrong}\n{program}"));
                        let (program, wrong) =
                            shrink::shrink(program, wrong, |program| worker.fails(seed, program, ATTEMPTS));
                        failed.lock().unwrap().get_or_insert((seed, program, wrong));
                    }
                    running.store(0, SeqCst);
                }
            });
        }
    });
    is_over.store(true, SeqCst);
    watchdog.join().unwrap();
    failed.into_inner().unwrap()
}

#[test]
fn no_program_of_safe_calls_breaks_a_promise() {
    let failed = match number("PAGEFOLD_PROGRAM_SEED") {
        Some(seed) => run_all(&|_| seed, 1, 1000),
        None => {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let first = number("PAGEFOLD_FIRST_SEED").unwrap_or(now.as_nanos() as u64);
            let programs = number("PAGEFOLD_PROGRAMS").unwrap_or(PROGRAMS);
            let failed = run_all(&|at| Random::new(first.wrapping_add(at)).next(), programs, 1);
            println!("{programs} programs from PAGEFOLD_FIRST_SEED={first:#x} on");
            failed
        }
    };
    if let Some((seed, program, wrong)) = failed {
        panic!("PAGEFOLD_PROGRAM_SEED={seed:#x}, made smaller: {wrong}\n{program}");
    }
}

#[test]
fn an_engine_is_made_with_all_of_its_tables_or_not_at_all() {
    let new = |after| {
        failing::plan(Some(failing::Fault { what: failing::Scarce::Tables, after, times: 1 }));
        // SAFETY: the rules are those of `Fold`.
        let engine = failing::armed(|| unsafe {
            failing::Machine::with_rules(failing::Failing::new(), Config::new(1 << 20))
        });
        (engine.is_ok(), failing::has_struck())
    };
    // SAFETY: as above.
    let engine = unsafe { failing::Machine::with_rules(failing::Failing::new(), Config::new(1 << 20)) };
    let tables = engine.unwrap().tables().count() as u8;
    assert!(usize::from(tables) <= TableKind::ALL.len());
    assert!((0..tables).all(|table| new(table) == (false, true)));
    assert_eq!(new(tables), (true, false));
}

#[test]
fn a_seed_always_makes_the_same_program() {
    for seed in 0..100 {
        let program = generate::program(seed);
        assert_eq!(program, generate::program(seed));
        assert!(program.to_string().lines().count() == program.steps.len() + 1);
        assert!((1..=3).contains(&program.threads()));
    }
}

/// Programs that run one step after the other do the same every time: these come to everything that there is to see.
#[test]
fn programs_come_to_all_that_can_happen() {
    const ALL: [&str; 38] = [
        "added",
        "allocated",
        "allocated there",
        "allocated to move",
        "allocated without memory for descriptors",
        "collapsed",
        "collapsed, large",
        "folded a section of free memory",
        "folded free memory",
        "folded free memory, polling",
        "folded tails",
        "forgotten",
        "found at a tail",
        "found at its head",
        "found offline",
        "frozen",
        "isolated",
        "materialised",
        "materialised without memory",
        "missed what is absent",
        "missed what is free",
        "missed what is frozen",
        "missed what is offline",
        "moved",
        "offline",
        "online",
        "online to move",
        "plugged",
        "plugged what was described",
        "refused to fold free memory",
        "removed",
        "split",
        "split without memory",
        "unfolded",
        "unplugged",
        "used up",
        "withdrawn",
        "withdrawn where it was free",
    ];
    let pulse = Pulse::default();
    let programs = (0..).map(generate::program).filter(|program| program.setup.schedule == Schedule::Turns);
    // What objects do not describe cannot be found there.
    const DESCRIBED_OFFLINE: [&str; 2] = ["found offline", "plugged what was described"];
    let can_happen = |what: &&&str| !(cfg!(feature = "memdesc") && DESCRIBED_OFFLINE.contains(*what));
    let has_seen_all =
        || ALL.iter().filter(can_happen).all(|what| pulse.seen.lock().unwrap().contains_key(what));
    for program in programs.take(1000).take_while(|_| !has_seen_all()) {
        if let Err(wrong) = run::run(&program, &pulse) {
            panic!("{wrong}\n{program}");
        }
    }
    assert!(has_seen_all(), "{:#?}", pulse.seen.lock().unwrap());
}

#[test]
fn a_failing_program_is_made_as_small_as_what_it_fails_by() {
    let is_culprit = |step: &&program::Step| matches!(step.op, program::Op::Put(_) | program::Op::Walker);
    let count = |program: &Program| program.steps.iter().filter(is_culprit).count();
    let program = (0..).map(generate::program).find(|program| count(program) > 3).unwrap();
    let wanted = count(&program);
    let fails = |program: &Program| (count(program) == wanted).then(|| "all there".to_owned());
    let (program, _) = shrink::shrink(program, String::new(), fails);
    assert_eq!(program.steps.len(), wanted);
    assert!(program.steps.iter().all(|step| step.fault.is_none() && step.thread == 0));
}
