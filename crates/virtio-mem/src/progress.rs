//! What the driver has reached, and why not more.

use core::fmt;

use pagefold_engine::Zone;
use pagefold_engine::hotplug::HeldPage;

use crate::channel::ChannelError;
use crate::config::ConfigError;

/// Sub-blocks (big blocks in big-block mode) that could not be unplugged, in one zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// With pages that their owners will not move.
    pub pinned: u64,
    /// In use otherwise.
    pub busy: u64,
}

/// Why less is plugged or unplugged than the host asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// The device said: not now.
    DeviceBusy,
    /// The device would not pass its requested size, several times.
    DeviceRefused,
    /// The device said that a range was wrong. Its state has been asked for since.
    DeviceError,
    /// The device said something that the specification does not know. Its state has been asked for since.
    Malformed,
    /// There is no answer.
    Channel(ChannelError),
    /// The device's configuration makes no sense.
    Config(ConfigError),
    /// By its own count the device has plugged more or less than the driver knows of. It has been asked about every block,
    /// which did not help, and will be asked again.
    Miscounted {
        /// Bytes plugged by the device's count.
        device: u64,
        /// Bytes plugged by the driver's.
        driver: u64,
    },
    /// The host changes its mind faster than anything can be done.
    Unsteady,
    /// Somebody else who watches over memory, or the machine, does not allow it.
    Refused(&'static str),
    /// The step was asked of another machine than the driver was probed for. Nothing was done.
    OtherMachine,
    /// Memory is in use.
    InUse {
        /// In the normal zone.
        normal: Progress,
        /// In the movable zone.
        movable: Progress,
    },
    /// A walker holds on to a fake-offline page (with classic fake-offline only).
    Held(HeldPage),
    /// No memory to add or remove memory.
    NoMemory,
    /// Memory is in use, and there is no memory to move it to: free some.
    NoRoom,
    /// No whole memory block is left in the usable region.
    NoSpace,
    /// Too much memory is added but not online: bring some online.
    OfflineLimit,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortfall::DeviceBusy => f.write_str("the device is busy"),
            Shortfall::DeviceRefused => f.write_str("the device would pass its requested size"),
            Shortfall::DeviceError => f.write_str("the device refused a range"),
            Shortfall::Malformed => f.write_str("the device's answer makes no sense"),
            Shortfall::Channel(error) => write!(f, "{error}"),
            Shortfall::Config(error) => write!(f, "{error}"),
            Shortfall::Miscounted { device, driver } => write!(
                f,
                "the device counts {} MiB plugged, and {} MiB are known of",
                device >> 20,
                driver >> 20
            ),
            Shortfall::Unsteady => f.write_str("the requested size changes faster than it can be followed"),
            Shortfall::Refused(reason) => f.write_str(reason),
            Shortfall::OtherMachine => f.write_str("the driver belongs to another machine"),
            Shortfall::InUse { normal, movable } => {
                let mut comma = "";
                for (zone, left) in [(Zone::Normal, normal), (Zone::Movable, movable)] {
                    for (count, what) in [(left.pinned, "pinned"), (left.busy, "busy")] {
                        if count > 0 {
                            let plural = if count == 1 { "" } else { "s" };
                            write!(f, "{comma}{count} {what} sub-block{plural} in zone {}", zone.name())?;
                            comma = ", ";
                        }
                    }
                }
                if comma.is_empty() { f.write_str("memory is in use") } else { Ok(()) }
            }
            Shortfall::Held(page) => write!(f, "{page}"),
            Shortfall::NoMemory => f.write_str("no memory for the step"),
            Shortfall::NoRoom => f.write_str("no memory to move what is in use to"),
            Shortfall::NoSpace => f.write_str("no whole memory block is left in the usable region"),
            Shortfall::OfflineLimit => f.write_str("too much memory is added but not online"),
        }
    }
}

/// Where the driver stands. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the host wants.
    pub requested: u64,
    /// What is plugged, by the driver's own count.
    pub plugged: u64,
    /// What may be plugged at all.
    pub usable: u64,
    /// Why the two differ, after the last step.
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
        let normal = Progress { pinned: 17, busy: 0 };
        let movable = Progress { pinned: 0, busy: 1 };
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
