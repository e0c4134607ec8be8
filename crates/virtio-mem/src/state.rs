//! Where a unit of the device stands, and what may become of it.
//!
//! # Sub-block mode: a memory block
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
//!
//! # Big-block mode: a big block
//!
//! | state | plugged | added |
//! |---|---|---|
//! | `Unused` | no | no |
//! | `Plugged` | yes | no: adding it failed, and so did unplugging it again |
//! | `Added` | yes | yes |
//! | `FakeOffline` | yes | yes, and on its way out |

use pagefold_engine::Zone;

/// Where a memory block stands in sub-block mode. Linux's names, `enum virtio_mem_sbm_mb_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SubState {
    /// Not added, nothing plugged.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
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

impl SubState {
    /// All states.
    pub const ALL: [SubState; 8] = [
        SubState::Unused,
        SubState::Plugged,
        SubState::Offline,
        SubState::OfflinePartial,
        SubState::Kernel,
        SubState::KernelPartial,
        SubState::Movable,
        SubState::MovablePartial,
    ];

    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            1 => SubState::Plugged,
            2 => SubState::Offline,
            3 => SubState::OfflinePartial,
            4 => SubState::Kernel,
            5 => SubState::KernelPartial,
            6 => SubState::Movable,
            7 => SubState::MovablePartial,
            _ => SubState::Unused,
        }
    }

    /// Whether the memory block is added.
    pub const fn is_added(self) -> bool {
        !matches!(self, SubState::Unused | SubState::Plugged)
    }

    /// The zone it is online in.
    pub const fn zone(self) -> Option<Zone> {
        match self {
            SubState::Kernel | SubState::KernelPartial => Some(Zone::Normal),
            SubState::Movable | SubState::MovablePartial => Some(Zone::Movable),
            _ => None,
        }
    }

    /// The state after `trigger`; `None` where that cannot happen.
    pub const fn after(self, trigger: Trigger) -> Option<SubState> {
        use SubState::{
            Kernel, KernelPartial, Movable, MovablePartial, Offline, OfflinePartial, Plugged, Unused,
        };
        Some(match (self, trigger) {
            (Unused, Trigger::Plug { all: true }) => Offline,
            (Unused, Trigger::Plug { all: false }) => OfflinePartial,
            (Offline | OfflinePartial, Trigger::AddFailed { unplugged: true }) => Unused,
            (Offline | OfflinePartial, Trigger::AddFailed { unplugged: false }) => Plugged,
            (Offline, Trigger::Online(Zone::Normal)) => Kernel,
            (Offline, Trigger::Online(Zone::Movable)) => Movable,
            (OfflinePartial, Trigger::Online(Zone::Normal)) => KernelPartial,
            (OfflinePartial, Trigger::Online(Zone::Movable)) => MovablePartial,
            (Kernel | Movable, Trigger::WentOffline) => Offline,
            (KernelPartial | MovablePartial, Trigger::WentOffline) => OfflinePartial,
            (Offline | OfflinePartial, Trigger::Partly) => OfflinePartial,
            (Kernel | KernelPartial, Trigger::Partly) => KernelPartial,
            (Movable | MovablePartial, Trigger::Partly) => MovablePartial,
            (OfflinePartial, Trigger::Fully) => Offline,
            (KernelPartial, Trigger::Fully) => Kernel,
            (MovablePartial, Trigger::Fully) => Movable,
            (Plugged | OfflinePartial, Trigger::Gone) => Unused,
            _ => return None,
        })
    }
}

/// Where a big block stands. Linux's names, `enum virtio_mem_bbm_bb_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BigState {
    /// Not plugged.
    Unused = 0,
    /// Plugged, but not added.
    Plugged,
    /// Plugged and added.
    Added,
    /// On its way out: what goes online of it now stays fake-offline.
    FakeOffline,
}

impl BigState {
    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            1 => BigState::Plugged,
            2 => BigState::Added,
            3 => BigState::FakeOffline,
            _ => BigState::Unused,
        }
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
        for state in SubState::ALL {
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
        assert!(SubState::ALL.into_iter().all(|state| SubState::from_number(state as u8) == state));
        let big = [BigState::Unused, BigState::Plugged, BigState::Added, BigState::FakeOffline];
        assert!(big.into_iter().all(|state| BigState::from_number(state as u8) == state));
    }
}
