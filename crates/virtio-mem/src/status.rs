//! What the driver says of itself: when to step again, what it has reached, and why not more.

use core::fmt;
use core::time::Duration;

use pagefold_engine::Zone;
use pagefold_engine::hotplug::HeldPage;
use thiserror::Error;

use crate::channel::ChannelError;
use crate::config::ConfigError;

/// When to step again, by [`Driver::step`](crate::Driver::step).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When the device's config changes. The host has what it asked for, rounded to whole sub-blocks.
    Reached,
    /// At once: something was done, and there is more to do.
    Again,
    /// After that time, or when the device's config or the state of a memory block changes.
    Later(Duration, Shortfall),
    /// When the device's config or the state of a memory block changes. Time alone does not help.
    Asleep(Shortfall),
}

/// Sub-blocks (big blocks in big-block mode) of one zone that could not be unplugged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StuckBlocks {
    /// Those with pages that their owners do not move.
    pub pinned: u64,
    /// Those that are in use for another reason.
    pub busy: u64,
}

/// Why less is plugged or unplugged than the host asked for. Where somebody can do something about it, the variant says
/// what; the driver tries again in any case, when [`Next`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Shortfall {
    /// The device answered BUSY.
    #[error("the device is busy")]
    DeviceBusy,
    /// The device answered NACK several times: its requested size would be passed.
    #[error("the device would pass its requested size")]
    DeviceRefused,
    /// The device answered ERROR. The driver has asked for the state of the range since.
    #[error("the device refused a range")]
    DeviceError,
    /// The device gave an answer that the specification does not know. The driver has asked for the state of the range since.
    #[error("the device's answer makes no sense")]
    Malformed,
    /// The device did not answer. The error says what follows.
    #[error("{0}")]
    Channel(ChannelError),
    /// The device's config space was refused. The error says what follows.
    #[error("{0}")]
    Config(ConfigError),
    /// The device counts more or fewer plugged bytes than the driver. The driver has asked it about every block, and will
    /// ask again.
    #[error("the device counts {} MiB plugged, the driver {} MiB", device >> 20, driver >> 20)]
    Miscounted {
        /// Bytes plugged by the device's count.
        device: u64,
        /// Bytes plugged by the driver's count.
        driver: u64,
    },
    /// The host changes the requested size faster than a step can follow.
    #[error("the requested size changes faster than it can be followed")]
    Unsteady,
    /// Another listener of memory hotplug, or the machine, does not allow it. The text says why.
    #[error("{0}")]
    Refused(&'static str),
    /// The step was given the `Hotplug` of another engine than the driver was probed with. Nothing was done: pass the right
    /// one.
    #[error("the driver belongs to another machine")]
    OtherMachine,
    /// Memory is in use: it goes when its owners free it, or can move it.
    #[error("{}", InUse(*normal, *movable))]
    InUse {
        /// In the normal zone.
        normal: StuckBlocks,
        /// In the movable zone.
        movable: StuckBlocks,
    },
    /// A walker holds a reference on a fake-offline page (with classic fake-offline only): retry when it is put.
    #[error("{0}")]
    Held(HeldPage),
    /// The engine or the driver has no memory for the step: free some.
    #[error("no memory for the step")]
    OutOfMemory,
    /// Memory is in use, and there is no memory to move it to: free some.
    #[error("no free memory to move used pages to")]
    NoRoom,
    /// No whole memory block is left in the usable region: the host has to grow the region, or ask for less.
    #[error("no whole memory block is left in the usable region")]
    NoSpace,
    /// Too much memory is added but not online: bring some online.
    #[error("too much memory is added but not online")]
    OfflineLimit,
}

/// Memory in use, for people.
struct InUse(StuckBlocks, StuckBlocks);

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (zone, stuck) in [(Zone::Normal, self.0), (Zone::Movable, self.1)] {
            for (count, what) in [(stuck.pinned, "pinned"), (stuck.busy, "busy")] {
                if count > 0 {
                    let plural = if count == 1 { "" } else { "s" };
                    write!(f, "{comma}{count} {what} sub-block{plural} in zone {}", zone.name())?;
                    comma = ", ";
                }
            }
        }
        if comma.is_empty() { f.write_str("memory is in use") } else { Ok(()) }
    }
}

/// How far the driver is. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the host asked for, when the config space was last read.
    pub requested: u64,
    /// What is plugged, by the driver's own count.
    pub plugged: u64,
    /// The size of the usable region, of which the host lets blocks be plugged.
    pub usable: u64,
    /// Why `plugged` is not `requested`, by the last step.
    pub shortfall: Option<Shortfall>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, verb) = match self.plugged.cmp(&self.requested) {
            core::cmp::Ordering::Equal => return f.write_str("as requested"),
            core::cmp::Ordering::Less => (self.requested - self.plugged, "plug"),
            core::cmp::Ordering::Greater => (self.plugged - self.requested, "unplug"),
        };
        write!(f, "still {} MiB to {verb}", left >> 20)?;
        self.shortfall.map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_shortfall_says_how_much_and_why() {
        let normal = StuckBlocks { pinned: 17, busy: 0 };
        let movable = StuckBlocks { pinned: 0, busy: 1 };
        let mut status = Status {
            requested: 0,
            plugged: 36 << 20,
            usable: 1 << 30,
            shortfall: Some(Shortfall::InUse { normal, movable }),
        };
        assert_eq!(
            status.to_string(),
            "still 36 MiB to unplug: 17 pinned sub-blocks in zone Normal, 1 busy sub-block in zone Movable"
        );
        status.requested = 40 << 20;
        status.shortfall = Some(Shortfall::DeviceBusy);
        assert_eq!(status.to_string(), "still 4 MiB to plug: the device is busy");
        status.requested = status.plugged;
        assert_eq!(status.to_string(), "as requested");
    }
}
