//! What one step works with: the device at one end, the machine's memory at the other.

use alloc::vec::Vec;
use core::ops::Range;

use pagefold_engine::hotplug::{BlockError, BlockId, Group, Hotplug, Migrate, OnlineTo, Wanted, Withdrawn};
use pagefold_engine::{BlockState, Platform, Zone};
use pagefold_virtio_mem_spec::RequestType;

use crate::channel::Channel;
use crate::gate::Gate;
use crate::link::Link;
use crate::owners::{Asking, Owners};
use crate::stop::{Result, Stop};
use crate::window::{STEP_REQUESTS, Way};

/// The parts of the driver that both modes need, and what the kernel passes to a step.
pub(crate) struct Context<'s, 'e, P: Platform> {
    pub(crate) link: &'s mut Link<dyn Channel + 's>,
    pub(crate) gate: &'s Gate,
    pub(crate) adder: &'s mut Adder,
    pub(crate) owners: &'s mut Owners,
    pub(crate) hotplug: &'s mut Hotplug<'e, P>,
    pub(crate) migrate: &'s mut dyn Migrate<'e, P>,
}

impl<P: Platform> Context<'_, '_, P> {
    /// Plugs or unplugs `bytes` of `units`. If it is not clear what the device did, the units are in doubt.
    pub(crate) fn change(&mut self, kind: RequestType, units: Range<u64>, bytes: Range<u64>) -> Result {
        self.link.change(kind, bytes).map_err(|failed| {
            if !failed.nothing_changed {
                self.gate.doubt(units);
            }
            failed.stop
        })
    }

    /// Adds `pages` to the machine, as memory of the device.
    pub(crate) fn add(&mut self, pages: Range<u64>) -> Result {
        Ok(self.hotplug.add(pages, self.adder.node, self.adder.group)?)
    }

    /// Takes online pages out of use; owners are asked to move what is there.
    pub(crate) fn fake_offline(&mut self, pages: Range<u64>) -> Result<(), BlockError> {
        self.hotplug.fake_offline(pages, &mut Asking { migrate: self.migrate, owners: self.owners })
    }

    /// Takes what can be had of `runs` out of use, up to `most` of what they count: sub-blocks (big blocks) through all units,
    /// ascending, online in one zone. Owners are asked to move what is there if that is the `way`; else only what is free is
    /// taken.
    pub(crate) fn withdraw(&mut self, runs: &[Range<u64>], most: u64, way: Way) -> Result<Taken> {
        let geometry = &self.link.geometry;
        let (mut parts, mut taken) = (Vec::new(), Vec::new());
        parts.try_reserve_exact(runs.len()).map_err(|_| Stop::NO_MEMORY)?;
        taken.try_reserve_exact(STEP_REQUESTS).map_err(|_| Stop::NO_MEMORY)?;
        parts.extend(runs.iter().map(|run| geometry.pages(0, run.clone())));
        let piece = geometry.sub_pages();
        let pages = most.saturating_mul(piece);
        let wanted = Wanted { parts: &parts, piece, pages, runs: STEP_REQUESTS };
        let withdrawn = match way {
            Way::Asking => {
                let mut asking = Asking { migrate: self.migrate, owners: self.owners };
                self.hotplug.withdraw(&wanted, Some(&mut asking))?
            }
            Way::Offline | Way::Free => self.hotplug.withdraw(&wanted, None)?,
        };
        let first = geometry.pages(0, 0..0).start;
        let number = |pfn: u64| pfn.saturating_sub(first) / piece;
        taken.extend(withdrawn.taken().iter().map(|part| number(part.start)..number(part.end)));
        let considered_from = number(withdrawn.considered_from().0);
        Ok(Taken { runs: taken, considered_from, withdrawn })
    }

    /// Takes a memory block offline; owners are asked to move what is there.
    pub(crate) fn offline(&mut self, block: BlockId) -> Result<(), BlockError> {
        self.hotplug.offline(block, &mut Asking { migrate: self.migrate, owners: self.owners })
    }

    /// The memory blocks of `unit` that are added, with the zone of those that are online.
    pub(crate) fn added_blocks(&self, unit: u64) -> impl Iterator<Item = (BlockId, Option<Zone>)> {
        let hotplug = &*self.hotplug;
        self.link.geometry.memory_blocks(unit).filter_map(move |block| {
            let info = hotplug.block(block)?;
            Some((block, (info.state == BlockState::Online).then_some(info.zone)))
        })
    }
}

/// What [`Context::withdraw`] has taken. Sub-blocks (big blocks) are counted through all units.
pub(crate) struct Taken {
    /// Runs that are out of use now, ascending.
    pub(crate) runs: Vec<Range<u64>>,
    /// See [`Withdrawn::considered_from`].
    pub(crate) considered_from: u64,
    /// The same in pages, and what became of the rest.
    pub(crate) withdrawn: Withdrawn,
}

/// How memory blocks of the device come into the machine: where they belong, and which have to go online still.
pub(crate) struct Adder {
    /// The NUMA node of the device's memory.
    pub(crate) node: u8,
    pub(crate) group: Group,
    /// Where added blocks go online at once.
    pub(crate) online: Option<OnlineTo>,
    /// Memory blocks that have to go online and are not yet, the first one last.
    pub(crate) owed: Vec<(BlockId, OnlineTo)>,
}

impl Adder {
    /// Makes room for `count` more `owed` blocks. Comes before the request that they follow from.
    pub(crate) fn reserve(&mut self, count: u64) -> Result {
        self.owed.try_reserve(count as usize).map_err(|_| Stop::NO_MEMORY)
    }

    /// Brings one memory block online that is owed. Whether there was one. Without memory for that the driver tries again
    /// before it plugs any more.
    pub(crate) fn bring_online<P: Platform>(&mut self, hotplug: &mut Hotplug<'_, P>) -> Result<bool> {
        let Some(&(block, to)) = self.owed.last() else { return Ok(false) };
        if let Err(error @ BlockError::OutOfMemory) = hotplug.online(block, to) {
            return Err(error.into());
        }
        // It is online, or removed, or another listener refused: then it stays offline as any other block.
        self.owed.pop();
        Ok(true)
    }
}
