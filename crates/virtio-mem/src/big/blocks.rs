//! Big blocks: their states, and the listener that watches over their memory.
//!
//! | state | plugged | added |
//! |---|---|---|
//! | `Unused` | no | no |
//! | `Plugged` | yes | no: adding it failed, and so did unplugging it again |
//! | `Added` | yes | yes |
//! | `FakeOffline` | yes | yes, and about to be removed |

use alloc::sync::Arc;
use core::ops::Range;

use pagefold_engine::OutOfMemory;
use pagefold_engine::hotplug::{BlockChange, Event, Listener, Veto};

use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::states::{States, UnitState};

/// The state of a big block. Linux's names, `enum virtio_mem_bbm_bb_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BigState {
    /// Not plugged.
    #[default]
    Unused = 0,
    /// Plugged, but not added.
    Plugged,
    /// Plugged and added.
    Added,
    /// Added, and about to be removed: no memory block of it may go online.
    FakeOffline,
}

impl UnitState for BigState {
    const ALL: &'static [Self] =
        &[BigState::Unused, BigState::Plugged, BigState::Added, BigState::FakeOffline];

    fn number(self) -> u8 {
        self as u8
    }
}

/// All big blocks of a device.
pub(crate) struct BigBlocks {
    pub(crate) geometry: Geometry,
    pub(crate) gate: Arc<Gate>,
    pub(crate) states: States<BigState>,
}

impl BigBlocks {
    pub(crate) fn new(geometry: Geometry, gate: Arc<Gate>) -> Result<Self, OutOfMemory> {
        Ok(Self { geometry, gate, states: States::new(geometry.units)? })
    }

    /// Bytes that are plugged.
    pub(crate) fn plugged_bytes(&self) -> u64 {
        (self.geometry.units - self.states.count(BigState::Unused)) * self.geometry.unit()
    }
}

impl Listener for BigBlocks {
    fn notify(&self, event: Event, change: &BlockChange) -> Result<(), Veto> {
        let unit = self.gate.admit(&self.geometry, &self.states, &change.pages, event)?;
        let Some(unit) = unit else { return Ok(()) };
        if event == Event::GoingOnline && self.states.get(unit) != BigState::Added {
            return Err(Veto::Refused("the memory block is on its way out"));
        }
        Ok(())
    }

    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let is_ours = self.geometry.unit_of(pages).is_some();
        if is_ours {
            part(pages.clone());
        }
        is_ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_their_states() {
        assert_eq!(BigState::ALL.len(), 4);
        assert!(BigState::ALL.iter().all(|&state| BigState::from_number(state.number()) == state));
    }
}
