//! `pagefold replay`: a real machine's pages, folded while walkers look at them.

mod args;
mod hammer;
mod load;
mod report;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use pagefold_engine::protocol::{Fold, NoGracePeriod, Protocol, RefcountFirst, WritableTails};
use pagefold_engine::{Config, Descriptors, Engine, Layout, Memdesc, Page64, Pfn};
use pagefold_linux::{Linux, Preempted, preempt_every};
use pagefold_machine::{Header, Machine, MemoryRange, PageState};
use pagefold_picture::amount::Bytes;
use pagefold_workload::{BrokenPromise, Index, Log, Shape, Stamp, WalkerKind};

use self::args::ProtocolArg;
pub use self::args::ReplayArgs;
use self::hammer::{Lived, ReplayPlan};
pub use self::report::ReplayReport;
use self::report::{FoldedReport, OwnersReport, ReplayStateRow, ViolationRow, Violations, WalkerRow};
use crate::cost::{self, Baseline, Cost, available, rematerialised};
use crate::deliver;
use crate::descriptors::DescriptorsArg;
use crate::exit::usage;
use crate::interrupt::interrupted;
use crate::rcu::{self, Rcu};
use crate::source::{Found, Source, bar};
use crate::stderr::say;
use crate::tiles::Tiles;
use crate::walkers::Walked;

const ABOUT_TAILS: &str = "--protocol refcount-first and writable-tails are about tails of 64 bytes: leave the protocol out, or \
                           --descriptors memdesc";

pub fn run(args: &ReplayArgs) -> Result<ExitCode> {
    if args.strict && args.descriptors == DescriptorsArg::Memdesc {
        let line = "--strict traps writes to descriptors of 64 bytes: leave it out, or --descriptors memdesc";
        return Err(usage(line));
    }
    let begun = Instant::now();
    let found = find(args)?;
    let read_seconds = begun.elapsed().as_secs_f64();
    let tiles = Tiles::new(&found.machine, args.memory)
        .ok_or_else(|| anyhow!("the machine has no memory, or more than page numbers can name (4 PiB)"))?;
    let job = ReplayJob { args, origin: &found.origin, header: &found.machine.header, tiles, read_seconds };
    let report = job.as_chosen(rcu::choose(args.rcu)?)?;
    deliver::result(&report, args.json, |to| report.print(to))?;
    let violations = &report.violations;
    let fine = violations.total == 0 && !violations.wrong_protocol && report.agree;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn find(args: &ReplayArgs) -> Result<Found> {
    if args.all_free {
        // The arguments say how large.
        let pages = args.memory.unwrap_or_default();
        let header = Header { memory: vec![MemoryRange { start: 0, end: pages }], ..Header::default() };
        return Ok(Found {
            machine: Machine { header, runs: Vec::new() },
            origin: "a machine whose memory is free".into(),
        });
    }
    match (&args.snapshot, args.sample) {
        (Some(path), _) => Source::File(path).read(),
        (None, true) => Source::Sample.read(),
        (None, false) => Source::HostOrSample.read(),
    }
}

/// One replay.
struct ReplayJob<'a> {
    args: &'a ReplayArgs,
    origin: &'a str,
    header: &'a Header,
    tiles: Tiles<'a>,
    read_seconds: f64,
}

/// Folios that stay where they are while the walkers look for them.
const PINNED: usize = 1024;

impl ReplayJob<'_> {
    /// With what was asked for. Each combination is compiled for itself, and those that mean nothing are not.
    fn as_chosen(&self, rcu: Rcu) -> Result<ReplayReport> {
        preempt_every(self.args.preempt);
        match (self.args.descriptors, self.args.protocol) {
            (DescriptorsArg::Page, ProtocolArg::Fold) => self.replay::<Preempted<Fold>, Page64>(rcu),
            (DescriptorsArg::Page, ProtocolArg::RefcountFirst) => {
                self.replay::<Preempted<RefcountFirst>, Page64>(rcu)
            }
            (DescriptorsArg::Page, ProtocolArg::NoGracePeriod) => {
                self.replay::<Preempted<NoGracePeriod>, Page64>(rcu)
            }
            (DescriptorsArg::Page, ProtocolArg::WritableTails) => {
                self.replay::<Preempted<WritableTails>, Page64>(rcu)
            }
            (DescriptorsArg::Memdesc, ProtocolArg::Fold) => self.replay::<Preempted<Fold>, Memdesc>(rcu),
            (DescriptorsArg::Memdesc, ProtocolArg::NoGracePeriod) => {
                self.replay::<Preempted<NoGracePeriod>, Memdesc>(rcu)
            }
            (DescriptorsArg::Memdesc, ProtocolArg::RefcountFirst | ProtocolArg::WritableTails) => {
                Err(usage(ABOUT_TAILS))
            }
        }
    }

    fn replay<R: Protocol, D: Descriptors>(&self, rcu: Rcu) -> Result<ReplayReport> {
        let baseline = Baseline::take().context("cannot measure this process (is /proc mounted?)")?;
        let mut host: Linux<Rcu, Stamp, R, D> = Linux::new(rcu)?;
        host.support().missing().iter().for_each(say);
        if self.args.strict {
            host = host.strict()?;
        }
        // What is not there cannot be materialised; a flat map must leave room for the rest of the machine.
        let flat_bytes = self.tiles.pages() * D::shape::<Stamp>().entry_bytes;
        let is_flat = !self.args.all_free && available().is_none_or(|bytes| flat_bytes < bytes / 4 * 3);
        let begun = Instant::now();
        let config = Config::new(self.tiles.end());
        // SAFETY: `Fold` and `RefcountFirst` keep the promises, and taking the CPU away breaks none. The other two are
        // here to be seen: the kernel backs what a stray compare-and-swap reaches with zeros (the strict mode notes it
        // first), and the report counts what that brought back.
        let mut engine = unsafe { Engine::with_rules(host, config) }?;
        load::online(&mut engine, &self.tiles)?;
        let engine = engine;
        let created_seconds = begun.elapsed().as_secs_f64();

        let begun = Instant::now();
        if is_flat {
            engine.set_layout(Layout::Flat);
            engine.materialise_free(0..self.tiles.end()).context("materialising every descriptor")?;
        }
        let flat_seconds = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let mut tiles_loaded = 0;
        let spare = available();
        // What is there for all tiles already.
        let held = engine.platform().budget().used() * 4096;
        let loaded = load::load(&engine, &self.tiles, &bar("loading"), |loaded| {
            tiles_loaded += 1;
            // The workload keeps a list and an index of the folios it moves.
            let tables = (engine.platform().budget().used() * 4096).saturating_sub(held);
            let bytes = tables + loaded.movable.len() as u64 * 32;
            self.check_fit(bytes / tiles_loaded, held, spare)
        })?;
        let load_seconds = begun.elapsed().as_secs_f64();
        let flat = is_flat.then(|| cost::measure(&engine, baseline)).transpose()?;
        engine.set_layout(Layout::Folded);

        let folios = loaded.fixed + loaded.movable.len() as u64;
        let mut movable = loaded.movable;
        let pinned = movable.split_off(movable.len() - movable.len().min(PINNED).min(movable.len() / 8));
        let pinned = hammer::fold_quietly(&engine, pinned)?;
        let plan = self.plan::<R>();
        let slots = movable.len() + movable.len() / 4 + 1024;
        let index =
            Index::new(&engine, slots, pinned, plan.owners).context("no memory for the workload's index")?;
        for (at, folio) in index.shared().zip(movable) {
            drop(index.put(at, folio));
        }

        let log = Log::new();
        let mut folded = Cost::ZERO;
        let mut folded_pages_in_use = 0;
        let mut objects = None;
        let in_use = || self.tiles.pages().saturating_sub(engine.free_pages());
        let mut by_state = HashMap::new();
        let lived = hammer::live(&index, &loaded.fixed_large, plan, &log, &interrupted(), || {
            folded = cost::measure(&engine, baseline)?;
            folded_pages_in_use = in_use();
            objects = engine.objects();
            by_state = load::attribute(&engine, &self.tiles);
            Ok(())
        })?;
        engine.folder(512)?.fold_all();
        let last = cost::measure(&engine, baseline)?;
        let violations = self.violations(&engine, &index, &log, &lived)?;
        let agree =
            flat.is_none_or(|flat| flat.total().agrees()) && folded.total().agrees() && last.total().agrees();
        let bookkeeping_bytes = cost::bookkeeping(&engine);
        // The workload's folios go with the engine.
        std::mem::forget(index);
        Ok(ReplayReport {
            schema: 3,
            origin: self.origin.to_owned(),
            kernel: self.header.kernel.clone(),
            note: self.header.note.clone(),
            descriptors: D::NAME,
            object_bytes: D::shape::<Stamp>().object_bytes,
            objects,
            protocol: R::NAME,
            rcu: rcu.name(),
            strict: self.args.strict,
            tiles: self.tiles.count(),
            pages: self.tiles.pages(),
            described_pages: self.tiles.described_pages(),
            folios,
            created_seconds,
            read_seconds: self.read_seconds,
            flat_seconds: is_flat.then_some(flat_seconds),
            load_seconds,
            load_pages_per_second: self.tiles.pages() as f64 / (flat_seconds + load_seconds).max(1e-9),
            folding: folding_report(&lived),
            states: self.states(&loaded.pages, loaded.hugetlb, &by_state),
            flat,
            folded,
            last,
            folded_pages_in_use,
            last_pages_in_use: in_use(),
            bookkeeping_bytes,
            lived_seconds: lived.owned_for,
            walkers: walker_rows(&lived),
            owners: owners_report(&lived, plan.owners),
            violations,
            agree,
        })
    }

    /// Refuses early what would not fit, as far as the tiles so far can tell. `held` is there for all of them already, and
    /// `spare` comes on top of it.
    fn check_fit(&self, bytes_per_tile: u64, held: u64, spare: Option<u64>) -> Result<()> {
        let needed = held + bytes_per_tile * self.tiles.count();
        match spare.map(|spare| held + spare) {
            Some(spare) if needed > held + (spare - held) / 10 * 9 => bail!(
                "{} like this need about {} even with their metadata folded, and this machine can spare {}; choose \
                 at most --memory {}G, or --all-free",
                Bytes(self.tiles.pages() * 4096),
                Bytes(needed),
                Bytes(spare),
                (self.tiles.pages() as f64 * 4096.0 * 0.9 * spare as f64 / needed as f64) as u64 >> 30
            ),
            _ => Ok(()),
        }
    }

    fn plan<R: Protocol>(&self) -> ReplayPlan {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let kinds = WalkerKind::ALL.len();
        let walkers = self.args.walkers.map_or(cpus.max(kinds), usize::from);
        let owners = self.args.owners.map_or((cpus / 2).max(2), usize::from);
        // Without grace periods there is nothing to share, and the sooner the memory goes, the more visible the bug.
        let batch = if R::WAITS { 64 } else { 1 };
        let shape = Shape { batch, ..Shape::default() };
        ReplayPlan { walkers, owners, seconds: self.args.seconds, seed: self.args.seed, shape }
    }

    fn states(
        &self,
        pages: &HashMap<PageState, u64>,
        hugetlb: u64,
        pagefold: &HashMap<PageState, f64>,
    ) -> Vec<ReplayStateRow> {
        let mut rows: Vec<_> = PageState::ALL
            .into_iter()
            .filter_map(|state| {
                let pages = *pages.get(&state)?;
                let linux_bytes = pages * 64;
                // HVO leaves one page of descriptors of each hugetlb folio.
                let hvo_bytes = if state == PageState::Hugetlb { hugetlb * 4096 } else { linux_bytes };
                let pagefold_bytes = pagefold.get(&state).map_or(0, |bytes| bytes.round() as u64);
                let memory_bytes = pages * 4096;
                (pages > 0).then_some(ReplayStateRow {
                    state: state.name(),
                    pages,
                    memory_bytes,
                    linux_bytes,
                    hvo_bytes,
                    pagefold_bytes,
                })
            })
            .collect();
        let holes = self.tiles.described_pages() - self.tiles.pages();
        if holes > 0 {
            rows.push(ReplayStateRow {
                state: "holes in sections",
                pages: holes,
                memory_bytes: 0,
                linux_bytes: holes * 64,
                hvo_bytes: holes * 64,
                pagefold_bytes: 0,
            });
        }
        rows
    }

    fn violations<R: Protocol, D: Descriptors>(
        &self,
        engine: &Engine<Linux<Rcu, Stamp, R, D>>,
        index: &Index<'_, Linux<Rcu, Stamp, R, D>>,
        log: &Log,
        lived: &Lived,
    ) -> Result<Violations> {
        let described = D::PAGES_PER_MAP_PAGE;
        let back = rematerialised(engine)?;
        let is_back = |pfn: Pfn| back.binary_search(&(pfn.0 / described)).is_ok();
        let mut list: Vec<ViolationRow> = log
            .kept()
            .map(|kept| ViolationRow {
                what: kept.violation.to_string(),
                pfn: kept.pfn.0,
                walker: format!("{} walker", kept.walker.name()),
                confirmed: is_back(kept.pfn),
            })
            .collect();
        let trapped = engine.platform().strict_mode().map(|strict| {
            let (total, writes) = strict.stray_writes();
            list.extend(writes.iter().take(256).map(|write| {
                let pfn = Pfn(write.offset / D::shape::<Stamp>().entry_bytes);
                let thread = lived.threads.iter().find(|(thread, _)| *thread == write.thread);
                ViolationRow {
                    what: "stray write trapped".into(),
                    pfn: pfn.0,
                    walker: thread
                        .map_or_else(|| format!("thread {}", write.thread), |(_, name)| name.clone()),
                    confirmed: is_back(pfn),
                }
            }));
            total
        });
        let seen: Vec<u64> = list.iter().map(|row| row.pfn / described).collect();
        list.extend(back.iter().filter(|map_page| !seen.contains(map_page)).take(256).map(|map_page| {
            ViolationRow {
                what: "folded map page brought back".into(),
                pfn: map_page * described,
                walker: "an unknown walker".into(),
                confirmed: true,
            }
        }));
        let audit = match engine.audit() {
            Err(violation) => Some(violation.to_string()),
            Ok(audit) => {
                let expected = index.occupied() + lived_fixed(&audit, index);
                (audit.refs != expected).then(|| format!("{} references, {expected} expected", audit.refs))
            }
        };
        let stray_writes = log.count(BrokenPromise::StrayWrite);
        let strays = stray_writes.max(back.len() as u64).max(trapped.unwrap_or(0));
        let others = log.total() - stray_writes + u64::from(audit.is_some());
        Ok(Violations {
            total: others + strays,
            stray_writes,
            rematerialised: back.len() as u64,
            trapped,
            wrong_page: log.count(BrokenPromise::NotItsPage),
            resurrected: log.count(BrokenPromise::Resurrected),
            missed: log.count(BrokenPromise::Missed),
            audit,
            wrong_protocol: R::TOLERATES_WRITES,
            list,
        })
    }
}

/// References that no slot of the index holds: those on the kernel's own folios, one each.
fn lived_fixed<P: pagefold_engine::Platform>(audit: &pagefold_engine::Audit, index: &Index<'_, P>) -> u64 {
    audit.folios.saturating_sub(index.occupied())
}

fn folding_report(lived: &Lived) -> FoldedReport {
    let folding = &lived.folding;
    FoldedReport {
        folios: folding.folios,
        map_pages: folding.report.map_pages,
        refused: folding.report.refused,
        grace_periods: folding.report.grace_periods,
        map_pages_per_grace_period: ratio(folding.report.map_pages, folding.report.grace_periods),
        seconds: folding.seconds,
    }
}

fn walker_rows(lived: &Lived) -> Vec<WalkerRow> {
    let rate = |count: u64| count as f64 / lived.walk.seconds.max(1e-9);
    let row = |walked: &Walked| WalkerRow {
        kind: walked.kind.name(),
        threads: walked.threads,
        looks_per_second: rate(walked.counts.looks),
        gets_per_second: rate(walked.counts.gets),
        stale_per_second: rate(walked.counts.stale),
    };
    lived.walk.walked.iter().map(row).collect()
}

fn owners_report(lived: &Lived, threads: usize) -> OwnersReport {
    let counts = &lived.owners;
    let operations =
        counts.allocated + counts.freed + counts.split + counts.collapsed + counts.unfolded + counts.folded;
    OwnersReport {
        threads,
        allocated: counts.allocated,
        freed: counts.freed,
        split: counts.split,
        collapsed: counts.collapsed,
        unfolded: counts.unfolded,
        folded: counts.folded,
        busy: counts.busy,
        no_memory: counts.no_memory,
        map_pages_folded: counts.fold.map_pages,
        grace_periods: counts.fold.grace_periods,
        map_pages_per_grace_period: ratio(counts.fold.map_pages, counts.fold.grace_periods),
        operations_per_second: operations as f64 / lived.owned_for.max(1e-9),
    }
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}
