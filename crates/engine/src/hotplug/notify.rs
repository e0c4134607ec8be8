//! The notifier chain: who wants to know of memory that comes or goes, and who may refuse.
//!
//! As Linux: listeners are told in the order of their priorities, highest first. One that refuses a `Going` event ends
//! it; then *all* of them are told that it is cancelled, also those that had not been told of it yet. Terminal events
//! cannot be refused.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::classic::HeldPage;
use crate::geometry::AREA_ORDER;
use crate::rcu::OutOfMemory;
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
pub struct Change {
    /// Its pages.
    pub pages: Range<u64>,
    /// The zone it goes into, or leaves.
    pub zone: Zone,
    /// Its NUMA node.
    pub node: u8,
}

/// Why a listener refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Veto {
    /// For a reason of its own.
    Refused(&'static str),
    /// A fake-offline page has a reference that is not the driver's.
    Held(HeldPage),
}

impl fmt::Display for Veto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Veto::Refused(reason) => f.write_str(reason),
            Veto::Held(page) => write!(f, "{page}"),
        }
    }
}

/// Somebody who wants to know.
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
    fn notify(&self, event: Event, change: &Change) -> Result<(), Veto>;

    /// For a block that goes online: calls `part` with every range of `pages` that memory is behind (whole areas of
    /// 2 MiB), and returns true. False if the block is none of its business. If it is nobody's, there is memory behind
    /// all of it.
    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let _ = (pages, part);
        false
    }
}

/// The listeners, highest priority first; among equals, who came first.
pub(crate) struct Chain<'e> {
    listeners: Vec<Arc<dyn Listener + 'e>>,
}

impl<'e> Chain<'e> {
    pub(crate) fn new() -> Self {
        Self { listeners: Vec::new() }
    }

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
    pub(crate) fn going(&self, event: Event, change: &Change) -> Result<(), Veto> {
        self.listeners.iter().try_for_each(|listener| listener.notify(event, change))
    }

    /// Tells all of an event that cannot be refused, also if one of them panics.
    pub(crate) fn tell(&self, event: Event, change: &Change) {
        struct Rest<'c, 'e>(core::slice::Iter<'c, Arc<dyn Listener + 'e>>, Event, &'c Change);
        impl Rest<'_, '_> {
            fn tell(&mut self) {
                let Self(listeners, event, change) = self;
                for listener in listeners {
                    // What it says is not asked for: nobody can refuse what has happened.
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

    /// The parts of `pages` that memory is behind, in whole areas.
    pub(crate) fn parts(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) {
        let area = 1u64 << AREA_ORDER;
        let mut inside = |range: Range<u64>| {
            let start = range.start.max(pages.start).next_multiple_of(area);
            let end = range.end.min(pages.end) / area * area;
            if start < end {
                part(start..end);
            }
        };
        if !self.listeners.iter().any(|listener| listener.plugged(pages, &mut inside)) {
            part(pages.clone());
        }
    }
}
