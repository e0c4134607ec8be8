//! What all processors do all the time: walkers look, owners allocate, free, split and fold.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagefold_boot_protocol::Walks;
use pagefold_engine::OutOfMemory;
use pagefold_workload::{Index, Log, OwnerTask, Shape, WalkerCounts, WalkerKind, WalkerTask};
use spin::Mutex;

use crate::arch::interrupts;
use crate::machine::{Choice, GuestPlatform, top_up};
use crate::{breaks, cpu, watchdog};

/// Everybody but the processor that asks is to stand still.
static PAUSE: AtomicBool = AtomicBool::new(false);
/// How many do.
static STILL: AtomicU64 = AtomicU64::new(0);

/// Walkers and owners, spread over the processors.
pub struct Crew<C: Choice> {
    /// Where owners keep their folios, which come and go.
    lively: &'static Index<'static, GuestPlatform<C>>,
    /// Where workloads keep theirs, which stay for a while.
    settled: &'static Index<'static, GuestPlatform<C>>,
    log: Log,
    walkers: u16,
    owners: u16,
    seed: u64,
    counts: [Mutex<Counts>; cpu::MAX],
}

#[derive(Clone, Copy, Default)]
struct Counts {
    walkers: WalkerCounts,
    owner_steps: u64,
    folded: u64,
}

impl<C: Choice> Crew<C> {
    /// A crew that has not begun.
    pub fn new(
        [lively, settled]: [&'static Index<'static, GuestPlatform<C>>; 2],
        walkers: u16,
        owners: u16,
        seed: u64,
    ) -> Self {
        let counts = [const { Mutex::new(Counts { walkers: ZERO, owner_steps: 0, folded: 0 }) }; cpu::MAX];
        Self { lively, settled, log: Log::new(), walkers, owners, seed, counts }
    }

    /// Where folios come and go.
    pub fn lively(&self) -> &'static Index<'static, GuestPlatform<C>> {
        self.lively
    }

    /// Those that run on processor `number` of `count`.
    pub fn tasks(&'static self, number: usize, count: usize) -> Result<Tasks<C>, OutOfMemory> {
        let mine = |all: u16| (0..usize::from(all)).filter(move |task| task % count == number);
        let mut tasks = Tasks { crew: self, number, walkers: Vec::new(), owners: Vec::new() };
        for task in mine(self.walkers) {
            let kind = WalkerKind::ALL[task % WalkerKind::ALL.len()];
            // The second, fourth, ... that looks folios up in an index does it where workloads keep theirs, if there are
            // any. (Others go by page numbers.)
            let index = if task % 2 == 1 && self.settled.len() > 1 { self.settled } else { self.lively };
            tasks.walkers.push(WalkerTask::new(kind, index, &self.log, self.seed + task as u64)?);
        }
        for task in mine(self.owners) {
            let seed = self.seed + 1000 + task as u64;
            tasks.owners.push(OwnerTask::new(self.lively, task, Shape::default(), seed)?);
        }
        Ok(tasks)
    }

    /// What they did so far.
    pub fn counts(&self) -> Walks {
        let mut walks = Walks { violations: self.log.total(), ..Walks::default() };
        for counts in &self.counts {
            let counts = *counts.lock();
            walks.looks += counts.walkers.looks;
            walks.gets += counts.walkers.gets;
            walks.stale += counts.walkers.stale;
            walks.owner_steps += counts.owner_steps;
            walks.folded += counts.folded;
        }
        walks
    }
}

const ZERO: WalkerCounts = WalkerCounts { looks: 0, gets: 0, stale: 0 };

/// The walkers and owners of one processor.
pub struct Tasks<C: Choice> {
    crew: &'static Crew<C>,
    number: usize,
    walkers: Vec<WalkerTask<'static, 'static, GuestPlatform<C>>>,
    owners: Vec<OwnerTask<'static, 'static, GuestPlatform<C>>>,
}

impl<C: Choice> Tasks<C> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.walkers.is_empty() && self.owners.is_empty()
    }

    /// A step of each.
    pub fn step(&mut self) {
        let mut counts = Counts::default();
        for walker in &mut self.walkers {
            walker.step();
            counts.walkers += walker.counts();
        }
        for owner in &mut self.owners {
            owner.step();
            counts.owner_steps += 16;
            counts.folded += owner.counts().fold.map_pages;
        }
        if let Some(kept) = self.crew.counts.get(self.number) {
            let mut kept = kept.lock();
            kept.walkers = counts.walkers;
            kept.owner_steps += counts.owner_steps;
            kept.folded = counts.folded;
        }
        if !self.owners.is_empty() {
            top_up(self.crew.lively.engine());
        }
    }

    /// Finishes what is under way, so that everything is in the index or free.
    pub fn finish(&mut self) {
        self.owners.iter_mut().for_each(OwnerTask::finish);
    }
}

/// What a processor does that only has a crew: for ever.
pub fn run<C: Choice>(mut tasks: Tasks<C>) -> ! {
    loop {
        watchdog::beat();
        breaks::may_hang();
        if PAUSE.load(Ordering::Acquire) {
            tasks.finish();
            STILL.fetch_add(1, Ordering::AcqRel);
            while PAUSE.load(Ordering::Acquire) {
                watchdog::beat();
                // Till the next tick: the one that works may need this one's share of the host's CPUs.
                interrupts::wait();
            }
            STILL.fetch_sub(1, Ordering::AcqRel);
        }
        if tasks.is_empty() {
            // Till the next tick, or till somebody wants something.
            interrupts::wait();
        } else {
            tasks.step();
        }
    }
}

/// All other processors stand still while `action` runs, with nothing under way.
pub fn alone<T>(action: impl FnOnce() -> T) -> T {
    let others = cpu::count() as u64 - 1;
    PAUSE.store(true, Ordering::Release);
    while STILL.load(Ordering::Acquire) < others {
        watchdog::beat();
        core::hint::spin_loop();
    }
    let done = action();
    PAUSE.store(false, Ordering::Release);
    while STILL.load(Ordering::Acquire) > 0 {
        watchdog::beat();
        core::hint::spin_loop();
    }
    done
}
