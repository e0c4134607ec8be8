//! Memory blocks come and go.

mod end;
mod listener;
mod mover;
mod withdraw;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use pagefold_engine::geometry::{AREA_ORDER, PAGES_PER_SECTION};
use pagefold_engine::hotplug::{BlockError, BlockId, FakeOffline, Group, Hotplug, HotplugConfig, OnlineTo};
use pagefold_engine::{AddError, BlockState, Class, Order, PageKind, Pfn, Zone};

use listener::{Now, Reporter};
use mover::Mover;
use withdraw::Part;

use crate::actor::{Actor, World};
use crate::failing::{Failing, Machine, armed, has_struck};
use crate::ledger::{Ledger, Outcome, ensure};
use crate::program::{Op, Report, Setup};
use crate::run::Pulse;

const AREA: u64 = 1 << AREA_ORDER;

/// The payload of callbacks that panic on purpose.
struct OnPurpose;

/// Calls the engine. `None` if a callback has panicked on purpose.
fn calmly<T>(call: impl FnOnce() -> T) -> Outcome<Option<T>> {
    match catch_unwind(AssertUnwindSafe(|| armed(call))) {
        Ok(done) => Ok(Some(done)),
        Err(payload) if payload.is::<OnPurpose>() => Ok(None),
        Err(payload) => Err(format!("the engine panicked: {}", text(&payload))),
    }
}

/// What a panic said.
pub fn text(payload: &Box<dyn Any + Send>) -> String {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

/// A memory block that was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// `None` while it is offline.
    zone: Option<Zone>,
    /// Areas that have memory.
    plugged: BTreeSet<u64>,
}

/// Memory hotplug, and what programs know of it.
pub struct Blocks<'e> {
    hotplug: Hotplug<'e, Failing>,
    size: u64,
    boot: Range<u64>,
    known: BTreeMap<u64, Block>,
    reporter: Arc<Reporter<'e>>,
    pulse: &'e Pulse,

    is_classic: bool,
}

impl<'e> Blocks<'e> {
    pub fn new(engine: &'e Machine, ledger: &'e Ledger, pulse: &'e Pulse, setup: &Setup) -> Outcome<Self> {
        let size = setup.block_sections * PAGES_PER_SECTION;
        let config = HotplugConfig {
            block_pages: size,
            fake_offline: setup.fake_offline,
            passes: setup.passes,
            ..HotplugConfig::default()
        };
        let mut hotplug = engine.hotplug(config).map_err(|error| error.to_string())?;
        hotplug.boot(setup.boot.clone(), 0).map_err(|error| error.to_string())?;
        let reporter = Arc::new(Reporter {
            engine,
            ledger,
            now: Mutex::new(Now { report: Report::Nothing, vetoes_offline: false }),
            taken: Mutex::new(Vec::new()),
            wrong: Mutex::new(None),
        });
        hotplug.listen(reporter.clone()).map_err(|error| error.to_string())?;
        // Objects describe no fake-offline pages: what was asked for may not be what is done.
        let is_classic = matches!(hotplug.config().fake_offline, FakeOffline::Classic { .. });
        let boot = setup.boot.clone();
        let mut blocks = Self { hotplug, size, boot, known: BTreeMap::new(), reporter, pulse, is_classic };
        for &(block, zone) in &setup.online {
            blocks.add(block, 1)?;
            blocks.online(block, Some(zone), Report::Nothing)?;
        }
        Ok(blocks)
    }

    fn pages(&self, block: u64) -> Range<u64> {
        block * self.size..(block + 1) * self.size
    }
    fn areas(&self, block: u64) -> Range<u64> {
        self.pages(block).start / AREA..self.pages(block).end / AREA
    }

    /// Whether the engine says that there is memory in an area of an online block.
    fn is_plugged(&self, area: u64) -> bool {
        let engine = self.hotplug.engine();
        let pfn = Pfn(area * AREA);
        match engine.class(pfn).0 {
            Class::Absent | Class::Offline => false,
            Class::Mapped if self.is_classic => {
                let peek = engine.walker().ok().and_then(|walker| walker.peek(pfn));
                peek.is_none_or(|peek| !(peek.state.is_head() && peek.state.kind() == PageKind::Offline))
            }
            _ => true,
        }
    }

    /// Whether the machine has memory at `pfn`, as far as the programs know.
    pub fn has_memory(&self, pfn: u64) -> bool {
        let block = self.known.get(&(pfn / self.size));
        self.boot.contains(&pfn) || block.is_some_and(|block| block.plugged.contains(&(pfn / AREA)))
    }

    /// Whether all of a block of pages is free and in one zone.
    pub fn is_free(&self, world: &World<'_>, first: u64, order: Order) -> bool {
        let engine = self.hotplug.engine();
        let mut pages = first..first + order.pages();
        let zone = engine.zone_of(Pfn(first));
        let is_one_zone =
            pages.clone().step_by(PAGES_PER_SECTION as usize).all(|page| engine.zone_of(Pfn(page)) == zone);
        first.is_multiple_of(order.pages())
            && is_one_zone
            && pages.all(|pfn| {
                self.has_memory(pfn) && world.ledger.owner(pfn).is_none() && !world.ledger.is_poisoned(pfn)
            })
    }

    /// A free block of pages, where one can be.
    pub fn free_block(&self, world: &World<'_>, order: Order, movable: bool) -> Option<u64> {
        (0..world.ledger.pages()).step_by(order.pages() as usize).find(|&first| {
            let zone = self.hotplug.engine().zone_of(Pfn(first));
            (movable || zone == Zone::Normal) && self.is_free(world, first, order)
        })
    }

    /// Pages that have memory.
    pub fn memory(&self) -> u64 {
        let plugged: u64 = self.known.values().map(|block| block.plugged.len() as u64 * AREA).sum();
        self.boot.end - self.boot.start + plugged
    }

    /// Pages that are fake-offline, and have descriptors all the same.
    pub fn described_offline(&self) -> u64 {
        let online = self.known.values().filter(|block| block.zone.is_some());
        let missing: u64 = online.map(|block| self.size - block.plugged.len() as u64 * AREA).sum();
        if self.is_classic { missing } else { 0 }
    }

    /// Checks what the engine says of blocks and zones.
    pub fn check(&self) -> Outcome {
        if let Some(wrong) = self.reporter.wrong.lock().unwrap().take() {
            return Err(wrong);
        }
        let states: Vec<_> = self.hotplug.blocks().map(|info| (info.id.0, info.state)).collect();
        let state =
            |block: &Block| if block.zone.is_some() { BlockState::Online } else { BlockState::Offline };
        let expected: Vec<_> = self.known.iter().map(|(&id, block)| (id, state(block))).collect();
        ensure!(states == expected, "blocks are {states:?}, and should be {expected:?}");
        for zone in Zone::ALL {
            let blocks = self.known.values().filter(|block| block.zone == Some(zone));
            let plugged: u64 = blocks.map(|block| block.plugged.len() as u64 * AREA).sum();
            let boot = if zone == Zone::Normal { self.boot.end - self.boot.start } else { 0 };
            let managed = self.hotplug.zone(zone).managed;
            ensure!(managed == boot + plugged, "zone {zone:?} manages {managed} pages of {}", boot + plugged);
        }
        Ok(())
    }

    // ---- the steps ---------------------------------------------------------------------------------------------

    fn add(&mut self, block: u64, count: u64) -> Outcome {
        let (pages, new) = (self.pages(block).start..self.pages(block + count - 1).end, block..block + count);
        let is_there = new.clone().any(|block| self.known.contains_key(&block))
            || pages.start < self.boot.end && self.boot.start < pages.end;
        match calmly(|| self.hotplug.add(pages.clone(), 0, Group::NONE))? {
            Some(Ok(())) => {
                ensure!(!is_there, "{pages:x?} was added twice");
                self.pulse.saw("added");
                new.for_each(|block| _ = self.known.insert(block, Block::default()));
            }
            Some(Err(AddError::Overlap)) => ensure!(is_there, "{pages:x?} was not there"),
            Some(Err(AddError::OutOfRange)) => {
                ensure!(pages.end > self.hotplug.engine().pages(), "{pages:x?} is in the machine");
            }
            Some(Err(AddError::OutOfMemory)) => {
                ensure!(has_struck(), "{pages:x?} was not added, and nothing failed")
            }
            other => return Err(format!("adding {pages:x?}: {other:?}")),
        }
        self.check()
    }

    /// What the engine says of a block's state, of those that are there for longer than a step.
    fn state(&self, block: u64) -> Outcome<Option<BlockState>> {
        let state = self.hotplug.block(BlockId(block)).map(|info| info.state);
        ensure!(state != Some(BlockState::Going), "block {block} is going for ever");
        Ok(state)
    }

    fn online(&mut self, block: u64, zone: Option<Zone>, report: Report) -> Outcome {
        *self.reporter.now.lock().unwrap() = Now { report, vetoes_offline: false };
        let before = self.state(block)?;
        let to = zone.map_or(OnlineTo::Policy, OnlineTo::Zone);
        let done = calmly(|| self.hotplug.online(BlockId(block), to))?;
        self.reporter.now.lock().unwrap().report = Report::Nothing;
        let after = self.state(block)?;
        let is_online = before == Some(BlockState::Offline) && after == Some(BlockState::Online);
        match done {
            Some(Ok(at)) => {
                ensure!(
                    is_online && zone.is_none_or(|zone| zone == at),
                    "block {block} went from {before:?} to {after:?}"
                )
            }
            Some(Err(error)) => {
                ensure!(before == after, "block {block} went from {before:?} to {after:?}: {error}");
                let is_right = match error {
                    BlockError::UnknownBlock => before.is_none(),
                    BlockError::State(state) => Some(state) == before && state == BlockState::Online,
                    BlockError::OutOfMemory => has_struck(),
                    _ => !report.is_honest(),
                };
                ensure!(is_right, "block {block}, {before:?}, did not go online: {error}");
            }
            None => {}
        }
        if done.is_none() {
            self.pulse.saw("panicked while a block went online");
        }
        if is_online {
            // The policy may have chosen; that a listener panicked afterwards changes nothing.
            let zone = self.hotplug.block(BlockId(block)).map_or(Zone::Normal, |info| info.zone);
            self.pulse.saw(if zone == Zone::Movable { "online to move" } else { "online" });

            let plugged: BTreeSet<u64> = self.areas(block).filter(|&area| self.is_plugged(area)).collect();
            if report.is_honest() {
                let expected: BTreeSet<u64> = self.areas(block).filter(|&area| report.has(area)).collect();
                ensure!(
                    plugged == expected,
                    "block {block} has areas {plugged:?}, and should have {expected:?}"
                );
            }
            self.known.insert(block, Block { zone: Some(zone), plugged });
        } else if before == Some(BlockState::Offline) {
            self.is_all_offline(block)?;
        }
        self.check()
    }

    fn is_all_offline(&self, block: u64) -> Outcome {
        let engine = self.hotplug.engine();
        for pfn in self.pages(block).step_by(64) {
            let class = engine.class(Pfn(pfn));
            ensure!(class.0 == Class::Offline, "block {block} is offline, and {pfn:#x} is {class:?}");
        }
        Ok(())
    }

    fn offline(&mut self, block: u64, mover: &mut Mover<'_, 'e>, veto: bool) -> Outcome {
        *self.reporter.now.lock().unwrap() = Now { report: Report::Nothing, vetoes_offline: veto };
        let before = self.state(block)?;
        let done = calmly(|| self.hotplug.offline(BlockId(block), mover))?;
        let after = self.state(block)?;
        mover.wrong()?;
        let is_offline = before == Some(BlockState::Online) && after == Some(BlockState::Offline);
        match done {
            Some(Ok(())) => {
                ensure!(is_offline, "block {block} went from {before:?} to {after:?}");
                ensure!(!veto, "block {block} went offline against a veto");
            }
            Some(Err(error)) => {
                ensure!(before == after, "block {block} went from {before:?} to {after:?}: {error}");
                let is_right = match error {
                    BlockError::UnknownBlock => before.is_none(),
                    BlockError::State(state) => Some(state) == before && state == BlockState::Offline,
                    BlockError::OutOfMemory => has_struck(),
                    BlockError::Veto(_) => veto,
                    BlockError::Held(_) => self.is_classic,
                    BlockError::BadPart(_)
                    | BlockError::BadRange
                    | BlockError::NotFakeOffline(_)
                    | BlockError::AlreadyFakeOffline(_) => false,
                    BlockError::Busy(_) | BlockError::NoRoom(_) => {
                        self.may_be_busy(mover.world, self.pages(block))
                    }
                };
                ensure!(is_right, "block {block}, {before:?}, did not go offline: {error}");
            }
            None => {}
        }
        if done.is_none() {
            self.pulse.saw("panicked while a block went offline");
        }
        if is_offline {
            self.pulse.saw("offline");

            if let Some((pfn, number)) = mover.world.ledger.owned_in(self.pages(block)) {
                return Err(format!("block {block} went offline under page {pfn:#x} of folio {number}"));
            }
            self.known.insert(block, Block::default());
            self.is_all_offline(block)?;
        }
        self.check()
    }

    /// Whether something may be in the way of taking `pages`.
    fn may_be_busy(&self, world: &World<'_>, pages: Range<u64>) -> bool {
        !world.is_all_free_in_reach() || world.ledger.owned_in(pages).is_some()
    }

    fn remove(&mut self, block: u64) -> Outcome {
        let before = self.state(block)?;
        match calmly(|| self.hotplug.remove(BlockId(block)))? {
            Some(Ok(())) => {
                self.pulse.saw("removed");
                ensure!(before == Some(BlockState::Offline), "block {block} was {before:?}, and was removed");
                self.known.remove(&block);
                let engine = self.hotplug.engine();
                for pfn in self.pages(block).step_by(64) {
                    let class = engine.class(Pfn(pfn));
                    let is_right =
                        class == (Class::Absent, false) || class == (Class::Absent, true) && has_struck();
                    ensure!(is_right, "{pfn:#x} was removed, and is {class:?}");
                }
            }
            Some(Err(error)) => {
                let is_right = match error {
                    BlockError::UnknownBlock => before.is_none(),
                    BlockError::State(state) => Some(state) == before && state == BlockState::Online,
                    BlockError::OutOfMemory => has_struck(),
                    _ => false,
                };
                ensure!(is_right, "block {block}, {before:?}, was not removed: {error}");
            }
            None => return Err("nobody was asked, and panicked".into()),
        }
        self.check()
    }

    /// The online block that `areas` lie in.
    fn block_of(&self, areas: &Range<u64>) -> Option<u64> {
        let block = areas.start * AREA / self.size;
        let is_inside = (areas.end - 1) * AREA / self.size == block;
        (is_inside && self.known.get(&block)?.zone.is_some()).then_some(block)
    }

    fn fake_offline(&mut self, areas: Range<u64>, mover: &mut Mover<'_, 'e>) -> Outcome {
        let pages = areas.start * AREA..areas.end * AREA;
        let block = self.block_of(&areas);
        let done = calmly(|| self.hotplug.fake_offline(pages.clone(), mover))?;
        mover.wrong()?;
        match done {
            Some(Ok(())) => {
                let Some(known) = block.and_then(|block| self.known.get_mut(&block)) else {
                    return Err(format!("{pages:x?} is not in an online block, and went offline"));
                };
                self.pulse.saw(if self.is_classic { "unplugged, and described" } else { "unplugged" });
                known.plugged.retain(|area| !areas.contains(area));
                if let Some((pfn, number)) = mover.world.ledger.owned_in(pages.clone()) {
                    return Err(format!("{pages:x?} went offline under page {pfn:#x} of folio {number}"));
                }
                for area in areas {
                    ensure!(!self.is_plugged(area), "area {area:#x} was unplugged, and is there");
                }
            }
            Some(Err(error)) => {
                let is_right = match error {
                    BlockError::BadRange => block.is_none(),
                    BlockError::OutOfMemory => has_struck(),
                    BlockError::AlreadyFakeOffline(pfn) => !self.has_memory(pfn.0),
                    BlockError::Busy(_) | BlockError::NoRoom(_) => {
                        self.may_be_busy(mover.world, pages.clone())
                    }
                    BlockError::Held(_) => self.is_classic,
                    _ => false,
                };
                ensure!(is_right, "{pages:x?} was not unplugged: {error}");
            }
            None => {}
        }
        self.check()
    }

    fn fake_online(&mut self, world: &World<'e>, areas: Range<u64>) -> Outcome {
        let pages = areas.start * AREA..areas.end * AREA;
        let block = self.block_of(&areas);
        let has_memory = areas.clone().any(|area| self.has_memory(area * AREA));
        match calmly(|| self.hotplug.fake_online(pages.clone()))? {
            Some(Ok(())) => {
                ensure!(!has_memory, "{pages:x?} has memory, and was plugged once more");
                let Some(known) = block.and_then(|block| self.known.get_mut(&block)) else {
                    return Err(format!("{pages:x?} is not in an online block, and was plugged"));
                };
                self.pulse.saw(if self.is_classic { "plugged what was described" } else { "plugged" });
                known.plugged.extend(areas);
            }
            Some(Err(error)) => {
                let is_right = match error {
                    BlockError::BadRange => block.is_none(),
                    BlockError::OutOfMemory => has_struck(),
                    BlockError::Held(_) => self.is_classic && !world.is_exact,
                    BlockError::NotFakeOffline(pfn) => self.has_memory(pfn.0),
                    _ => false,
                };
                ensure!(is_right, "{pages:x?} was not plugged: {error}");
            }
            None => return Err("nobody was asked, and panicked".into()),
        }
        self.check()
    }

    fn prepare(&mut self, areas: Range<u64>) -> Outcome {
        let block = self.block_of(&areas);
        match calmly(|| self.hotplug.prepare_fake_online(areas.start * AREA..areas.end * AREA))? {
            Some(Ok(())) => ensure!(block.is_some(), "area {:#x} is in no online block", areas.start),
            Some(Err(BlockError::OutOfMemory)) => ensure!(has_struck(), "nothing failed"),
            other => ensure!(block.is_none(), "{other:?}"),
        }
        Ok(())
    }

    fn is_fake_offline(&self, pfn: u64) -> Outcome {
        let block = self.block_of(&(pfn / AREA..pfn / AREA + 1));
        match calmly(|| self.hotplug.is_fake_offline(pfn..pfn + 1))? {
            Some(Ok(is_offline)) => {
                let is_missing = block.is_some() && !self.has_memory(pfn);
                ensure!(block.is_none() || is_offline == is_missing, "{pfn:#x}: {is_offline}, {is_missing}");
            }
            _ => ensure!(has_struck(), "nothing failed"),
        }
        Ok(())
    }
}

impl Report {
    /// Whether memory is in an area, according to an honest report.
    fn has(self, area: u64) -> bool {
        match self {
            Report::Areas(mask) => mask >> (area % 64) & 1 != 0,
            _ => true,
        }
    }
}

impl<'e> Actor<'_, 'e> {
    pub fn change_blocks(&mut self, op: &Op) -> Outcome {
        let areas = |first: u64, count: u8| first / AREA..first / AREA + u64::from(count);
        let (place, world) = (|at| self.page(at), self.world);
        let target = match *op {
            Op::FakeOffline { at, areas: count, .. }
            | Op::FakeOnline { at, areas: count }
            | Op::PrepareFakeOnline { at, areas: count } => areas(place(at), count),
            Op::IsFakeOffline(at) => place(at)..place(at),
            _ => 0..0,
        };
        let mut blocks = world.blocks.lock().unwrap();
        let done = match *op {
            Op::Add { block, blocks: count } => blocks.add(block.into(), count.into()),
            Op::Online { block, zone, report } => blocks.online(block.into(), zone, report),
            Op::Offline { block, migrate, veto } => {
                let mut mover = Mover::new(world, &mut self.held, migrate);
                blocks.offline(block.into(), &mut mover, veto)
            }
            Op::Remove(block) => blocks.remove(block.into()),
            Op::FakeOffline { migrate, .. } => {
                let mut mover = Mover::new(world, &mut self.held, migrate);
                blocks.fake_offline(target, &mut mover)
            }
            Op::Withdraw { at, areas, piece, most, asks, migrate } => {
                let first = place(at) / AREA;
                let (areas, most) = (areas.into(), most.into());
                let part = Part { first, areas, piece: 1 << piece, most, runs: most as usize / 4 + 1, asks };
                blocks.withdraw(part, &mut Mover::new(world, &mut self.held, migrate))
            }
            Op::FakeOnline { .. } => blocks.fake_online(world, target),
            Op::PrepareFakeOnline { .. } => blocks.prepare(target),
            _ => blocks.is_fake_offline(target.start),
        };
        self.held.append(&mut blocks.reporter.taken.lock().unwrap());
        done
    }
}
