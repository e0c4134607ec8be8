//! The states of a memory block in sub-block mode, and the transitions between them.
//!
//! | state | added | plugged | online |
//! |---|---|---|---|
//! | `Unused` | no | none | |
//! | `Plugged` | no: adding it failed, and so did unplugging it again | some or all | |
//! | `Offline`, `OfflinePartial` | yes | all, some | no |
//! | `Kernel`, `KernelPartial` | yes | all, some | in the normal zone |
//! | `Movable`, `MovablePartial` | yes | all, some | in the movable zone |
//!
//! A block that is all unplugged but could not be removed stays in its partial state.

use pagefold_engine::Zone;

use crate::states::UnitState;

/// The state of a memory block in sub-block mode. Linux's names, `enum virtio_mem_sbm_mb_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SubState {
    /// Not added, nothing plugged.
    #[default]
    Unused = 0,
    /// Not added, but something is plugged.
    Plugged,
    /// Added, offline, all plugged.
    Offline,
    /// Added, offline, partly plugged.
    OfflinePartial,
    /// Online in the normal zone, all plugged.
    Kernel,
    /// Online in the normal zone, partly plugged.
    KernelPartial,
    /// Online in the movable zone, all plugged.
    Movable,
    /// Online in the movable zone, partly plugged.
    MovablePartial,
}

/// What happens to a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Sub-blocks were plugged, and it is about to be added.
    Plug {
        /// All of them.
        all: bool,
    },
    /// Adding it failed; so did unplugging it again, or not.
    AddFailed {
        /// It is unplugged again.
        unplugged: bool,
    },
    /// It went online.
    Online(Zone),
    /// It went offline.
    WentOffline,
    /// Some, but not all, of its sub-blocks are plugged now.
    Partly,
    /// All of its sub-blocks are plugged now.
    Fully,
    /// None of its sub-blocks is plugged, and it is not added.
    Gone,
}

impl UnitState for SubState {
    const ALL: &'static [Self] = &[
        SubState::Unused,
        SubState::Plugged,
        SubState::Offline,
        SubState::OfflinePartial,
        SubState::Kernel,
        SubState::KernelPartial,
        SubState::Movable,
        SubState::MovablePartial,
    ];

    fn number(self) -> u8 {
        self as u8
    }
}

impl SubState {
    /// The state of a block that is added: online in a zone or offline, and plugged in full or not.
    pub(crate) const fn added(zone: Option<Zone>, is_full: bool) -> Self {
        match (zone, is_full) {
            (None, true) => SubState::Offline,
            (None, false) => SubState::OfflinePartial,
            (Some(Zone::Normal), true) => SubState::Kernel,
            (Some(Zone::Normal), false) => SubState::KernelPartial,
            (Some(Zone::Movable), true) => SubState::Movable,
            (Some(Zone::Movable), false) => SubState::MovablePartial,
        }
    }

    /// Whether all sub-blocks of an added block are plugged.
    pub(crate) const fn is_full(self) -> bool {
        matches!(self, SubState::Offline | SubState::Kernel | SubState::Movable)
    }

    /// Whether the memory block is added.
    pub(crate) const fn is_added(self) -> bool {
        !matches!(self, SubState::Unused | SubState::Plugged)
    }

    /// The zone it is online in.
    pub(crate) const fn zone(self) -> Option<Zone> {
        match self {
            SubState::Kernel | SubState::KernelPartial => Some(Zone::Normal),
            SubState::Movable | SubState::MovablePartial => Some(Zone::Movable),
            _ => None,
        }
    }

    /// The state after `trigger`; `None` where that cannot happen.
    pub(crate) const fn after(self, trigger: Trigger) -> Option<SubState> {
        use SubState::{
            Kernel, KernelPartial, Movable, MovablePartial, Offline, OfflinePartial, Plugged, Unused,
        };
        Some(match (self, trigger) {
            (Unused, Trigger::Plug { all }) => Self::added(None, all),
            (Offline | OfflinePartial, Trigger::AddFailed { unplugged: true }) => Unused,
            (Offline | OfflinePartial, Trigger::AddFailed { unplugged: false }) => Plugged,
            (Offline | OfflinePartial, Trigger::Online(zone)) => Self::added(Some(zone), self.is_full()),
            (Kernel | Movable | KernelPartial | MovablePartial, Trigger::WentOffline) => {
                Self::added(None, self.is_full())
            }
            (OfflinePartial | KernelPartial | MovablePartial, Trigger::Fully) => {
                Self::added(self.zone(), true)
            }
            (
                Offline | OfflinePartial | Kernel | KernelPartial | Movable | MovablePartial,
                Trigger::Partly,
            ) => Self::added(self.zone(), false),
            (Plugged | OfflinePartial, Trigger::Gone) => Unused,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::SubState::{
        Kernel, KernelPartial, Movable, MovablePartial, Offline, OfflinePartial, Plugged, Unused,
    };
    use super::*;

    /// Linux's transitions, one by one; everything else cannot happen.
    const TABLE: [(SubState, Trigger, SubState); 24] = [
        (Unused, Trigger::Plug { all: true }, Offline),
        (Unused, Trigger::Plug { all: false }, OfflinePartial),
        (Offline, Trigger::AddFailed { unplugged: true }, Unused),
        (Offline, Trigger::AddFailed { unplugged: false }, Plugged),
        (OfflinePartial, Trigger::AddFailed { unplugged: true }, Unused),
        (OfflinePartial, Trigger::AddFailed { unplugged: false }, Plugged),
        (Plugged, Trigger::Gone, Unused),
        (Offline, Trigger::Online(Zone::Normal), Kernel),
        (Offline, Trigger::Online(Zone::Movable), Movable),
        (OfflinePartial, Trigger::Online(Zone::Normal), KernelPartial),
        (OfflinePartial, Trigger::Online(Zone::Movable), MovablePartial),
        (Kernel, Trigger::WentOffline, Offline),
        (Movable, Trigger::WentOffline, Offline),
        (KernelPartial, Trigger::WentOffline, OfflinePartial),
        (MovablePartial, Trigger::WentOffline, OfflinePartial),
        (Offline, Trigger::Partly, OfflinePartial),
        (Kernel, Trigger::Partly, KernelPartial),
        (Movable, Trigger::Partly, MovablePartial),
        (OfflinePartial, Trigger::Partly, OfflinePartial),
        (KernelPartial, Trigger::Partly, KernelPartial),
        (MovablePartial, Trigger::Partly, MovablePartial),
        (OfflinePartial, Trigger::Fully, Offline),
        (KernelPartial, Trigger::Fully, Kernel),
        (MovablePartial, Trigger::Fully, Movable),
    ];

    #[test]
    fn the_transitions_are_linuxs_and_no_others() {
        let triggers = [
            Trigger::Plug { all: true },
            Trigger::Plug { all: false },
            Trigger::AddFailed { unplugged: true },
            Trigger::AddFailed { unplugged: false },
            Trigger::Online(Zone::Normal),
            Trigger::Online(Zone::Movable),
            Trigger::WentOffline,
            Trigger::Partly,
            Trigger::Fully,
            Trigger::Gone,
        ];
        for &state in SubState::ALL {
            for trigger in triggers {
                let row = TABLE.iter().find(|row| (row.0, row.1) == (state, trigger)).map(|row| row.2);
                // The last sub-block of an offline block goes: it is removed.
                let row =
                    if (state, trigger) == (OfflinePartial, Trigger::Gone) { Some(Unused) } else { row };
                assert_eq!(state.after(trigger), row, "{state:?} {trigger:?}");
            }
        }
    }

    #[test]
    fn numbers_name_their_states() {
        assert_eq!(SubState::ALL.len(), 8);
        assert!(SubState::ALL.iter().all(|&state| SubState::from_number(state.number()) == state));
    }
}
