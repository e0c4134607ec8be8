//! What ends a step, or a part of it, before its work is done.

use core::ops::Range;

use pagefold_engine::hotplug::{BlockError, Busy, Fate, Veto, Withdrawn};
use pagefold_engine::{AddError, Order, OutOfMemory, Pfn};

use crate::status::Shortfall;

/// What ends a step early. The first four are tried again at once, a limited number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The host has changed the requested size.
    NewWish,
    /// The step has made as many requests as it may.
    Spent,
    /// The step has asked owners as often as it may, and most of the folios have moved.
    Paused,
    /// The device answered NACK.
    Nack,
    /// Folios are in use; `pinned`: their owners do not move some of them.
    InUse { pinned: bool },
    /// Any other reason: the one that the driver's user is told.
    Short(Shortfall),
}

/// The result of a step, or of a part of one.
pub(crate) type Result<T = (), E = Stop> = core::result::Result<T, E>;

impl Stop {
    /// Memory is in use, and no more is known.
    pub(crate) const IN_USE: Stop = Stop::InUse { pinned: false };
    /// An owner does not move its folio.
    pub(crate) const PINNED: Stop = Stop::InUse { pinned: true };
    /// No memory for the step.
    pub(crate) const NO_MEMORY: Stop = Stop::Short(Shortfall::OutOfMemory);
    /// What is in use has nowhere to go.
    pub(crate) const NO_ROOM: Stop = Stop::Short(Shortfall::NoRoom);

    /// Whether one part of memory stays, while another may still be unplugged.
    pub(crate) fn is_stuck(self) -> bool {
        matches!(self, Stop::InUse { .. } | Stop::Short(Shortfall::Held(_) | Shortfall::Refused(_)))
    }

    /// What keeps `pages` from going, by what became of them; `None` if nothing does.
    pub(crate) fn of_fates(withdrawn: &Withdrawn, pages: &Range<u64>) -> Option<Self> {
        let fates = || {
            let areas = pages.clone().step_by(Order::AREA.pages() as usize);
            areas.filter_map(|pfn| withdrawn.fate(Pfn(pfn)))
        };
        if fates().any(|fate| fate == Fate::Pinned) {
            return Some(Stop::PINNED);
        }
        fates().any(|fate| fate == Fate::Busy).then_some(Stop::IN_USE)
    }

    fn refused(why: &'static str) -> Self {
        Stop::Short(Shortfall::Refused(why))
    }
}

impl From<Shortfall> for Stop {
    fn from(why: Shortfall) -> Self {
        Stop::Short(why)
    }
}

impl From<OutOfMemory> for Stop {
    fn from(_: OutOfMemory) -> Self {
        Stop::NO_MEMORY
    }
}

impl From<Busy> for Stop {
    fn from(busy: Busy) -> Self {
        Stop::InUse { pinned: busy.unmovable > 0 }
    }
}

impl From<BlockError> for Stop {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Busy(busy) => busy.into(),
            BlockError::NoRoom(_) => Stop::NO_ROOM,
            BlockError::Held(page) => Shortfall::Held(page).into(),
            BlockError::Veto(Veto::Refused(why)) => Stop::refused(why),
            BlockError::BadPart(_) => Stop::refused("another listener says what cannot be of a memory block"),
            BlockError::State(_)
            | BlockError::UnknownBlock
            | BlockError::BadRange
            | BlockError::NotFakeOffline(_)
            | BlockError::AlreadyFakeOffline(_) => {
                Stop::refused("a memory block is not in the state it was left in")
            }
            BlockError::OutOfMemory => Stop::NO_MEMORY,
        }
    }
}

impl From<AddError> for Stop {
    fn from(error: AddError) -> Self {
        match error {
            AddError::OutOfMemory => Stop::NO_MEMORY,
            AddError::Overlap => Stop::refused("other code has added memory in the device's region"),
            AddError::Misaligned | AddError::OutOfRange => {
                Stop::refused("a memory block of the device does not fit the machine")
            }
        }
    }
}
