//! Memory blocks in sub-block mode: their states, a bit for each sub-block, and the listener that watches over their memory.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagefold_engine::OutOfMemory;
use pagefold_engine::hotplug::{BlockChange, Event, Listener, Veto};

use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::states::{States, zeroed};
use crate::sub::state::{SubState, Trigger};

/// All memory blocks of a device.
pub(crate) struct SubBlocks {
    pub(crate) geometry: Geometry,
    pub(crate) gate: Arc<Gate>,
    pub(crate) states: States<SubState>,
    /// Set where a sub-block is plugged; whole words for each unit.
    bits: Box<[AtomicU64]>,
    /// Words of `bits` for each unit.
    words: u64,
    /// Sub-blocks that are plugged.
    plugged: AtomicU64,
}

impl SubBlocks {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>) -> Result<Self, OutOfMemory> {
        let words = geometry.per_unit().div_ceil(64);
        Ok(Self {
            states: States::new(geometry.units)?,
            bits: zeroed(geometry.units.saturating_mul(words), || AtomicU64::new(0))?,
            geometry,
            gate,
            words,
            plugged: AtomicU64::new(0),
        })
    }

    /// Moves a unit on. A trigger that its state does not have leaves it where it is.
    pub(crate) fn apply(&self, unit: u64, trigger: Trigger) {
        let state = self.states.get(unit);
        if let Some(state) = state.after(trigger) {
            self.states.set(unit, state);
        } else {
            debug_assert!(false, "{state:?} and {trigger:?}");
        }
    }

    /// Bytes that are plugged.
    pub(crate) fn plugged_bytes(&self) -> u64 {
        self.plugged.load(Relaxed) * self.geometry.sub_block()
    }

    fn word(&self, unit: u64, sub: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.bits.get((unit * self.words + sub / 64) as usize)?;
        Some((word, 1 << (sub % 64)))
    }

    pub(crate) fn is_plugged(&self, unit: u64, sub: u64) -> bool {
        self.word(unit, sub).is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0)
    }

    pub(crate) fn set_plugged(&self, unit: u64, subs: Range<u64>, is_plugged: bool) {
        for sub in subs {
            let Some((word, bit)) = self.word(unit, sub) else { continue };
            let before = if is_plugged { word.fetch_or(bit, Relaxed) } else { word.fetch_and(!bit, Relaxed) };
            match (before & bit != 0, is_plugged) {
                (false, true) => drop(self.plugged.fetch_add(1, Relaxed)),
                (true, false) => drop(self.plugged.fetch_sub(1, Relaxed)),
                _ => {}
            }
        }
    }

    /// Plugged sub-blocks of `unit`.
    pub(crate) fn plugged_in(&self, unit: u64) -> u64 {
        let first = unit * self.words;
        let words = self.bits.get(first as usize..(first + self.words) as usize).unwrap_or_default();
        words.iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum()
    }

    /// Whether all sub-blocks of `unit` are plugged.
    pub(crate) fn is_full(&self, unit: u64) -> bool {
        self.plugged_in(unit) == self.geometry.per_unit()
    }

    /// The first run of sub-blocks from `from` on that are all plugged, or all unplugged.
    pub(crate) fn run(&self, unit: u64, from: u64, is_plugged: bool) -> Option<Range<u64>> {
        let end = self.geometry.per_unit();
        let start = (from..end).find(|&sub| self.is_plugged(unit, sub) == is_plugged)?;
        let end = (start..end).find(|&sub| self.is_plugged(unit, sub) != is_plugged).unwrap_or(end);
        Some(start..end)
    }

    /// The last run of plugged sub-blocks below `end`.
    pub(crate) fn last_run(&self, unit: u64, end: u64) -> Option<Range<u64>> {
        let last = (0..end).rev().find(|&sub| self.is_plugged(unit, sub))?;
        let start = (0..last).rev().find(|&sub| !self.is_plugged(unit, sub)).map_or(0, |sub| sub + 1);
        Some(start..last + 1)
    }
}

impl Listener for SubBlocks {
    fn notify(&self, event: Event, change: &BlockChange) -> Result<(), Veto> {
        let unit = self.gate.admit(&self.geometry, &self.states, &change.pages, event)?;
        let Some(unit) = unit else { return Ok(()) };
        match event {
            Event::GoingOnline
                if !matches!(self.states.get(unit), SubState::Offline | SubState::OfflinePartial) =>
            {
                return Err(Veto::Refused("the memory block is not the driver's to bring online"));
            }
            Event::Online => self.apply(unit, Trigger::Online(change.zone)),
            Event::Offline => self.apply(unit, Trigger::WentOffline),
            Event::GoingOnline | Event::CancelOnline | Event::GoingOffline | Event::CancelOffline => {}
        }
        Ok(())
    }

    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let Some(unit) = self.geometry.unit_of(pages) else { return false };
        let mut from = 0;
        while let Some(run) = self.run(unit, from, true) {
            from = run.end;
            part(self.geometry.pages(unit, run));
        }
        true
    }
}
