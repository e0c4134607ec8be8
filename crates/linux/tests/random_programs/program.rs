//! A program: what it runs on, and what its threads do, one line a step.

use std::fmt;
use std::ops::Range;

use pagefold_engine::hotplug::FakeOffline;
use pagefold_engine::{Layout, Zone};

use crate::failing::Fault;

/// A whole program. It is a value: it prints as a listing, shrinks, and runs as often as one likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub setup: Setup,
    pub steps: Vec<Step>,
}

/// What a program runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Sections of the machine.
    pub sections: u64,
    /// Its boot memory, in pages; it need not be aligned.
    pub boot: Range<u64>,
    /// Sections in a memory block.
    pub block_sections: u64,
    /// Blocks that are online at the start, and where.
    pub online: Vec<(u64, Zone)>,
    pub fake_offline: FakeOffline,
    pub layout: Layout,
    pub passes: usize,
    pub schedule: Schedule,
    /// Whether threads drop what they have themselves, at their end.
    pub drops_in_threads: bool,
}

/// How the threads of a program run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// One step after the other, in the order of the listing: the program does the same every time.
    Turns,
    /// All threads at once. The seed says when they lose their CPUs.
    AtOnce(u64),
}

/// What one thread does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub thread: u8,
    /// What fails meanwhile.
    pub fault: Option<Fault>,
    pub op: Op,
}

/// One of the handles that a thread has: the number, modulo how many they are.
pub type Which = u8;

/// A page number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This one.
    Page(u64),
    /// A page of a folio that the thread has.
    Of(Which, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    // ---- owners
    Alloc {
        order: u8,
        kind: u8,
        movable: bool,
        share: bool,
    },
    AllocAt {
        at: Place,
        order: u8,
        share: bool,
    },
    /// Takes all the memory that is left, in large folios.
    Exhaust,
    Share(Which),
    Freeze(Which),
    Get(Which),
    Put(Which),
    /// Leaks the handle.
    Forget(Which),
    Write(Which, u8),
    Check(Which),
    /// Into pieces of an order that is `lower` by so much; of the first sixteen those of `keep` are kept.
    Split {
        which: Which,
        lower: u8,
        keep: u16,
        forget_rest: bool,
    },
    /// Collapses what the thread has frozen in the block around a folio.
    Collapse {
        which: Which,
        order: u8,
    },
    Unfold(Which),
    Raw(Which),
    Give(Which),
    Receive,
    // ---- folding
    Push(Which),
    Commit,
    Drain,
    DropBatch,
    NewFolder(u8),
    StartFolder,
    PollFolder,
    FoldBatch,
    FoldAll,
    DropFolder,
    MaterialiseFree {
        at: Place,
        map_pages: u16,
    },
    SetLayout(Layout),
    // ---- walkers
    Walker,
    DropWalker,
    TryGet {
        at: Place,
        keep: bool,
    },
    Peek(Place),
    /// Several looks inside one section.
    Section(Vec<Place>),
    Poison(Place),
    Defer,
    RunDeferred,
    Synchronize,
    // ---- isolation
    Isolate {
        at: Place,
        areas: u16,
    },
    Collect,
    EndIsolation,
    // ---- memory blocks
    Add {
        block: u8,
        blocks: u8,
    },
    /// Into a zone, or wherever the policy says.
    Online {
        block: u8,
        zone: Option<Zone>,
        report: Report,
    },
    Offline {
        block: u8,
        migrate: Answer,
        veto: bool,
    },
    Remove(u8),
    FakeOffline {
        at: Place,
        areas: u8,
        migrate: Answer,
    },
    /// `piece` is an order above areas; `most` is in areas.
    Withdraw {
        at: Place,
        areas: u8,
        piece: u8,
        most: u8,
        asks: bool,
        migrate: Answer,
    },
    FakeOnline {
        at: Place,
        areas: u8,
    },
    PrepareFakeOnline {
        at: Place,
        areas: u8,
    },
    IsFakeOffline(Place),
    /// Checks the whole machine, where nothing else moves.
    Audit,
    Yield,
}

/// What a listener says of a block that goes online, and whether it lets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// None of its business.
    Nothing,
    /// These areas of it have memory (bit `n`: those whose number is `n` modulo 64).
    Areas(u64),
    /// As `Areas`, each told twice.
    Twice(u64),
    /// More than the block, and not in whole areas.
    Beyond,
    /// The first area, and takes a page of it at once, and then the same area again.
    Taking,
    /// The first area, and then it panics.
    Panics,
    /// It refuses.
    Vetoes,
    /// It panics when it is told that the block is about to go online.
    PanicsAtOnce,
}

impl Report {
    /// Whether all that it says is true, and it says the same whenever asked.
    pub fn is_honest(self) -> bool {
        matches!(self, Report::Nothing | Report::Areas(_))
    }
}

/// What owners answer when they are asked to move a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They move it, if it is theirs.
    Moves,
    Busy,
    NoMemory,
    Unmovable,
    /// They say so, and do nothing.
    Lies,
    /// They keep the reference that they were given.
    Keeps,
    /// They free theirs.
    Frees,
    Panics,
}

impl Program {
    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.steps.iter().map(|step| usize::from(step.thread) + 1).max().unwrap_or(1)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.setup)?;
        for step in &self.steps {
            write!(f, "{:indent$}{}: {:?}", "", step.thread, step.op, indent = 2 * usize::from(step.thread))?;
            match step.fault {
                Some(fault) => {
                    writeln!(f, "  [{:?} fail {} after {}]", fault.what, fault.times, fault.after)?
                }
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
