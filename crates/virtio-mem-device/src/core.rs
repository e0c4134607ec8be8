//! What the device decides: config space, plugged blocks, requests in, decisions out. Nothing here touches memory.
//!
//! The order in which a request is judged is the reference device's (QEMU, `hw/virtio/virtio-mem.c`): type, range (ERROR),
//! over the target (NACK), blocks already as asked for (ERROR), frozen (BUSY). A driver learns what is wrong with a request
//! before it learns that now is a bad time.

use std::ops::Range;

use pagefold_virtio_mem_spec::{ConfigSpace, PlugState, Request, RequestType, Response, ResponseType};
use zerocopy::little_endian::{U16, U64};

use crate::bitmap::Bitmap;
use crate::range::RegionRange;
use crate::settings::Settings;

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Answer(Response),
    Plug(RegionRange),
    Unplug(RegionRange),
    UnplugAll,
}

#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) addr: u64,
    pub(crate) region_size: u64,
    pub(crate) block_size: u64,
    pub(crate) node: Option<u16>,
    pub(crate) guest_block_size: u64,
    pub(crate) bitmap: Bitmap,
    pub(crate) plugged_size: u64,
    pub(crate) requested_size: u64,
    pub(crate) usable_size: u64,
    pub(crate) frozen: bool,
    /// Counts the changes of the config space.
    pub(crate) generation: u32,
}

impl Core {
    /// From settings that were checked.
    pub(crate) fn new(settings: &Settings, block_size: u64) -> Self {
        let mut core = Self {
            addr: settings.addr,
            region_size: settings.region_size,
            block_size,
            node: settings.node,
            guest_block_size: settings.guest_block_size,
            bitmap: Bitmap::new(settings.region_size / block_size),
            plugged_size: 0,
            requested_size: settings.requested_size,
            usable_size: 0,
            frozen: false,
            generation: 0,
        };
        core.usable_size = core.usable_for(core.requested_size);
        core
    }

    pub(crate) fn config(&self) -> ConfigSpace {
        ConfigSpace {
            block_size: U64::new(self.block_size),
            node_id: U16::new(self.node.unwrap_or(0)),
            padding: [0; 6],
            addr: U64::new(self.addr),
            region_size: U64::new(self.region_size),
            usable_region_size: U64::new(self.usable_size),
            plugged_size: U64::new(self.plugged_size),
            requested_size: U64::new(self.requested_size),
        }
    }

    /// The usable region that a requested size needs: two memory blocks of the guest more, so that the guest reaches the
    /// target with partly used blocks too; nothing where nothing is wanted.
    pub(crate) fn usable_for(&self, requested: u64) -> u64 {
        if requested == 0 {
            return 0;
        }
        let wanted = requested.saturating_add(2 * self.guest_block_size);
        wanted.checked_next_multiple_of(self.block_size).unwrap_or(u64::MAX).min(self.region_size)
    }

    pub(crate) fn decide(&self, request: &Request) -> Decision {
        use RequestType::{Plug, State, Unplug, UnplugAll};
        let answer = |kind| Decision::Answer(Response::new(kind));
        let Ok(kind) = RequestType::try_from(request.kind.get()) else { return answer(ResponseType::Error) };
        let busy = self.frozen;
        if kind == UnplugAll {
            return if busy { answer(ResponseType::Busy) } else { Decision::UnplugAll };
        }
        let Some(blocks) = self.blocks(request.addr.get(), request.nb_blocks.get()) else {
            return answer(ResponseType::Error);
        };
        let range = self.range(&blocks);
        match kind {
            Plug if self.plugged_size + range.len > self.requested_size => answer(ResponseType::Nack),
            Plug if !self.bitmap.none(&blocks) => answer(ResponseType::Error),
            Unplug if !self.bitmap.all(&blocks) => answer(ResponseType::Error),
            Plug | Unplug if busy => answer(ResponseType::Busy),
            Plug => Decision::Plug(range),
            Unplug => Decision::Unplug(range),
            State | UnplugAll => Decision::Answer(Response::state(self.state(&blocks))),
        }
    }

    /// The blocks a request means, if its range is a good one: aligned, not empty, inside of the usable region.
    fn blocks(&self, addr: u64, count: u16) -> Option<Range<u64>> {
        let offset = addr.checked_sub(self.addr)?;
        let len = u64::from(count).checked_mul(self.block_size)?;
        let end = offset.checked_add(len)?;
        (count > 0 && offset % self.block_size == 0 && end <= self.usable_size)
            .then(|| offset / self.block_size..end / self.block_size)
    }

    pub(crate) fn range(&self, blocks: &Range<u64>) -> RegionRange {
        let offset = blocks.start * self.block_size;
        RegionRange { addr: self.addr + offset, offset, len: (blocks.end - blocks.start) * self.block_size }
    }

    fn blocks_of(&self, range: &RegionRange) -> Range<u64> {
        range.offset / self.block_size..(range.offset + range.len) / self.block_size
    }

    fn state(&self, blocks: &Range<u64>) -> PlugState {
        if self.bitmap.all(blocks) {
            PlugState::Plugged
        } else if self.bitmap.none(blocks) {
            PlugState::Unplugged
        } else {
            PlugState::Mixed
        }
    }

    /// Whether any of the `len` bytes at guest address `addr` are unplugged memory of this device.
    pub(crate) fn touches_unplugged(&self, addr: u64, len: u64) -> bool {
        let start = addr.max(self.addr);
        let end = addr.saturating_add(len).min(self.addr + self.region_size);
        start < end
            && !self
                .bitmap
                .all(&((start - self.addr) / self.block_size..(end - self.addr).div_ceil(self.block_size)))
    }

    pub(crate) fn plugged_ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        // A driver may ask to unplug nothing as often as it likes; that does not look through the whole bitmap.
        let any = self.plugged_size > 0;
        any.then(|| self.bitmap.runs()).into_iter().flatten().map(|blocks| self.range(&blocks))
    }

    /// The ranges between the plugged ones, to the end of the region.
    pub(crate) fn unplugged_ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        let mut at = 0;
        self.bitmap
            .runs()
            .chain(std::iter::once(self.bitmap.len()..self.bitmap.len()))
            .map(move |run| std::mem::replace(&mut at, run.end)..run.start)
            .filter(|gap| !gap.is_empty())
            .map(|gap| self.range(&gap))
    }

    pub(crate) fn plugged(&mut self, range: &RegionRange) {
        self.bitmap.set(&self.blocks_of(range));
        self.plugged_size += range.len;
        self.changed();
    }

    pub(crate) fn unplugged(&mut self, range: &RegionRange) {
        self.bitmap.clear(&self.blocks_of(range));
        self.plugged_size -= range.len;
        self.changed();
    }

    pub(crate) fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}
