//! Programs out of seeds.
//!
//! What programs do is drawn so that threads meet: a program has a few *hot* areas, where most of its page numbers lie.

use std::ops::Range;

use pagefold_engine::geometry::{AREA_ORDER, MapGeometry, PAGES_PER_SECTION};
use pagefold_engine::hotplug::FakeOffline;
use pagefold_engine::{Layout, Zone};

use crate::failing::{Fault, Scarce, TestDescriptors};
use crate::program::{Answer, Op, Place, Program, Report, Schedule, Setup, Step};

const AREA: u64 = 1 << AREA_ORDER;

/// Numbers that look random (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
    /// In `range`.
    fn of(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
    /// Once in `n`.
    fn once_in(&mut self, n: u64) -> bool {
        self.of(0..n) == 0
    }
    fn any<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.of(0..all.len() as u64) as usize]
    }
}

/// The program of a seed.
pub fn program(seed: u64) -> Program {
    let mut random = Random::new(seed);
    let setup = setup(&mut random);
    let threads = random.of(2..4);
    let length = random.of(20..50) * threads;
    let hot = hot(&mut random, &setup);
    let taste = random.of(0..5) as u8;
    let mut draw = Draw { random, taste, blocks: setup.sections / setup.block_sections, setup: &setup, hot };
    // What runs one step after the other does not need many threads to go on; but a thread goes on for a while.
    let mut thread = 0;
    let mut steps = Vec::new();
    for _ in 0..length {
        if draw.random.once_in(3) {
            thread = draw.random.of(0..threads) as u8;
        }
        steps.push(draw.step(thread));
    }
    Program { setup, steps }
}

fn setup(random: &mut Random) -> Setup {
    let block_sections = random.any(&[1, 1, 2, 4]);
    // A huge machine now and then: folios larger than a section.
    let blocks = if random.once_in(8) { 8 / block_sections + random.of(1..3) } else { random.of(2..5) };
    let sections = block_sections * (blocks + 1);
    let boot = match random.of(0..4) {
        0 => 70..PAGES_PER_SECTION - 37,
        1 => 0..4 * AREA,
        _ => 0..PAGES_PER_SECTION * random.of(1..block_sections + 1),
    };
    let fake_offline = random.any(&[
        FakeOffline::Folded,
        FakeOffline::Folded,
        FakeOffline::Classic { rcu: true },
        FakeOffline::Classic { rcu: false },
    ]);
    // Block 0 is boot memory's.
    let online = (1..blocks).filter_map(|block| match random.of(0..4) {
        0 => None,
        1 => Some((block, Zone::Normal)),
        _ => Some((block, Zone::Movable)),
    });
    let online = online.collect();
    Setup {
        sections,
        boot,
        block_sections,
        online,
        fake_offline,
        layout: random.any(&[Layout::Folded, Layout::Folded, Layout::Flat]),
        passes: random.of(0..4) as usize,
        schedule: if random.once_in(2) { Schedule::Turns } else { Schedule::AtOnce(random.next() | 1) },
        drops_in_threads: random.once_in(2),
    }
}

/// First pages of a few areas.
fn hot(random: &mut Random, setup: &Setup) -> Vec<u64> {
    let mut hot = vec![setup.boot.start / AREA * AREA];
    for &(block, _) in &setup.online {
        let first = block * setup.block_sections * PAGES_PER_SECTION;
        let section = random.of(0..setup.block_sections) * PAGES_PER_SECTION;
        hot.push(first + section + AREA * random.any(&[0, 0, 1, PAGES_PER_SECTION / AREA - 1]));
    }
    hot
}

/// Programs do something of everything, and most of them more of one thing.
fn is_to_taste(taste: u8, op: &Op) -> bool {
    match taste {
        // Reshaping and folding what is held.
        0 => matches!(
            op,
            Op::Alloc { .. }
                | Op::AllocAt { .. }
                | Op::Freeze(_)
                | Op::Split { .. }
                | Op::Collapse { .. }
                | Op::Unfold(_)
                | Op::Push(_)
                | Op::Commit
                | Op::Drain
        ),
        // Free memory.
        1 => matches!(
            op,
            Op::AllocAt { .. }
                | Op::Put(_)
                | Op::NewFolder(_)
                | Op::StartFolder
                | Op::PollFolder
                | Op::FoldBatch
                | Op::FoldAll
                | Op::MaterialiseFree { .. }
                | Op::Poison(_)
                | Op::Isolate { .. }
        ),
        // Memory that comes and goes.
        2 => matches!(
            op,
            Op::AllocAt { .. }
                | Op::Alloc { .. }
                | Op::Poison(_)
                | Op::Add { .. }
                | Op::Online { .. }
                | Op::Offline { .. }
                | Op::Remove(_)
                | Op::FakeOffline { .. }
                | Op::Withdraw { .. }
                | Op::FakeOnline { .. }
        ),
        // References.
        3 => matches!(
            op,
            Op::AllocAt { .. }
                | Op::Share(_)
                | Op::Freeze(_)
                | Op::Get(_)
                | Op::Put(_)
                | Op::Raw(_)
                | Op::Give(_)
                | Op::Receive
                | Op::TryGet { .. }
                | Op::Section(_)
        ),
        _ => true,
    }
}

struct Draw<'s> {
    random: Random,
    /// What the program does most of: see [`is_to_taste`].
    taste: u8,
    blocks: u64,
    setup: &'s Setup,
    hot: Vec<u64>,
}

impl Draw<'_> {
    fn step(&mut self, thread: u8) -> Step {
        let fault = self.random.once_in(5).then(|| Fault {
            what: self.random.any(&[Scarce::Heap, Scarce::Tables, Scarce::Tables, Scarce::Folds]),
            after: self.random.any(&[0, 0, 0, 1, 1, 2, 3, 5, 8]),
            times: self.random.any(&[1, 1, 2, 255]),
        });
        let op = self.op();
        Step { thread, fault, op }
    }

    fn which(&mut self) -> u8 {
        self.random.next() as u8
    }

    fn page(&mut self) -> u64 {
        let last = self.setup.sections * PAGES_PER_SECTION - 1;
        let page = match self.random.of(0..10) {
            // In few map pages of a hot area, or anywhere in it.
            0..5 => self.random.any(&self.hot) + self.random.of(0..3 * TestDescriptors::PAGES_PER_MAP_PAGE),
            5..8 => self.random.any(&self.hot) + self.random.of(0..AREA),
            // Around the edges of sections.
            8 => (self.random.of(0..self.setup.sections) * PAGES_PER_SECTION + self.random.of(0..130))
                .saturating_sub(65),
            _ => self.random.of(0..last + AREA),
        };
        page.min(last + 70)
    }

    fn place(&mut self) -> Place {
        if self.random.once_in(3) {
            Place::Of(self.which(), self.random.next() as u32)
        } else {
            Place::Page(self.page())
        }
    }

    fn order(&mut self) -> u8 {
        match self.random.of(0..16) {
            0..6 => 0,
            6..8 => self.random.of(1..6) as u8,
            8..10 => self.random.of(6..9) as u8,
            10..13 => 9,
            13..15 => self.random.of(7..12) as u8,
            _ => self.random.of(12..19) as u8,
        }
    }

    fn answer(&mut self) -> Answer {
        self.random.any(&[
            Answer::Moves,
            Answer::Moves,
            Answer::Moves,
            Answer::Moves,
            Answer::Busy,
            Answer::NoMemory,
            Answer::Unmovable,
            Answer::Lies,
            Answer::Keeps,
            Answer::Frees,
            Answer::Panics,
        ])
    }

    fn report(&mut self) -> Report {
        match self.random.of(0..16) {
            0..5 => Report::Nothing,
            5..9 => Report::Areas(self.random.next() & self.random.next()),
            9 => Report::Twice(self.random.next()),
            10 => Report::Beyond,
            11..13 => Report::Taking,
            13 => Report::Panics,
            14 => Report::Vetoes,
            _ => Report::PanicsAtOnce,
        }
    }

    fn zone(&mut self) -> Option<Zone> {
        self.random.any(&[Some(Zone::Movable), Some(Zone::Movable), Some(Zone::Normal), None])
    }

    fn block(&mut self) -> u8 {
        self.random.of(0..self.blocks) as u8
    }

    fn op(&mut self) -> Op {
        loop {
            let op = self.draw();
            if is_to_taste(self.taste, &op) || self.random.once_in(3) {
                return op;
            }
        }
    }

    fn draw(&mut self) -> Op {
        let which = self.which();
        match self.random.of(0..100) {
            0..9 => Op::Alloc {
                order: self.order(),
                kind: self.which(),
                movable: !self.random.once_in(3),
                share: self.random.once_in(2),
            },
            9..15 => Op::AllocAt { at: self.place(), order: self.order(), share: self.random.once_in(2) },
            // A whole section, to be made one with its neighbour.
            15 => Op::AllocAt {
                at: Place::Page(self.random.of(0..self.setup.sections) * PAGES_PER_SECTION),
                order: 15,
                share: self.random.once_in(4),
            },
            16 if self.random.once_in(3) => Op::Exhaust,
            16..18 => Op::Share(which),
            18..20 => Op::Freeze(which),
            20..22 => Op::Get(which),
            22..29 => Op::Put(which),
            29 if self.random.once_in(8) => Op::Forget(which),
            29 => Op::Write(which, self.which()),
            30 => Op::Check(which),
            31..34 => Op::Split {
                which,
                lower: self.random.any(&[0, 1, 1, 1, 2, 2, 3, 4, 7, 9]),
                keep: if self.random.once_in(2) { u16::MAX } else { self.random.next() as u16 },
                forget_rest: self.random.once_in(64),
            },
            34..37 => Op::Collapse { which, order: self.random.of(1..19) as u8 },
            37..39 => Op::Unfold(which),
            39 if self.random.once_in(2) => Op::Raw(which),
            39 => Op::Check(which),
            40..42 => Op::Give(which),
            42..44 => Op::Receive,
            44..48 => Op::Push(which),
            48..50 => Op::Commit,
            50..52 => Op::Drain,
            52 => Op::DropBatch,
            53 => Op::NewFolder(self.random.any(&[1, 2, 16, 64, 200])),
            54..56 => Op::StartFolder,
            56..58 => Op::PollFolder,
            58..60 => Op::FoldBatch,
            60 => Op::FoldAll,
            61 => Op::DropFolder,
            62..64 => Op::MaterialiseFree { at: self.place(), map_pages: self.random.of(1..40) as u16 },
            64 => Op::SetLayout(self.random.any(&[Layout::Folded, Layout::Flat])),
            65 if self.random.once_in(2) => Op::Walker,
            65 => Op::DropWalker,
            66..72 => Op::TryGet { at: self.place(), keep: self.random.once_in(3) },
            72 => Op::Peek(self.place()),
            73 => {
                let looks = self.random.of(1..6);
                Op::Section((0..looks).map(|_| self.place()).collect())
            }
            74..76 => Op::Poison(self.place()),
            76 => Op::Defer,
            77 => {
                if self.random.once_in(2) {
                    Op::RunDeferred
                } else {
                    Op::Synchronize
                }
            }
            78..80 => Op::Isolate { at: self.place(), areas: self.random.any(&[1, 1, 2, 64, 70]) },
            80 => Op::Collect,
            81 => Op::EndIsolation,
            82..84 => Op::Add { block: self.block(), blocks: self.random.any(&[1, 1, 1, 2]) },
            84..87 => Op::Online { block: self.block(), zone: self.zone(), report: self.report() },
            87..90 => {
                Op::Offline { block: self.block(), migrate: self.answer(), veto: self.random.once_in(8) }
            }
            90 => Op::Remove(self.block()),
            93 => Op::Withdraw {
                at: self.place(),
                areas: self.random.any(&[1, 4, 64, 200]),
                piece: self.random.any(&[0, 0, 1, 4]),
                most: self.random.any(&[1, 16, 255]),
                asks: !self.random.once_in(3),
                migrate: self.answer(),
            },
            91..93 => Op::FakeOffline {
                at: self.place(),
                areas: self.random.any(&[1, 1, 2, 64]),
                migrate: self.answer(),
            },
            94..96 => Op::FakeOnline { at: self.place(), areas: self.random.any(&[1, 1, 2, 64]) },
            96 => Op::PrepareFakeOnline { at: self.place(), areas: 1 },
            97 => Op::IsFakeOffline(self.place()),
            98 => Op::Audit,
            _ => Op::Yield,
        }
    }
}
