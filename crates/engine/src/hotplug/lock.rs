//! The one owner of an engine's memory hotplug: its lock, and what is known of blocks.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

use super::block::{BlockId, BlockInfo, FakeOffline, HotplugConfig};
use super::error::{BlockError, HotplugError};
use super::notify::{Chain, Listener};
use super::policy::{Counts, Group, ZoneInfo};
use crate::descriptors::seam::OfflinePages;
use crate::engine::{Engine, MapOf};
use crate::geometry::PAGES_PER_SECTION;
use crate::heap::OutOfMemory;
use crate::online::AddError;
use crate::platform::Platform;
use crate::sync::Ordering;
use crate::zone::{BlockState, Record, Zone, sections_of};

/// Memory hotplug of one engine. There is one, and its exclusive borrow is the lock under which memory is
/// added, removed, and changes between online and offline.
pub struct Hotplug<'e, P: Platform> {
    pub(super) engine: &'e Engine<P>,
    pub(super) config: HotplugConfig,
    pub(super) chain: Chain<'e>,
    pub(super) counts: Counts,
    /// Blocks end here.
    pub(super) end: BlockId,
}

impl<P: Platform> Engine<P> {
    /// Creates the one owner of this engine's memory hotplug. Where fake-offline pages have no descriptors
    /// ([`Memdesc`](crate::Memdesc)), the classic way is the same as the folded one, and done so.
    ///
    /// # Errors
    /// [`HotplugError`].
    pub fn hotplug(&self, config: HotplugConfig) -> Result<Hotplug<'_, P>, HotplugError> {
        let size = config.block_pages;
        if !size.is_power_of_two() || size < PAGES_PER_SECTION || size > self.pages() {
            return Err(HotplugError::BlockSize);
        }
        let fake_offline = match config.fake_offline {
            FakeOffline::Classic { .. } if !MapOf::<P>::DESCRIBES_OFFLINE => FakeOffline::Folded,
            other => other,
        };
        let config = HotplugConfig { fake_offline, ..config };
        // Relaxed: nothing but the flag itself is at stake.
        if self.hotplug_taken.swap(true, Ordering::Relaxed) {
            return Err(HotplugError::Taken);
        }
        Ok(Hotplug {
            engine: self,
            config,
            chain: Chain::default(),
            counts: Counts::default(),
            end: BlockId(0),
        })
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
    /// Context: may take heap memory.
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
    /// Context: may take heap memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn group(&mut self) -> Result<Group, OutOfMemory> {
        self.counts.group()
    }

    /// Adds boot memory of `node`: it goes straight into the normal zone and stays.
    ///
    /// Context: may take frames for tables, and heap memory.
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

    pub(super) fn record(&self, block: BlockId) -> Record {
        self.engine.records.get(sections_of(&self.pages(block)).start)
    }

    pub(super) fn set_record(&mut self, block: BlockId, record: Record) {
        self.engine.records.set(sections_of(&self.pages(block)), record);
    }

    pub(super) fn in_state(&self, block: BlockId, state: BlockState) -> Result<Record, BlockError> {
        let record = self.record(block);
        match record.state() {
            None => Err(BlockError::UnknownBlock),
            Some(now) if now != state => Err(BlockError::State(now)),
            Some(_) => Ok(record),
        }
    }
}

impl<P: Platform> fmt::Debug for Hotplug<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hotplug")
            .field("config", &self.config)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
