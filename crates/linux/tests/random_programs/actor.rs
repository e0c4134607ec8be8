//! A thread of a program: what it has, and how it does its steps.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use pagefold_engine::{FoldBatch, Folder, Isolated, Kind, Order, RawFolio, Walker};

use crate::blocks::Blocks;
use crate::failing::{Failing, Machine, armed};
use crate::ledger::{Ledger, Number, Outcome, Shared, Status, Whole};
use crate::program::{Op, Place, Step, Which};
use crate::run::Pulse;

/// What all threads of a program share.
pub struct World<'e> {
    pub engine: &'e Machine,
    pub pulse: &'e Pulse,
    pub ledger: &'e Ledger,
    pub blocks: Mutex<Blocks<'e>>,
    /// Handles on their way from one thread to another.
    pub mail: Mutex<Vec<Held<'e>>>,
    /// One step after the other: what the engine answers can be foretold.
    pub is_exact: bool,
    /// Isolations, and batches of folders, that hold free pages now.
    pub holding: AtomicUsize,
    /// Callbacks deferred, and run.
    /// A mapping has refused to take memory back.
    pub has_refused: AtomicBool,
    pub deferred: AtomicU64,
    pub ran: std::sync::Arc<AtomicU64>,
}

impl World<'_> {
    /// Whether pages that nobody owns can be had.
    pub fn is_all_free_in_reach(&self) -> bool {
        self.is_exact && self.holding.load(SeqCst) == 0
    }
}

pub enum Handle<'e> {
    Frozen(Whole<'e>),
    Shared(Shared<'e>),
    Raw(RawFolio),
}

/// A handle, and the folio that it is on.
pub struct Held<'e> {
    pub handle: Handle<'e>,
    pub number: Number,
}

impl<'e> Held<'e> {
    pub fn pfn(&self) -> u64 {
        match &self.handle {
            Handle::Frozen(folio) => folio.pfn().0,
            Handle::Shared(folio) => folio.pfn().0,
            Handle::Raw(raw) => raw.0.0,
        }
    }

    /// As a handle again, if it was a number.
    pub fn revived(self, engine: &'e Machine) -> Self {
        let Handle::Raw(raw) = self.handle else { return self };
        // SAFETY: the number came from `into_raw` of a folio of this engine, and is taken up this once.
        let folio = unsafe { engine.from_raw(raw) };
        Self { handle: Handle::Shared(folio), number: self.number }
    }

    /// Puts the reference, or frees the folio.
    pub fn end(self, world: &World<'e>) -> Outcome {
        let held = self.revived(world.engine);
        held.check(world.ledger)?;
        world.ledger.put(held.number);
        armed(|| drop(held.handle));
        Ok(())
    }

    /// Checks that the folio is what it was.
    pub fn check(&self, ledger: &Ledger) -> Outcome {
        match &self.handle {
            Handle::Frozen(folio) => ledger.check_frozen(folio, self.number),
            Handle::Shared(folio) => match ledger.check(folio)? {
                number if number == self.number => Ok(()),
                other => Err(format!("{folio:?} is folio {other}, and was folio {}", self.number)),
            },
            Handle::Raw(_) => Ok(()),
        }
    }
}

/// One thread.
pub struct Actor<'w, 'e> {
    pub world: &'w World<'e>,
    pub held: Vec<Held<'e>>,
    pub walkers: Vec<Walker<'e, Failing>>,
    pub batch: Option<FoldBatch<'e, Failing>>,
    /// The folios in the batch.
    pub batched: Vec<Number>,
    pub folder: Option<Folder<'e, Failing>>,
    /// Whether the folder has a batch under way.
    pub is_folding: bool,
    pub isolated: Option<Isolated<'e, Failing>>,
}

impl<'w, 'e> Actor<'w, 'e> {
    pub fn new(world: &'w World<'e>) -> Self {
        Self {
            world,
            held: Vec::new(),
            walkers: Vec::new(),
            batch: None,
            batched: Vec::new(),
            folder: None,
            is_folding: false,
            isolated: None,
        }
    }

    pub fn engine(&self) -> &'e Machine {
        self.world.engine
    }
    /// Notes that something has come to pass.
    pub fn saw(&self, what: &'static str) {
        self.world.pulse.saw(what);
    }
    pub fn ledger(&self) -> &'e Ledger {
        self.world.ledger
    }

    /// The index of a handle.
    pub fn index(&self, which: Which) -> Option<usize> {
        (!self.held.is_empty()).then(|| usize::from(which) % self.held.len())
    }

    pub fn take_held(&mut self, which: Which) -> Option<Held<'e>> {
        self.index(which).map(|at| self.held.swap_remove(at))
    }

    /// Takes a handle out, if it is a frozen folio.
    pub fn take_frozen(&mut self, which: Which) -> Option<(Whole<'e>, Number)> {
        let at = self.index(which)?;
        if !matches!(self.held[at].handle, Handle::Frozen(_)) {
            return None;
        }
        let Held { handle, number } = self.held.swap_remove(at);
        match handle {
            Handle::Frozen(folio) => Some((folio, number)),
            _ => None,
        }
    }

    pub fn hold_frozen(&mut self, folio: Whole<'e>, number: Number) {
        self.ledger().set_status(number, Status::Frozen);
        self.held.push(Held { handle: Handle::Frozen(folio), number });
    }

    pub fn hold_shared(&mut self, folio: Shared<'e>, number: Number) {
        self.held.push(Held { handle: Handle::Shared(folio), number });
    }

    pub fn page(&self, place: Place) -> u64 {
        match place {
            Place::Page(pfn) => pfn,
            Place::Of(which, offset) => {
                self.index(which).map_or(u64::from(offset) % self.ledger().pages(), |at| {
                    let held = &self.held[at];
                    held.pfn() + u64::from(offset) % self.ledger().order(held.number).pages()
                })
            }
        }
    }

    pub fn run(&mut self, step: &Step) -> Outcome {
        match &step.op {
            &Op::Alloc { order, kind, movable, share } => self.alloc(order, kind, movable, share),
            &Op::AllocAt { at, order, share } => self.alloc_at(at, order, share),
            Op::Exhaust => self.exhaust(),
            &Op::Share(which) => self.share(which),
            &Op::Freeze(which) => self.freeze(which),
            &Op::Get(which) => self.get(which),
            &Op::Put(which) => self.take_held(which).map_or(Ok(()), |held| held.end(self.world)),
            &Op::Forget(which) => self.forget(which),
            &Op::Write(which, kind) => self.write(which, kind),
            &Op::Check(which) => self.index(which).map_or(Ok(()), |at| self.held[at].check(self.ledger())),
            &Op::Split { which, lower, keep, forget_rest } => self.split(which, lower, keep, forget_rest),
            &Op::Collapse { which, order } => self.collapse(which, order),
            &Op::Unfold(which) => self.unfold(which),
            &Op::Raw(which) => self.raw(which),
            &Op::Give(which) => self.give(which),
            Op::Receive => self.receive(),
            &Op::Push(which) => self.push(which),
            Op::Commit => self.commit(),
            Op::Drain => self.drain(),
            Op::DropBatch => self.drop_batch(),
            &Op::NewFolder(batch) => self.new_folder(batch),
            Op::StartFolder => self.start_folder(),
            Op::PollFolder => self.poll_folder(),
            Op::FoldBatch => self.fold_batch(),
            Op::FoldAll => self.fold_all(),
            Op::DropFolder => self.drop_folder(),
            &Op::MaterialiseFree { at, map_pages } => self.materialise_free(at, map_pages),
            &Op::SetLayout(layout) => {
                self.engine().set_layout(layout);
                Ok(())
            }
            Op::Walker => self.new_walker(),
            Op::DropWalker => {
                drop(self.walkers.pop());
                Ok(())
            }
            &Op::TryGet { at, keep } => self.try_get(at, keep),
            &Op::Peek(at) => self.peek(at),
            Op::Section(looks) => self.section(looks),
            &Op::Poison(at) => self.poison(at),
            Op::Defer => self.defer(),
            Op::RunDeferred => {
                self.engine().rcu().run_deferred();
                Ok(())
            }
            Op::Synchronize => {
                self.engine().rcu().synchronize();
                Ok(())
            }
            &Op::Isolate { at, areas } => self.isolate(at, areas),
            Op::Collect => self.collect(),
            Op::EndIsolation => self.end_isolation(),
            Op::Add { .. }
            | Op::Online { .. }
            | Op::Offline { .. }
            | Op::Remove(_)
            | Op::FakeOffline { .. }
            | Op::Withdraw { .. }
            | Op::FakeOnline { .. }
            | Op::PrepareFakeOnline { .. }
            | Op::IsFakeOffline(_) => self.change_blocks(&step.op),
            Op::Audit => self.audit(),
            Op::Yield => {
                std::thread::yield_now();
                Ok(())
            }
        }
    }

    /// Drops everything.
    pub fn end(&mut self) -> Outcome {
        self.drop_batch()?;
        self.drop_folder()?;
        self.end_isolation()?;
        self.held.drain(..).try_for_each(|held| held.end(self.world))?;
        self.walkers.clear();
        Ok(())
    }

    fn audit(&self) -> Outcome {
        if !self.world.is_exact {
            return Ok(());
        }
        let blocks = self.world.blocks.lock().unwrap();
        crate::run::audit(self.world, &blocks).map(drop)
    }
}

pub fn order(order: u8) -> Order {
    Order::new(u32::from(order)).unwrap_or(Order::MAX)
}

/// A kind.
pub fn kind(kind: u8) -> Kind {
    Kind::ALL[usize::from(kind) % Kind::ALL.len()]
}
