//! What the host asks for: workloads that come and go, folding over and over, memory used everywhere, all pages told.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use pagefold_boot_protocol::{Answer, Cycles};
use pagefold_engine::{BlockState, Kind, Order, Pfn};
use pagefold_workload::{Change, CycleTask, WorkloadArg};

use crate::contents::words;
use crate::crew::{self, Tasks};
use crate::kernel::{CYCLED, Kernel};
use crate::layout::PAGE;
use crate::machine::{Choice, top_up};
use crate::pages::Pages;
use crate::{clock, watchdog};

/// Words of a page.
const WORDS: usize = PAGE as usize / 8;
/// Runs in one answer.
const RUNS: usize = 512;

impl<C: Choice> Kernel<C> {
    /// Changes every workload of the command line.
    pub(crate) fn populate(&mut self, changes: impl Fn(&WorkloadArg) -> Vec<Change>) -> Answer {
        let online = self.hotplug.blocks().filter(|block| block.state == BlockState::Online);
        let blocks: Vec<_> = online.map(|block| self.hotplug.pages(block.id)).collect();
        let engine = self.engine;
        // Pins come and go with workloads, and drivers cannot see them.
        self.drivers.iter_mut().for_each(|device| device.driver.ask_again());
        let mut missing = 0;
        for (number, arg) in self.workloads.iter().enumerate() {
            for change in changes(arg) {
                missing += self.population.change(number, change, &blocks, |_| {
                    watchdog::beat();
                    top_up(engine);
                    ControlFlow::Continue(())
                });
            }
        }
        Answer::Populated(missing)
    }

    /// Folds and unfolds the same folios while all walkers look.
    pub(crate) fn cycle(&mut self, cycles: u64, tasks: &mut Tasks<C>) -> Answer {
        let owners = usize::from(self.options.owners);
        let mut cycle = match CycleTask::new(self.crew.lively(), owners..owners + CYCLED) {
            Ok(cycle) => cycle,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let (from, looks) = (clock::now(), self.crew.counts().looks);
        let mut barren = 0;
        while cycle.counts().cycles < cycles {
            let before = cycle.counts().cycles;
            cycle.round();
            // With too little memory for a single folio it would go on for ever.
            barren = if cycle.counts().cycles == before { barren + 1 } else { 0 };
            if barren > 1000 {
                break;
            }
            tasks.step();
            top_up(self.engine);
            watchdog::beat();
        }
        cycle.finish();
        let counts = cycle.counts();
        let ns = clock::now() - from;
        tasks.finish();
        Answer::Cycles(Cycles {
            cycles: counts.cycles,
            rounds: counts.rounds,
            folded: counts.folded,
            unfolded: counts.unfolded,
            ns,
            looks: self.crew.counts().looks - looks,
            busy: counts.busy,
            no_memory: counts.no_memory,
            lost_frames: crew::alone(|| self.report().frames.lost()),
        })
    }

    /// Takes 2 MiB of every GiB and of every memory block, as far as they are free, writes to every page, reads all of it
    /// back, and frees it.
    pub(crate) fn touch(&mut self) -> Answer {
        let engine = self.engine;
        let mut taken = Vec::new();
        let blocks: Vec<_> = self.hotplug.blocks().map(|block| self.hotplug.pages(block.id).start).collect();
        let boot = (0..engine.pages())
            .step_by(1 << 18)
            .filter(|start| self.hotplug.block(self.hotplug.block_of(*start)).is_none());
        for start in boot.chain(blocks) {
            watchdog::beat();
            top_up(engine);
            // The first 2 MiB that are free.
            let found = (start..start + (1 << 15))
                .step_by(512)
                .find_map(|pfn| engine.alloc_at(Pfn(pfn), Order::AREA, Kind::Anon).ok());
            let Some(frozen) = found else { continue };
            // SAFETY: nobody else can reach a frozen folio.
            let words = unsafe { words(frozen.pfn(), Order::AREA) };
            for (pfn, page) in (frozen.pfn().0..).zip(words.chunks_exact_mut(WORDS)) {
                page.fill(!pfn);
            }
            if taken.try_reserve(1).is_err() {
                return Answer::Refused("no memory for a list of folios".to_string());
            }
            taken.push(frozen);
        }
        for frozen in &taken {
            watchdog::beat();
            // SAFETY: as above.
            let words = unsafe { words(frozen.pfn(), Order::AREA) };
            for (pfn, page) in (frozen.pfn().0..).zip(words.chunks_exact(WORDS)) {
                if page.iter().any(|&word| word != !pfn) {
                    return Answer::Refused(format!("page {pfn:#x} does not hold what was written to it"));
                }
            }
        }
        Answer::Touched(taken.len() as u64 * (2 << 20))
    }

    pub(crate) fn send_pages(&mut self) {
        let Ok(walker) = self.engine.walker() else {
            return self.host.answer(&Answer::Refused("no memory for a walker".into()));
        };
        let mut pages = Pages::new(walker, self.engine.pages());
        let mut runs = Vec::with_capacity(RUNS);
        loop {
            watchdog::beat();
            pages.next(&mut runs);
            if runs.is_empty() {
                return;
            }
            self.host.answer(&Answer::Pages(runs.clone()));
        }
    }
}
