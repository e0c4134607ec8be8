//! What happened, for logs: each event is one line of text.

use std::fmt;

use pagefold_virtio_mem_device::FeaturesError;
use pagefold_virtio_mem_spec::{PlugState, Request, RequestType, Response, ResponseType};

/// Something that happened. Its text is a line without an end.
#[derive(Clone, Debug)]
pub enum Event {
    /// A VMM has connected.
    Connected,
    /// Another VMM wanted to connect while one was there; it was refused.
    Refused,
    /// A VMM wanted to connect, and this process could not take it; why.
    NotAccepted(String),
    /// The VMM is gone, or the connection was ended; why, where it was not the VMM's wish.
    Disconnected(Option<String>),
    /// The VMM has said where guest memory is: regions, and bytes in all.
    Memory {
        /// Regions.
        regions: usize,
        /// Bytes of all regions.
        bytes: u64,
    },
    /// A driver is ready, with these feature bits.
    DriverReady(u64),
    /// The device does not work with the driver.
    DriverRefused(FeaturesError),
    /// The VMM's memory at the region is not this device's.
    WrongMemory(String),
    /// Pages of guest memory are gone: the VMM has cut its file short. They read as zeros.
    MemoryGone,
    /// The driver, or its VMM, has stopped the ring: a device reset.
    DriverGone,
    /// The driver's rings are beyond repair until it resets the device.
    DriverBroken,
    /// The driver has asked, and was answered.
    Request(Request, Response),
    /// The host wants this many bytes plugged; whether the VMM could be told.
    Resized {
        /// Bytes.
        bytes: u64,
        /// Whether the VMM has been told. It learns of it when it connects, otherwise.
        told: bool,
    },
    /// The device's state went to the VMM, or came from it, for migration.
    Migrated(&'static str),
    /// The host would not do something; the guest was answered BUSY.
    HostFailed(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connected => f.write_str("a VMM has connected"),
            Event::Refused => f.write_str("a second VMM was refused: one at a time"),
            Event::NotAccepted(why) => write!(f, "a VMM could not be taken: {why}"),
            Event::Disconnected(None) => f.write_str("the VMM is gone"),
            Event::Disconnected(Some(why)) => write!(f, "the connection was ended: {why}"),
            Event::Memory { regions, bytes } => {
                write!(f, "guest memory: {} MiB in {regions} regions", bytes >> 20)
            }
            Event::DriverReady(features) => write!(f, "a driver is ready, features {features:#x}"),
            Event::DriverRefused(why) => write!(f, "the driver was refused: {why}"),
            Event::WrongMemory(why) => f.write_str(why),
            Event::MemoryGone => f.write_str("memory that the VMM had given is gone: its file was cut short"),
            Event::DriverGone => f.write_str("the driver has stopped; blocks stay as they are"),
            Event::DriverBroken => f.write_str("the driver's rings are damaged: it must reset the device"),
            Event::Request(request, response) => write_request(f, request, response),
            Event::Resized { bytes, told } => {
                write!(f, "requested size {} MiB", bytes >> 20)?;
                f.write_str(if *told { "" } else { "; no VMM to tell" })
            }
            Event::Migrated(way) => write!(f, "the device's state was {way}"),
            Event::HostFailed(why) => write!(f, "the host refused: {why}"),
        }
    }
}

/// `PLUG 0x100000000 +64 blocks: ACK`.
fn write_request(f: &mut fmt::Formatter<'_>, request: &Request, response: &Response) -> fmt::Result {
    let (addr, blocks) = (request.addr.get(), request.nb_blocks.get());
    match RequestType::try_from(request.kind.get()) {
        Ok(RequestType::UnplugAll) => f.write_str("UNPLUG_ALL")?,
        Ok(RequestType::Plug) => write!(f, "PLUG {addr:#x} +{blocks} blocks")?,
        Ok(RequestType::Unplug) => write!(f, "UNPLUG {addr:#x} +{blocks} blocks")?,
        Ok(RequestType::State) => write!(f, "STATE {addr:#x} +{blocks} blocks")?,
        Err(unknown) => write!(f, "request {}", unknown.0)?,
    }
    f.write_str(match ResponseType::try_from(response.kind.get()) {
        Ok(ResponseType::Ack) if request.kind.get() == RequestType::State as u16 => {
            match PlugState::try_from(response.state.get()) {
                Ok(PlugState::Plugged) => ": plugged",
                Ok(PlugState::Unplugged) => ": unplugged",
                _ => ": mixed",
            }
        }
        Ok(ResponseType::Ack) => ": ACK",
        Ok(ResponseType::Nack) => ": NACK",
        Ok(ResponseType::Busy) => ": BUSY",
        _ => ": ERROR",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines() {
        let line = |request: Request, response: Response| Event::Request(request, response).to_string();
        let ack = Response::new(ResponseType::Ack);
        assert_eq!(
            line(Request::new(RequestType::Plug, 1 << 32, 64), ack),
            "PLUG 0x100000000 +64 blocks: ACK"
        );
        assert_eq!(line(Request::new(RequestType::UnplugAll, 0, 0), ack), "UNPLUG_ALL: ACK");
        let mixed = Response::state(PlugState::Mixed);
        assert_eq!(line(Request::new(RequestType::State, 0, 1), mixed), "STATE 0x0 +1 blocks: mixed");
    }
}
