//! What virtio-mem's driver and device say to each other.
//!
//! Source of every number here: Virtual I/O Device specification, section "Memory Device" (`device-types/mem`, version 1.4
//! with `PERSISTENT_SUSPEND`). All fields are little-endian; a memory device is never a legacy device. Both ends use this
//! crate. It does not judge requests: the device does.

#![no_std]

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The virtio device number of a memory device.
pub const DEVICE_ID: u32 = 24;

/// The index of the only virtqueue, `guest-request`.
pub const GUEST_REQUEST_QUEUE: u16 = 0;

bitflags! {
    /// Feature bits of a memory device.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Features: u64 {
        /// `VIRTIO_MEM_F_ACPI_PXM`: `node_id` is an ACPI proximity domain.
        const ACPI_PXM = 1 << 0;
        /// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver may not touch unplugged memory at all, not even read it.
        const UNPLUGGED_INACCESSIBLE = 1 << 1;
        /// `VIRTIO_MEM_F_PERSISTENT_SUSPEND`: plugged blocks survive suspend-to-RAM.
        const PERSISTENT_SUSPEND = 1 << 2;
    }
}

/// The config space, byte for byte: 56 bytes. The driver only reads it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ConfigSpace {
    /// Bytes of a device block: size and alignment of everything below. A power of two. Never changes.
    pub block_size: U64,
    /// The proximity domain; only with [`Features::ACPI_PXM`].
    pub node_id: U16,
    /// Ignored.
    pub padding: [u8; 6],
    /// Where the device's region begins in physical address space. Never changes.
    pub addr: U64,
    /// Bytes of the region. Never changes.
    pub region_size: U64,
    /// Bytes at the start of the region that may be plugged now. Grows at any time; shrinks in `UNPLUG_ALL` and on a
    /// system reset only.
    pub usable_region_size: U64,
    /// Bytes plugged.
    pub plugged_size: U64,
    /// Bytes the host wants plugged.
    pub requested_size: U64,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RequestType {
    /// Plug blocks.
    Plug = 0,
    /// Unplug blocks.
    Unplug = 1,
    /// Unplug all blocks.
    UnplugAll = 2,
    /// Ask whether blocks are plugged.
    State = 3,
}

/// What a response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ResponseType {
    /// Done.
    Ack = 0,
    /// Would pass the requested size.
    Nack = 1,
    /// Not now.
    Busy = 2,
    /// Not with this range.
    Error = 3,
}

/// What an acknowledged [`RequestType::State`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PlugState {
    /// All blocks are plugged.
    Plugged = 0,
    /// All blocks are unplugged.
    Unplugged = 1,
    /// Some are, some are not.
    Mixed = 2,
}

/// A number without a meaning in the specification: malformed. It says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown(pub u16);

impl core::fmt::Display for Unknown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} means nothing to a memory device", self.0)
    }
}

impl core::error::Error for Unknown {}

macro_rules! from_number {
    ($name:ident: $($variant:ident),+) => {
        impl TryFrom<u16> for $name {
            type Error = Unknown;
            fn try_from(number: u16) -> Result<Self, Unknown> {
                [$(Self::$variant),+].into_iter().find(|known| *known as u16 == number).ok_or(Unknown(number))
            }
        }
    };
}
from_number!(RequestType: Plug, Unplug, UnplugAll, State);
from_number!(ResponseType: Ack, Nack, Busy, Error);
from_number!(PlugState: Plugged, Unplugged, Mixed);

/// A request, as it stands in the driver's buffer: 24 bytes, readable by the device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Request {
    /// A [`RequestType`].
    pub kind: U16,
    /// Ignored.
    pub padding: [u8; 6],
    /// The first block's address; not for [`RequestType::UnplugAll`].
    pub addr: U64,
    /// Blocks; not for [`RequestType::UnplugAll`]. At most 65,535: just under 128 GiB of 2 MiB blocks.
    pub nb_blocks: U16,
    /// Ignored.
    pub padding2: [u8; 6],
}

impl Request {
    /// A request about `nb_blocks` blocks from `addr` on.
    pub fn new(kind: RequestType, addr: u64, nb_blocks: u16) -> Self {
        Self {
            kind: U16::new(kind as u16),
            addr: U64::new(addr),
            nb_blocks: U16::new(nb_blocks),
            ..Self::default()
        }
    }
}

/// A response, as it stands in the driver's buffer: 10 bytes, writable by the device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Response {
    /// A [`ResponseType`].
    pub kind: U16,
    /// Ignored.
    pub padding: [u8; 6],
    /// A [`PlugState`], where a [`RequestType::State`] was acknowledged.
    pub state: U16,
}

impl Response {
    /// A response without a state.
    pub fn new(kind: ResponseType) -> Self {
        Self { kind: U16::new(kind as u16), ..Self::default() }
    }

    /// An acknowledged [`RequestType::State`].
    pub fn state(state: PlugState) -> Self {
        Self { state: U16::new(state as u16), ..Self::new(ResponseType::Ack) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn sizes_and_offsets_are_the_specifications() {
        assert_eq!((size_of::<ConfigSpace>(), size_of::<Request>(), size_of::<Response>()), (56, 24, 10));
        assert_eq!(offset_of!(ConfigSpace, addr), 16);
        assert_eq!(offset_of!(ConfigSpace, requested_size), 48);
        assert_eq!((offset_of!(Request, addr), offset_of!(Request, nb_blocks)), (8, 16));
        assert_eq!(offset_of!(Response, state), 8);
    }

    #[test]
    fn every_number_names_one_thing_or_nothing() {
        for number in 0..=u16::MAX {
            assert_eq!(
                RequestType::try_from(number).map(|known| known as u16).ok(),
                (number < 4).then_some(number)
            );
            assert_eq!(
                ResponseType::try_from(number).map(|known| known as u16).ok(),
                (number < 4).then_some(number)
            );
            assert_eq!(
                PlugState::try_from(number).map(|known| known as u16).ok(),
                (number < 3).then_some(number)
            );
        }
        assert_eq!(RequestType::try_from(u16::MAX), Err(Unknown(u16::MAX)));
        assert_eq!(Features::all().bits(), 0b111);
        assert_eq!((DEVICE_ID, GUEST_REQUEST_QUEUE), (24, 0));
    }

    #[test]
    fn responses_are_the_specifications() {
        assert_eq!(Response::new(ResponseType::Busy).as_bytes(), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Response::state(PlugState::Mixed).as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        // Whatever bytes a driver or a device sends are a request or a response.
        assert!(
            Request::read_from_bytes(&[0xff; 24]).is_ok() && Response::read_from_bytes(&[0xff; 10]).is_ok()
        );
    }

    #[test]
    fn numbers_are_the_specifications() {
        assert_eq!(RequestType::try_from(2), Ok(RequestType::UnplugAll));
        assert_eq!(ResponseType::try_from(3), Ok(ResponseType::Error));
        assert_eq!(PlugState::try_from(2), Ok(PlugState::Mixed));
        assert_eq!(RequestType::try_from(4), Err(Unknown(4)));
        let bytes = Request::new(RequestType::Plug, 0x1_4000_0000, 0x203);
        assert_eq!(
            bytes.as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 1, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0]
        );
    }
}
