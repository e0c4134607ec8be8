//! Runs a program, and checks what is left at its end.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};

use crate::failing::TestDescriptors;
use pagefold_engine::geometry::{MapGeometry, PAGES_PER_SECTION};
use pagefold_engine::{Audit, Class, Config, Pfn, Violation};

use crate::actor::{Actor, World};
use crate::blocks::{Blocks, text};
use crate::failing::{Failing, Machine, Scarce, has_struck, plan, run_on};
use crate::ledger::{Ledger, Outcome, Status, ensure};
use crate::program::{Program, Schedule, Step};

/// What is known of the programs that run, from outside.
#[derive(Default)]
pub struct Pulse {
    /// Steps made.
    pub beats: AtomicU64,
    /// What has come to pass, and how often.
    pub seen: Mutex<BTreeMap<&'static str, u64>>,
}

impl Pulse {
    pub fn beat(&self) {
        self.beats.fetch_add(1, SeqCst);
    }
    pub fn saw(&self, what: &'static str) {
        *self.seen.lock().unwrap().entry(what).or_default() += 1;
    }
}

/// Runs a program. What is wrong, if something is.
pub fn run(program: &Program, pulse: &Pulse) -> Outcome {
    let pages = program.setup.sections * PAGES_PER_SECTION;
    let config = Config { pages, layout: program.setup.layout };
    // SAFETY: the rules are those of `Fold`; that walkers lose their CPU changes none.
    let engine = unsafe { Machine::with_rules(Failing::new(), config) };
    let engine = engine.map_err(|error| error.to_string())?;
    let ledger = Ledger::new(pages);
    let world = World {
        engine: &engine,
        pulse,
        ledger: &ledger,
        blocks: Mutex::new(Blocks::new(&engine, &ledger, pulse, &program.setup)?),
        mail: Mutex::default(),
        is_exact: program.setup.schedule == Schedule::Turns,
        holding: AtomicUsize::new(0),
        has_refused: AtomicBool::new(false),
        deferred: AtomicU64::new(0),
        ran: Arc::default(),
    };
    let mut actors: Vec<Actor<'_, '_>> = (0..program.threads()).map(|_| Actor::new(&world)).collect();
    let done = match program.setup.schedule {
        Schedule::Turns => in_turns(program, &mut actors, pulse),
        Schedule::AtOnce(seed) => at_once(program, &mut actors, seed, pulse),
    };
    let done = done.and_then(|()| {
        let ended = catch_unwind(AssertUnwindSafe(|| end(&world, &mut actors)));
        ended
            .unwrap_or_else(|panic| Err(format!("a panic: {}", text(&panic))))
            .map_err(|wrong| format!("at the end: {wrong}"))
    });
    if done.is_err() {
        // What is left may be anything.
        actors.into_iter().for_each(std::mem::forget);
        std::mem::forget(world);
    }
    done
}

fn step(actor: &mut Actor<'_, '_>, step: &Step, number: usize, pulse: &Pulse) -> Outcome {
    plan(step.fault);
    let done = catch_unwind(AssertUnwindSafe(|| actor.run(step)));
    if has_struck() && step.fault.is_some_and(|fault| fault.what == Scarce::Folds) {
        actor.world.has_refused.store(true, SeqCst);
    }
    plan(None);
    pulse.beat();
    let done = done.unwrap_or_else(|panic| Err(format!("a panic: {}", text(&panic))));
    done.map_err(|wrong| format!("thread {}, step {number}, {:?}: {wrong}", step.thread, step.op))
}

fn in_turns(program: &Program, actors: &mut [Actor<'_, '_>], pulse: &Pulse) -> Outcome {
    for (number, next) in program.steps.iter().enumerate() {
        run_on(next.thread.into(), 0);
        step(&mut actors[usize::from(next.thread)], next, number, pulse)?;
    }
    if program.setup.drops_in_threads {
        actors.iter_mut().try_for_each(Actor::end)?;
    }
    Ok(())
}

fn at_once(program: &Program, actors: &mut [Actor<'_, '_>], seed: u64, pulse: &Pulse) -> Outcome {
    let (is_over, start) = (AtomicBool::new(false), Barrier::new(actors.len()));
    let thread = |number: usize, actor: &mut Actor<'_, '_>| {
        run_on(number, seed.rotate_left(number as u32) | 1);
        start.wait();
        let mine = program.steps.iter().enumerate().filter(|(_, step)| usize::from(step.thread) == number);
        for (at, next) in mine {
            if is_over.load(SeqCst) {
                return Ok(());
            }
            let done = step(actor, next, at, pulse);
            if done.is_err() {
                is_over.store(true, SeqCst);
                return done;
            }
        }
        if program.setup.drops_in_threads { actor.end() } else { Ok(()) }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = actors
            .iter_mut()
            .enumerate()
            .map(|(number, actor)| {
                let thread = &thread;
                scope.spawn(move || thread(number, actor))
            })
            .collect();
        let done = threads.into_iter().map(|thread| thread.join());
        done.map(|done| done.unwrap_or_else(|panic| Err(format!("a panic: {}", text(&panic)))))
            // All are waited for.
            .fold(Ok(()), Outcome::and)
    })
}

/// Checks the whole machine, while nothing moves.
pub fn audit(world: &World<'_>, blocks: &Blocks<'_>) -> Outcome<Option<Audit>> {
    let engine = world.engine;
    blocks.check()?;
    for (kind, table) in engine.tables() {
        let (measured, counted) = table.pages();
        ensure!(measured == counted, "the {kind:?} table has {measured} pages, and {counted} are counted");
    }
    let (measured, materialised) =
        (engine.tables().next().unwrap().1.pages().0, engine.materialised_map_pages());
    ensure!(measured == materialised, "{measured} map pages have memory, {materialised} are counted");
    let is_held = world.holding.load(SeqCst) > 0;
    let audit = match engine.audit() {
        Ok(audit) => audit,
        // Pages that an isolation or a folder holds belong to no folio.
        Err(Violation::Leaked { .. }) if is_held => return Ok(None),
        Err(violation) => return Err(violation.to_string()),
    };
    ensure!(audit.free_pages == engine.free_pages(), "{audit:?}, but {} are free", engine.free_pages());
    let references = world.ledger.references() + blocks.described_offline();
    ensure!(audit.refs == references, "{} references, and there should be {references}", audit.refs);
    if !is_held {
        let expected = free_pages(world, blocks);
        ensure!(
            audit.free_pages == expected,
            "{} pages are free, and should be {expected}",
            audit.free_pages
        );
    }
    Ok(Some(audit))
}

/// Pages that have memory, and are neither in a folio nor poisoned.
fn free_pages(world: &World<'_>, blocks: &Blocks<'_>) -> u64 {
    let ledger = world.ledger;
    let owned = (0..ledger.pages()).filter(|&pfn| ledger.owner(pfn).is_some()).count() as u64;
    let withheld = ledger.all_poisoned().into_iter();
    let withheld =
        withheld.filter(|&pfn| ledger.owner(pfn).is_none() && blocks.has_memory(pfn)).count() as u64;
    blocks.memory() - owned - withheld
}

/// Everything is dropped, but for what was leaked. Then nothing may be left.
fn end(world: &World<'_>, actors: &mut [Actor<'_, '_>]) -> Outcome {
    run_on(0, 0);
    plan(None);
    actors.iter_mut().try_for_each(Actor::end)?;
    let mail = std::mem::take(&mut *world.mail.lock().unwrap());
    mail.into_iter().try_for_each(|held| held.end(world))?;
    let engine = world.engine;
    engine.rcu().run_deferred();
    let (deferred, ran) = (world.deferred.load(SeqCst), world.ran.load(SeqCst));
    ensure!(deferred == ran, "{deferred} callbacks were deferred, {ran} ran");
    let mut folder = engine.folder(64).map_err(|error| error.to_string())?;
    let report = folder.fold_all();
    ensure!(report.refused == 0, "{report:?}, and nothing was refused");
    drop(folder);
    let mut blocks = world.blocks.lock().unwrap();
    let audit = audit(world, &blocks)?;
    ensure!(audit.is_some(), "somebody still holds free pages");
    is_folded(world, &blocks)?;
    leaked_are_there(world)?;
    blocks.end(world)?;
    self::audit(world, &blocks).map(drop)
}

/// A map page without a page in use has no memory.
fn is_folded(world: &World<'_>, blocks: &Blocks<'_>) -> Outcome {
    for first in (0..world.ledger.pages()).step_by(TestDescriptors::PAGES_PER_MAP_PAGE as usize) {
        let class = world.engine.class(Pfn(first));
        let pages = first..first + TestDescriptors::PAGES_PER_MAP_PAGE;
        if class.0 == Class::Mapped && blocks.described_offline() == 0 {
            let is_needed = world.ledger.owned_in(pages.clone()).is_some()
                || pages.clone().any(|pfn| !blocks.has_memory(pfn));
            ensure!(is_needed, "the map page of {first:#x} has memory, and nothing in use");
        }
        let is_tail = matches!(class.0, Class::Tail(_) | Class::Mapped);
        // What a mapping has refused is tried again when the block goes, or comes back.
        ensure!(
            is_tail || !class.1 || world.has_refused.load(SeqCst),
            "the map page of {first:#x} is {class:?}"
        );
    }
    Ok(())
}

/// Shared folios that were leaked are found for ever.
fn leaked_are_there(world: &World<'_>) -> Outcome {
    let walker = world.engine.walker().map_err(|error| error.to_string())?;
    for number in world.ledger.living() {
        if world.ledger.status(number) == Status::Shared {
            let head = world.ledger.head(number);
            let folio =
                walker.try_get(Pfn(head)).map_err(|miss| format!("{head:#x} was leaked: {miss:?}"))?;
            ensure!(world.ledger.check(&folio)? == number, "{folio:?} was leaked, and is another");
        }
    }
    Ok(())
}
