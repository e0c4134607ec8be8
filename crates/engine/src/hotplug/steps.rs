//! The steps of a block: added, online, offline, removed.

use core::ops::Range;

use super::block::{BlockId, FakeOffline, HotplugConfig, OnlineTo};
use super::error::BlockError;
use super::lock::Hotplug;
use super::migrate::Migrate;
use super::notify::{BlockChange, Event};
use super::policy::Group;
use crate::descriptors::seam::OfflinePages;
use crate::online::AddError;
use crate::platform::Platform;
use crate::protocol::class::ClassEntry;
use crate::zone::{BlockState, Record, Zone, sections_of};

impl<'e, P: Platform> Hotplug<'e, P> {
    /// Adds the blocks of `pages`, offline, to `node` and `group`.
    ///
    /// Context: may take frames for tables. May not be called by a listener or an owner who is asked to move.
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
        self.engine.map.publish_offline(map_pages, ClassEntry::OFFLINE);
        self.engine.records.set(sections_of(&pages), Record::offline(node, group.number()));
        self.end = self.end.max(BlockId(pages.end / size));
        Ok(())
    }

    /// Brings an offline block online. Returns its zone.
    ///
    /// Context: may take frames and heap memory; calls listeners.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn online(&mut self, block: BlockId, to: OnlineTo) -> Result<Zone, BlockError> {
        let record = self.in_state(block, BlockState::Offline)?;
        let zone = match to {
            OnlineTo::Zone(zone) => zone,
            OnlineTo::Policy => self.counts.choose(self.config.policy, self.config.block_pages, record),
        };
        let change = BlockChange { pages: self.pages(block), zone, node: record.node() };
        let going = record.with_zone(zone).with_state(BlockState::Going);
        let transition = Transition::begin(self, block, going, Event::CancelOnline, &change);
        transition.hotplug.chain.going(Event::GoingOnline, &change).map_err(BlockError::Veto)?;
        transition.hotplug.expose(&change)?;
        transition.arrive(going.with_state(BlockState::Online));
        self.counts.online(&change, record.group());
        self.chain.tell(Event::Online, &change);
        Ok(zone)
    }

    /// Gives the memory of a block to its zone: all of it, or what a listener says is there. Nothing was changed on an
    /// error.
    fn expose(&mut self, change: &BlockChange) -> Result<(), BlockError> {
        let BlockChange { pages, zone, .. } = change;
        let (engine, zone) = (self.engine, *zone);
        // Asked once, and checked: from here on no listener has a say.
        let parts = self.chain.parts(pages)?;
        let plugged = parts.pages();
        engine.zone(zone).prepare_parts(pages)?;
        let map_pages = engine.map.map_pages_of(pages);
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
        parts.ranges.into_iter().for_each(|part| engine.enlist(part, zone));
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
    /// Context: waits for grace periods, interrupts other CPUs, changes page tables; calls listeners and owners.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn offline(&mut self, block: BlockId, migrate: &mut dyn Migrate<'e, P>) -> Result<(), BlockError> {
        let record = self.in_state(block, BlockState::Online)?;
        let zone = record.zone();
        let change = BlockChange { pages: self.pages(block), zone, node: record.node() };
        let going = record.with_state(BlockState::Going);
        let transition = Transition::begin(self, block, going, Event::CancelOffline, &change);
        transition.hotplug.chain.going(Event::GoingOffline, &change).map_err(BlockError::Veto)?;
        let pages = transition.hotplug.take_offline(&change.pages, migrate)?;
        transition.arrive(record.with_state(BlockState::Offline).with_zone(Zone::Normal));
        self.counts.managed(zone, -(pages as i64));
        self.uncount(&change, record.group());
        self.chain.tell(Event::Offline, &change);
        Ok(())
    }

    /// Takes every page of an online block. Returns how many the allocator had. On an error all are as before.
    fn take_offline(&self, pages: &Range<u64>, migrate: &mut dyn Migrate<'e, P>) -> Result<u64, BlockError> {
        let HotplugConfig { passes, fake_offline, .. } = self.config;
        let FakeOffline::Classic { rcu } = fake_offline else {
            return self.engine.withdraw_all(pages, migrate, passes);
        };
        // Taken again with the return, if that is an error.
        let dropped = self.engine.drop_offline_references(pages.clone(), rcu)?;
        let withdrawn = self.engine.withdraw_all(pages, migrate, passes)?;
        dropped.keep();
        Ok(withdrawn)
    }

    /// Takes an offline block out of the machine.
    ///
    /// Context: may take frames for tables; may change page tables and interrupt other CPUs for that.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn remove(&mut self, block: BlockId) -> Result<(), BlockError> {
        self.in_state(block, BlockState::Offline)?;
        let map = &self.engine.map;
        let map_pages = map.map_pages_of(&self.pages(block));
        map.classes.prepare_uniform(map_pages.clone())?;
        if map.publish_offline(map_pages.clone(), ClassEntry::ABSENT) {
            // What the platform refused to take when the block went offline.
            // SAFETY: published as `Offline` then, and waited for.
            unsafe { map.fold_offline(core::iter::once(map_pages), ClassEntry::ABSENT) };
        }
        self.set_record(block, Record::NONE);
        while self.end.0 > 0 && self.block(BlockId(self.end.0 - 1)).is_none() {
            self.end.0 -= 1;
        }
        Ok(())
    }

    /// Takes a block out of its zone's counts, and shrinks the zone's span if it lay at an edge.
    fn uncount(&mut self, change: &BlockChange, group: u16) {
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
struct Transition<'h, 'c, 'e, P: Platform> {
    hotplug: &'h mut Hotplug<'e, P>,
    block: BlockId,
    /// As it was before, and is again if this is dropped.
    before: Record,
    cancel: Event,
    change: &'c BlockChange,
    has_arrived: bool,
}

impl<'h, 'c, 'e, P: Platform> Transition<'h, 'c, 'e, P> {
    fn begin(
        hotplug: &'h mut Hotplug<'e, P>,
        block: BlockId,
        going: Record,
        cancel: Event,
        change: &'c BlockChange,
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

impl<P: Platform> Drop for Transition<'_, '_, '_, P> {
    fn drop(&mut self) {
        if !self.has_arrived {
            self.hotplug.set_record(self.block, self.before);
            self.hotplug.chain.tell(self.cancel, self.change);
        }
    }
}
