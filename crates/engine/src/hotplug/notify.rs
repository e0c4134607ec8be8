//! The notifier chain: who wants to know of memory that comes or goes, and who may refuse.
//!
//! As Linux: listeners are told in the order of their priorities, highest first. One that refuses a `Going` event ends
//! it; then *all* of them are told that it is cancelled, also those that had not been told of it yet. Terminal events
//! cannot be refused.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::error::{BadPart, BlockError, Veto};
use crate::geometry::AREA_ORDER;
use crate::heap::OutOfMemory;
use crate::zone::Zone;

/// What happens to a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It is about to go online. May be refused.
    GoingOnline,
    /// It is online.
    Online,
    /// It stays offline after all.
    CancelOnline,
    /// It is about to go offline. May be refused.
    GoingOffline,
    /// It is offline.
    Offline,
    /// It stays online after all.
    CancelOffline,
}

/// Which block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChange {
    /// Its pages.
    pub pages: Range<u64>,
    /// The zone it goes into, or leaves.
    pub zone: Zone,
    /// Its NUMA node.
    pub node: u8,
}

/// A part of the kernel that wants to know.
///
/// Whatever a listener says, memory is safe: what cannot be is refused, and undone. A listener may use the engine (not the
/// [`Hotplug`](super::Hotplug) that is telling it: that is borrowed).
pub trait Listener: Send + Sync {
    /// Higher ones are told first.
    fn priority(&self) -> i32 {
        0
    }

    /// Something happens to a block.
    ///
    /// Should it panic, the others are told all the same, and a change that was under way is cancelled; so a `Cancel` event
    /// may come while a panic unwinds, and a second panic then ends the program.
    ///
    /// # Errors
    /// [`Veto`], which is heeded for `Going` events only.
    fn notify(&self, event: Event, change: &BlockChange) -> Result<(), Veto>;

    /// For a block that goes online: calls `part` with every range of `pages` that memory is behind, and returns true.
    /// Return false, without a call, if the block is not yours. There is memory behind all of an unclaimed block.
    ///
    /// The parts are whole areas of 2 MiB of the block, ascending, and name no page twice; anything else is a
    /// [`BadPart`], and the block stays offline. It is asked once for each time the block goes online, before anything is
    /// changed.
    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let _ = (pages, part);
        false
    }
}

/// The listeners, highest priority first; among equals, who came first.
#[derive(Default)]
pub(crate) struct Chain<'e> {
    listeners: Vec<Arc<dyn Listener + 'e>>,
}

impl<'e> Chain<'e> {
    pub(crate) fn register(&mut self, listener: Arc<dyn Listener + 'e>) -> Result<(), OutOfMemory> {
        self.listeners.try_reserve(1).map_err(|_| OutOfMemory)?;
        let at = self.listeners.partition_point(|other| other.priority() >= listener.priority());
        self.listeners.insert(at, listener);
        Ok(())
    }

    pub(crate) fn unregister(&mut self, listener: &Arc<dyn Listener + 'e>) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|other| !Arc::ptr_eq(other, listener));
        self.listeners.len() != before
    }

    /// Tells of a `Going` event. After a veto the caller tells all that it is cancelled.
    pub(crate) fn going(&self, event: Event, change: &BlockChange) -> Result<(), Veto> {
        self.listeners.iter().try_for_each(|listener| listener.notify(event, change))
    }

    /// Tells all of an event that cannot be refused, also if one of them panics.
    pub(crate) fn tell(&self, event: Event, change: &BlockChange) {
        struct Rest<'c, 'e>(core::slice::Iter<'c, Arc<dyn Listener + 'e>>, Event, &'c BlockChange);
        impl Rest<'_, '_> {
            fn tell(&mut self) {
                let Self(listeners, event, change) = self;
                for listener in listeners {
                    // What it says is not asked for: what has happened cannot be refused.
                    let _ = listener.notify(*event, change);
                }
            }
        }
        impl Drop for Rest<'_, '_> {
            fn drop(&mut self) {
                self.tell();
            }
        }
        Rest(self.listeners.iter(), event, change).tell();
    }

    /// The parts of `pages` (a block) that memory is behind.
    pub(crate) fn parts(&self, pages: &Range<u64>) -> Result<Parts, BlockError> {
        for listener in &self.listeners {
            let mut parts = Parts { ranges: Vec::new() };
            let mut added = Ok(());
            let is_its = listener.plugged(pages, &mut |part| {
                if added.is_ok() {
                    added = parts.add(pages, part);
                }
            });
            added?;
            if is_its {
                return Ok(parts);
            }
            if !parts.ranges.is_empty() {
                return Err(BlockError::BadPart(BadPart::NotIts));
            }
        }
        let mut all = Parts { ranges: Vec::new() };
        all.add(pages, pages.clone()).map(|()| all)
    }
}

/// Parts of a block: whole areas, ascending, each page once.
pub(crate) struct Parts {
    pub(crate) ranges: Vec<Range<u64>>,
}

impl Parts {
    fn add(&mut self, block: &Range<u64>, part: Range<u64>) -> Result<(), BlockError> {
        let area = 1u64 << AREA_ORDER;
        let Range { start, end } = part;
        let are_areas = start.is_multiple_of(area) && end.is_multiple_of(area);
        if !are_areas || start >= end || start < block.start || end > block.end {
            return Err(BlockError::BadPart(BadPart::NotAreas { start, end }));
        }
        match self.ranges.last_mut() {
            Some(last) if start < last.end => {
                return Err(BlockError::BadPart(BadPart::NotAscending { start, end }));
            }
            Some(last) if start == last.end => last.end = end,
            _ => {
                self.ranges.try_reserve(1).map_err(|_| BlockError::OutOfMemory)?;
                self.ranges.push(part);
            }
        }
        Ok(())
    }

    /// Pages in all of them.
    pub(crate) fn pages(&self) -> u64 {
        self.ranges.iter().map(|part| part.end - part.start).sum()
    }
}
