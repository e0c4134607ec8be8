//! Fake-offline pages: with descriptors of 64 bytes they may keep them, as Linux's do; as objects there are none.

use core::ops::Range;

use super::head::{Head, Owner};
use super::memdesc::MemdescMap;
use super::page64::PageMap;
use super::seam::OfflinePages;
use crate::geometry::{MapPage, Order, Pfn};
use crate::mapping::Mapping;
use crate::page::{PageKind, State};
use crate::protocol::class::ClassEntry;
use crate::sync::Ordering;

impl<M: Mapping, O: Owner> OfflinePages for PageMap<M, O> {
    const DESCRIBES_OFFLINE: bool = true;

    fn describe_offline(&self, map_pages: Range<u64>) {
        for map_page in map_pages.map(MapPage) {
            if self.classes.get(map_page).unbacked() == ClassEntry::OFFLINE {
                self.write_offline(map_page);
            }
        }
    }

    fn write_offline(&self, map_page: MapPage) {
        let state = State::head(Order::ZERO, PageKind::Offline).with_refs(1);
        for pfn in self.pages_of(map_page).map(Pfn) {
            self.clear(pfn);
            // Release: a walker that sees the reference may take another.
            self.store(pfn, self.marked(pfn, state), Ordering::Release);
        }
        self.classes.set_mapped(map_page);
    }

    fn is_held_offline(&self, pfn: Pfn) -> bool {
        match self.classes.get(self.map_page(pfn)) {
            ClassEntry::MAPPED => self.state(pfn).is_offline(),
            class if class == ClassEntry::OFFLINE.backed() => self.word(pfn, Ordering::Acquire).is_offline(),
            _ => false,
        }
    }

    fn drop_offline(&self, pfn: Pfn) -> Result<(), State> {
        let Some(page) = self.pages.get(pfn.0) else { return Err(State::ZERO) };
        let mut now = self.word(pfn, Ordering::Acquire);
        while now.refs() == 1 && now.is_offline() {
            // Acquire: pairs with the Release of a walker's put, as in freezing.
            match page.state().compare_exchange(
                now.0,
                now.with_refs(0).0,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                // A walker came, or its poison mark.
                Err(other) => now = State(other),
            }
        }
        Err(now)
    }

    fn retake_offline(&self, pfn: Pfn) {
        let now = self.word(pfn, Ordering::Acquire);
        if now.refs() == 0 && now.is_offline() {
            self.store(pfn, now.with_refs(1), Ordering::Release);
        }
    }

    fn hide_offline(&self, map_page: MapPage, is_hidden: bool) {
        let (from, to) = match is_hidden {
            true => (ClassEntry::MAPPED, ClassEntry::OFFLINE.backed()),
            false => (ClassEntry::OFFLINE.backed(), ClassEntry::MAPPED),
        };
        if self.classes.get(map_page) == from {
            self.classes.set(map_page, to);
        }
    }

    fn is_given_up(&self, pfn: Pfn) -> bool {
        match self.classes.get(self.map_page(pfn)).unbacked() {
            ClassEntry::OFFLINE => true,
            _ => {
                let state = self.state(pfn);
                state.is_offline() && state.refs() == 0
            }
        }
    }

    fn end_offline(&self, map_page: MapPage) {
        self.clear_map_page(map_page);
        self.classes.set_mapped(map_page);
    }
}

/// Fake-offline memory has neither words nor objects: its class says it.
impl<M: Mapping, O: Owner> OfflinePages for MemdescMap<M, O> {
    const DESCRIBES_OFFLINE: bool = false;

    fn describe_offline(&self, _: Range<u64>) {}
    fn write_offline(&self, _: MapPage) {}
    fn is_held_offline(&self, _: Pfn) -> bool {
        false
    }
    fn drop_offline(&self, _: Pfn) -> Result<(), State> {
        Ok(())
    }
    fn retake_offline(&self, _: Pfn) {}
    fn hide_offline(&self, _: MapPage, _: bool) {}
    fn is_given_up(&self, pfn: Pfn) -> bool {
        self.classes.get(self.map_page(pfn)).unbacked() == ClassEntry::OFFLINE
    }
    fn end_offline(&self, _: MapPage) {}
}
