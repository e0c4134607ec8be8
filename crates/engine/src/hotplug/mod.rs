//! Memory that comes and goes: memory blocks are added, go online into a zone, offline, and are removed, under walkers.
//!
//! # States of a memory block
//!
//! | state | class of its map pages | who has its pages |
//! |---|---|---|
//! | not added | `Absent` | nobody |
//! | offline | `Offline` | nobody |
//! | online | `Free`, `Mapped`, `Tail` where memory is; `Offline` where a listener says that none is | its zone's allocator |
//!
//! | from | by | to | on the way |
//! |---|---|---|---|
//! | not added | [`Hotplug::add`] | offline | nothing is materialised |
//! | offline | [`Hotplug::online`] | online | `GoingOnline` (veto: `CancelOnline`), then `Online` |
//! | online | [`Hotplug::offline`] | offline | `GoingOffline` (veto or busy: `CancelOffline`), then `Offline` |
//! | offline | [`Hotplug::remove`] | not added | nothing: everything is folded already |
//!
//! Each step does all of its work or none. Whatever can run out of memory is tried before anything can be seen.
//!
//! # Fake-offline
//!
//! Inside an online block, areas may be *fake-offline*: present, but without memory behind them, since a hypervisor took
//! it. There are two ways to keep them, see [`FakeOffline`].
//!
//! # Walkers
//!
//! Walkers do not know about memory blocks. A stale page number in memory that went away finds the class `Offline` or `Absent`; a
//! read of the descriptor still finds zeros. The memory of descriptors goes after a grace period, as everywhere.
//!
//! Terms, states and the order of notifications are those of Linux (`mm/memory_hotplug.c`, `drivers/base/memory.c`).

mod classic;
mod notify;
mod policy;
mod withdraw;

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

pub use classic::HeldPage;
pub use notify::{BadPart, Change, Event, Listener, Veto};
pub use policy::{DEFAULT_RATIO, Group, OnlinePolicy, ZoneInfo};
pub use withdraw::{Busy, Migrate, Migration, Unmovable};

use crate::class::{Class, ClassByte};
use crate::engine::{AddError, Engine};
use crate::geometry::{AREA_ORDER, MapPage, PAGES_PER_MAP_PAGE, PAGES_PER_SECTION, Pfn};
use crate::heap::OutOfMemory;
use crate::platform::Platform;
use crate::sync::Ordering;
use crate::zone::{BlockState, Record, Zone, sections_of};
use notify::Chain;
use policy::Counts;

/// How fake-offline areas of online blocks are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FakeOffline {
    /// Class `Offline`: no descriptors, so no reference that anyone could take or would have to drop.
    #[default]
    Folded,
    /// Linux's way: every page has a descriptor of kind [`Offline`](crate::PageKind::Offline) with one reference. It is
    /// dropped when the block is about to go offline, and taken again when that is cancelled.
    Classic {
        /// Whether walkers are told (by the class) and waited for before the references are dropped. Linux does not.
        rcu: bool,
    },
}

/// How memory blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugConfig {
    /// Pages in a memory block: a power of two, at least a section (128 MiB).
    pub block_pages: u64,
    /// Which zone [`OnlineTo::Policy`] means.
    pub policy: OnlinePolicy,
    /// How fake-offline areas are kept.
    pub fake_offline: FakeOffline,
    /// How often to ask owners to move their folios before a block is busy.
    pub passes: usize,
}

impl Default for HotplugConfig {
    fn default() -> Self {
        Self {
            block_pages: PAGES_PER_SECTION,
            policy: OnlinePolicy::default(),
            fake_offline: FakeOffline::default(),
            passes: 5,
        }
    }
}

/// Why there is no [`Hotplug`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotplugError {
    /// The engine has, or had, one already. It is the lock of memory hotplug, and keeps its counts.
    Taken,
    /// The block size is not a power of two of at least a section, or larger than the machine.
    BlockSize,
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HotplugError::Taken => "memory hotplug of this engine was already created",
            HotplugError::BlockSize => {
                "a memory block must be a power of two of at least 128 MiB, inside the machine"
            }
        })
    }
}
impl core::error::Error for HotplugError {}

/// Why a block did not change its state. Nothing was changed, and who was told was told that it is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// No block of that number was added.
    NoBlock,
    /// The block is not in the state that this step begins with.
    State(BlockState),
    /// A listener refused.
    Veto(Veto),
    /// A listener contradicts itself: correct the listener.
    BadPart(BadPart),
    /// Some of its memory stays in use.
    Busy(Busy),
    /// Some of its memory stays in use, since there is no memory to move it to: free some and retry.
    NoRoom(Busy),
    /// Somebody holds on to a page that is fake-offline (with [`FakeOffline::Classic`] only): retry when it lets go.
    Held(HeldPage),
    /// No memory for the step: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for BlockError {
    fn from(_: OutOfMemory) -> Self {
        BlockError::OutOfMemory
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockError::NoBlock => f.write_str("no such memory block"),
            BlockError::State(state) => write!(f, "the memory block is {state:?}"),
            BlockError::Veto(veto) => write!(f, "refused: {veto}"),
            BlockError::BadPart(bad) => write!(f, "what memory is behind the block: {bad}"),
            BlockError::Busy(busy) => write!(f, "{busy}"),
            BlockError::NoRoom(busy) => {
                write!(f, "no memory to move what is in use to: free some and retry; {busy}")
            }
            BlockError::Held(page) => write!(f, "{page}"),
            BlockError::OutOfMemory => f.write_str("no memory for this step: free some and retry"),
        }
    }
}
impl core::error::Error for BlockError {}

/// Why pages did not become fake-offline, or online again. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeError {
    /// Not whole areas of 2 MiB in one online memory block.
    BadRange,
    /// The page is not fake-offline, so it cannot become online again.
    NotFakeOffline(Pfn),
    /// The page is fake-offline already.
    AlreadyFakeOffline(Pfn),
    /// Some of them stay in use.
    Busy(Busy),
    /// Some of them stay in use, since there is no memory to move them to: free some and retry.
    NoRoom(Busy),
    /// A walker holds on to a page that is fake-offline.
    Held(HeldPage),
    /// No memory for it: free some and retry.
    OutOfMemory,
}

impl From<OutOfMemory> for FakeError {
    fn from(_: OutOfMemory) -> Self {
        FakeError::OutOfMemory
    }
}

impl fmt::Display for FakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FakeError::BadRange => f.write_str("not whole areas of 2 MiB in one online memory block"),
            FakeError::NotFakeOffline(pfn) => write!(f, "{pfn} is not fake-offline"),
            FakeError::AlreadyFakeOffline(pfn) => write!(f, "{pfn} is fake-offline already"),
            FakeError::Busy(busy) => write!(f, "{busy}"),
            FakeError::NoRoom(busy) => {
                write!(f, "no memory to move what is in use to: free some and retry; {busy}")
            }
            FakeError::Held(page) => write!(f, "{page}"),
            FakeError::OutOfMemory => f.write_str("no memory for this step: free some and retry"),
        }
    }
}
impl core::error::Error for FakeError {}

/// Number of a memory block: first page divided by the block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

/// Where a block is to go online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnlineTo {
    /// Into this zone.
    Zone(Zone),
    /// Wherever the policy says.
    Policy,
}

/// What is known of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its number.
    pub id: BlockId,
    /// Where it stands.
    pub state: BlockState,
    /// Its zone; meaningful while it is online.
    pub zone: Zone,
    /// Its NUMA node.
    pub node: u8,
    /// Whoever added it.
    pub group: Group,
}

/// Memory hotplug of one engine. There is one, and its exclusive borrow is the lock under which memory is
/// added, removed, and changes between online and offline.
pub struct Hotplug<'e, P: Platform> {
    engine: &'e Engine<P>,
    config: HotplugConfig,
    chain: Chain<'e>,
    counts: Counts,
    /// Blocks end here.
    end: BlockId,
}

impl<P: Platform> Engine<P> {
    /// Creates the one owner of this engine's memory hotplug.
    ///
    /// # Errors
    /// [`HotplugError`].
    pub fn hotplug(&self, config: HotplugConfig) -> Result<Hotplug<'_, P>, HotplugError> {
        let size = config.block_pages;
        if !size.is_power_of_two() || size < PAGES_PER_SECTION || size > self.pages() {
            return Err(HotplugError::BlockSize);
        }
        // Relaxed: nothing but the flag itself is at stake.
        if self.hotplug_taken.swap(true, Ordering::Relaxed) {
            return Err(HotplugError::Taken);
        }
        Ok(Hotplug { engine: self, config, chain: Chain::new(), counts: Counts::new(), end: BlockId(0) })
    }
}

impl<'e, P: Platform> Hotplug<'e, P> {
    /// The engine.
    pub fn engine(&self) -> &'e Engine<P> {
        self.engine
    }
    /// As it was configured.
    pub fn config(&self) -> HotplugConfig {
        self.config
    }

    /// Tells `listener` of every change from now on, in the order of priorities.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn listen(&mut self, listener: Arc<dyn Listener + 'e>) -> Result<(), OutOfMemory> {
        self.chain.register(listener)
    }

    /// Ends that. Whether it was registered.
    pub fn unlisten(&mut self, listener: &Arc<dyn Listener + 'e>) -> bool {
        self.chain.unregister(listener)
    }

    /// A group for blocks that come and go one by one, as those of one virtio-mem device do (Linux: a dynamic memory
    /// group).
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn group(&mut self) -> Result<Group, OutOfMemory> {
        self.counts.group()
    }

    /// Adds boot memory of `node`: it goes straight into the normal zone and stays.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn boot(&mut self, pages: Range<u64>, node: u8) -> Result<(), AddError> {
        self.counts.ensure_node(node).map_err(|_| AddError::OutOfMemory)?;
        self.engine.add_boot(pages.clone())?;
        self.counts.boot(&pages, node);
        Ok(())
    }

    /// The pages of a block.
    pub fn pages(&self, block: BlockId) -> Range<u64> {
        let start = block.0.saturating_mul(self.config.block_pages);
        start..start.saturating_add(self.config.block_pages)
    }

    /// The block that `pfn` lies in, whether there is one or not.
    pub fn block_of(&self, pfn: u64) -> BlockId {
        BlockId(pfn / self.config.block_pages)
    }

    /// What is known of `block`.
    pub fn block(&self, block: BlockId) -> Option<BlockInfo> {
        let record = self.record(block);
        let state = record.state()?;
        let group = Group::from_number(record.group());
        Some(BlockInfo { id: block, state, zone: record.zone(), node: record.node(), group })
    }

    /// All blocks.
    pub fn blocks(&self) -> impl Iterator<Item = BlockInfo> + '_ {
        (0..self.end.0).filter_map(|block| self.block(BlockId(block)))
    }

    /// What lies in `zone`.
    pub fn zone(&self, zone: Zone) -> ZoneInfo {
        self.counts.zone(zone)
    }

    fn record(&self, block: BlockId) -> Record {
        self.engine.records.get(sections_of(&self.pages(block)).start)
    }

    fn set_record(&mut self, block: BlockId, record: Record) {
        self.engine.records.set(sections_of(&self.pages(block)), record);
    }

    /// Adds the blocks of `pages`, offline, to `node` and `group`.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add(&mut self, pages: Range<u64>, node: u8, group: Group) -> Result<(), AddError> {
        let size = self.config.block_pages;
        if pages.start >= pages.end || !pages.start.is_multiple_of(size) || !pages.end.is_multiple_of(size) {
            return Err(AddError::Misaligned);
        }
        let map_pages = self.engine.absent_map_pages(&pages)?;
        self.counts.ensure_node(node).map_err(|_| AddError::OutOfMemory)?;
        self.engine.records.ensure(sections_of(&pages))?;
        self.engine.map.classes.prepare_uniform(map_pages.clone())?;
        self.engine.map.publish_offline(map_pages, ClassByte::OFFLINE);
        self.engine.records.set(sections_of(&pages), Record::offline(node, group.number()));
        self.end = self.end.max(BlockId(pages.end / size));
        Ok(())
    }

    /// Brings an offline block online. Returns its zone.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn online(&mut self, block: BlockId, to: OnlineTo) -> Result<Zone, BlockError> {
        let record = self.in_state(block, BlockState::Offline)?;
        let zone = match to {
            OnlineTo::Zone(zone) => zone,
            OnlineTo::Policy => self.counts.choose(self.config.policy, self.config.block_pages, record),
        };
        let change = Change { pages: self.pages(block), zone, node: record.node() };
        let going = record.with_zone(zone).with_state(BlockState::Going);
        let way = Way::begin(self, block, going, Event::CancelOnline, &change);
        way.hotplug.chain.going(Event::GoingOnline, &change).map_err(BlockError::Veto)?;
        way.hotplug.expose(&change)?;
        way.arrive(going.with_state(BlockState::Online));
        self.counts.online(&change, record.group());
        self.chain.tell(Event::Online, &change);
        Ok(zone)
    }

    /// Gives the memory of a block to its zone: all of it, or what a listener says is there. Nothing was changed on an
    /// error.
    fn expose(&mut self, change: &Change) -> Result<(), BlockError> {
        let Change { pages, zone, .. } = change;
        let (engine, zone) = (self.engine, *zone);
        // Asked once, and checked: from here on no listener has a say.
        let parts = self.chain.parts(pages)?;
        let plugged = parts.pages();
        engine.zone(zone).prepare_parts(pages)?;
        let map_pages = map_pages_of(pages);
        let is_classic = matches!(self.config.fake_offline, FakeOffline::Classic { .. });
        if plugged == pages.end - pages.start && !is_classic {
            engine.map.classes.prepare_uniform(map_pages.clone())?;
        } else {
            engine.map.classes.ensure(map_pages.clone())?;
        }
        if is_classic {
            // Linux describes every page of the block, whether there is memory or not.
            engine.map.materialise_offline(map_pages.clone())?;
        }
        parts.into_iter().for_each(|part| engine.enlist(part, zone));
        if is_classic {
            // What no part has claimed stays with the driver.
            engine.map.describe_offline(map_pages);
            engine.zone(zone).online_taken(pages.clone());
        }
        self.counts.managed(zone, plugged as i64);
        Ok(())
    }

    /// Takes an online block offline: asks the owners of what is in use to move it, then takes every page.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn offline(&mut self, block: BlockId, migrate: &mut dyn Migrate<'e, P>) -> Result<(), BlockError> {
        let record = self.in_state(block, BlockState::Online)?;
        let zone = record.zone();
        let change = Change { pages: self.pages(block), zone, node: record.node() };
        let going = record.with_state(BlockState::Going);
        let way = Way::begin(self, block, going, Event::CancelOffline, &change);
        way.hotplug.chain.going(Event::GoingOffline, &change).map_err(BlockError::Veto)?;
        let pages = way.hotplug.take_offline(&change.pages, migrate)?;
        way.arrive(record.with_state(BlockState::Offline).with_zone(Zone::Normal));
        self.counts.managed(zone, -(pages as i64));
        self.uncount(&change, record.group());
        self.chain.tell(Event::Offline, &change);
        Ok(())
    }

    /// Takes every page of an online block. Returns how many the allocator had. On an error all are as before.
    fn take_offline(&self, pages: &Range<u64>, migrate: &mut dyn Migrate<'e, P>) -> Result<u64, BlockError> {
        let HotplugConfig { passes, fake_offline, .. } = self.config;
        let FakeOffline::Classic { rcu } = fake_offline else {
            return Ok(self.engine.withdraw(pages, migrate, passes)?);
        };
        // Taken again with the return, if that is an error.
        let dropped = self.engine.drop_offline_references(pages.clone(), rcu)?;
        let withdrawn = self.engine.withdraw(pages, migrate, passes)?;
        dropped.keep();
        Ok(withdrawn)
    }

    /// Takes an offline block out of the machine.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn remove(&mut self, block: BlockId) -> Result<(), BlockError> {
        self.in_state(block, BlockState::Offline)?;
        let map_pages = map_pages_of(&self.pages(block));
        let map = &self.engine.map;
        map.classes.prepare_uniform(map_pages.clone())?;
        if map.publish_offline(map_pages.clone(), ClassByte::ABSENT) {
            // What the platform refused to take when the block went offline.
            // SAFETY: published as `Offline` then, and waited for.
            unsafe { map.fold_offline(map_pages, ClassByte::ABSENT) };
        }
        self.set_record(block, Record::NONE);
        while self.end.0 > 0 && self.block(BlockId(self.end.0 - 1)).is_none() {
            self.end.0 -= 1;
        }
        Ok(())
    }

    /// Takes online areas out of use: their memory is to be unplugged. Owners are asked to move what is in use. All of
    /// `pages` must be whole areas of one online block, and none of them fake-offline.
    ///
    /// # Errors
    /// [`FakeError`].
    pub fn fake_offline(
        &mut self,
        pages: Range<u64>,
        migrate: &mut dyn Migrate<'e, P>,
    ) -> Result<(), FakeError> {
        let record = self.online_areas(&pages)?;
        if let Some(pfn) = self.find(&pages, true).map_err(|_| FakeError::OutOfMemory)? {
            return Err(FakeError::AlreadyFakeOffline(pfn));
        }
        let passes = match record.zone() {
            // As Linux: what lies in the normal zone rarely moves.
            Zone::Normal => 1,
            Zone::Movable => self.config.passes,
        };
        let withdrawn = match self.config.fake_offline {
            FakeOffline::Folded => self.engine.withdraw(&pages, migrate, passes)?,
            FakeOffline::Classic { .. } => self.engine.hold_offline(&pages, migrate, passes)?,
        };
        self.counts.managed(record.zone(), -(withdrawn as i64));
        Ok(())
    }

    /// Puts fake-offline areas back to use: their memory has been plugged. All of `pages` must be whole areas of one online
    /// block, and all of them fake-offline.
    ///
    /// # Errors
    /// [`FakeError`].
    pub fn fake_online(&mut self, pages: Range<u64>) -> Result<(), FakeError> {
        let record = self.online_areas(&pages)?;
        if let Some(pfn) = self.find(&pages, false).map_err(|_| FakeError::OutOfMemory)? {
            return Err(FakeError::NotFakeOffline(pfn));
        }
        match self.config.fake_offline {
            FakeOffline::Folded => {
                // The block went online with all its tables.
                self.engine.map.classes.ensure(map_pages_of(&pages))?;
                self.engine.enlist(pages.clone(), record.zone());
            }
            FakeOffline::Classic { .. } => self.engine.free_offline(&pages)?,
        }
        self.counts.managed(record.zone(), (pages.end - pages.start) as i64);
        Ok(())
    }

    /// Makes sure that [`fake_online`](Self::fake_online) of `pages` will not need memory, before they are plugged.
    ///
    /// # Errors
    /// [`FakeError`].
    pub fn prepare_fake_online(&mut self, pages: Range<u64>) -> Result<(), FakeError> {
        self.online_areas(&pages)?;
        Ok(self.engine.map.classes.ensure(map_pages_of(&pages))?)
    }

    /// Whether any of `pages` is fake-offline: in an online block, without memory behind it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn is_fake_offline(&self, pages: Range<u64>) -> Result<bool, OutOfMemory> {
        Ok(self.find(&pages, true)?.is_some())
    }

    /// The first of `pages` that is fake-offline, or that is not. Nobody else changes that: it stands.
    fn find(&self, pages: &Range<u64>, is_fake_offline: bool) -> Result<Option<Pfn>, OutOfMemory> {
        let walker = self.engine.walker()?;
        let end = pages.end.min(self.engine.pages()).div_ceil(PAGES_PER_MAP_PAGE);
        // An area is fake-offline as a whole, so the first page of a map page speaks for it.
        let found = (pages.start / PAGES_PER_MAP_PAGE..end)
            .map(|map_page| MapPage(map_page).first_pfn())
            .find(|&pfn| {
                walker.peek(pfn).is_some_and(|peek| {
                    let is_one = match peek.class {
                        Class::Offline => true,
                        Class::Mapped => peek.state.is_offline(),
                        _ => false,
                    };
                    is_one == is_fake_offline
                })
            });
        Ok(found.map(|pfn| pfn.max(Pfn(pages.start))))
    }

    fn online_areas(&self, pages: &Range<u64>) -> Result<Record, FakeError> {
        let area = 1 << AREA_ORDER;
        let is_aligned =
            pages.start.is_multiple_of(area) && pages.end.is_multiple_of(area) && pages.start < pages.end;
        let block = self.block_of(pages.start);
        let record = self.record(block);
        let is_inside = pages.end <= self.pages(block).end;
        if !is_aligned || !is_inside || record.state() != Some(BlockState::Online) {
            return Err(FakeError::BadRange);
        }
        Ok(record)
    }

    fn in_state(&self, block: BlockId, state: BlockState) -> Result<Record, BlockError> {
        let record = self.record(block);
        match record.state() {
            None => Err(BlockError::NoBlock),
            Some(now) if now != state => Err(BlockError::State(now)),
            Some(_) => Ok(record),
        }
    }

    /// Takes a block out of its zone's counts, and shrinks the zone's span if it lay at an edge.
    fn uncount(&mut self, change: &Change, group: u16) {
        let mut span = self.counts.offline(change, group);
        let size = self.config.block_pages;
        let is_there = |hotplug: &Self, block: u64| {
            let record = hotplug.record(BlockId(block));
            record.state() == Some(BlockState::Online) && record.zone() == change.zone
        };
        while span.start < span.end
            && change.pages.start <= span.start
            && !self.counts.is_boot(change.zone, span.start)
        {
            if is_there(self, span.start / size) {
                break;
            }
            span.start = (span.start / size + 1) * size;
        }
        while span.start < span.end
            && change.pages.end >= span.end
            && !self.counts.is_boot(change.zone, span.end - 1)
        {
            if is_there(self, (span.end - 1) / size) {
                break;
            }
            span.end = (span.end - 1) / size * size;
        }
        self.counts.set_span(change.zone, span);
    }
}

/// A block on its way from one state to another. Unless it arrives (an error, or a panic of a listener or of an owner who
/// was asked to move), it is in its old state again, and listeners are told that the change is cancelled.
struct Way<'h, 'c, 'e, P: Platform> {
    hotplug: &'h mut Hotplug<'e, P>,
    block: BlockId,
    /// As it was before, and is again if this is dropped.
    before: Record,
    cancel: Event,
    change: &'c Change,
    has_arrived: bool,
}

impl<'h, 'c, 'e, P: Platform> Way<'h, 'c, 'e, P> {
    fn begin(
        hotplug: &'h mut Hotplug<'e, P>,
        block: BlockId,
        going: Record,
        cancel: Event,
        change: &'c Change,
    ) -> Self {
        let before = hotplug.record(block);
        hotplug.set_record(block, going);
        Self { hotplug, block, before, cancel, change, has_arrived: false }
    }

    fn arrive(mut self, record: Record) {
        self.has_arrived = true;
        self.hotplug.set_record(self.block, record);
    }
}

impl<P: Platform> Drop for Way<'_, '_, '_, P> {
    fn drop(&mut self) {
        if !self.has_arrived {
            self.hotplug.set_record(self.block, self.before);
            self.hotplug.chain.tell(self.cancel, self.change);
        }
    }
}

impl<P: Platform> Engine<P> {
    /// Gives areas of class `Offline` to a zone as free memory. Everything it needs was prepared.
    pub(crate) fn enlist(&self, pages: Range<u64>, zone: Zone) {
        let map_pages = map_pages_of(&pages);
        self.map.offer(map_pages.clone());
        self.zone(zone).online(pages);
        self.withhold_poison(map_pages);
    }
}

pub(crate) fn map_pages_of(pages: &Range<u64>) -> Range<u64> {
    pages.start / PAGES_PER_MAP_PAGE..pages.end / PAGES_PER_MAP_PAGE
}

impl<P: Platform> fmt::Debug for Hotplug<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hotplug")
            .field("config", &self.config)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
