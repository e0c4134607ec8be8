//! Messages of devices: a write to the local APIC's address is an interrupt (Intel SDM, volume 3, 11.11).

use virtio_drivers::transport::pci::bus::DeviceFunction;

use super::firmware::Firmware;
use super::interrupts::{MESSAGES, MOST_MESSAGES};
use crate::cpu;

/// Where a message for the processor with APIC 0 goes.
const ADDRESS: u64 = 0xfee0_0000;

/// Nothing: every processor takes messages.
pub fn init(_: &Firmware) {}

/// Where the message of a device goes, and what it is: an interrupt of this processor.
pub fn of(_: DeviceFunction, number: u8) -> Option<(u64, u32)> {
    let address = ADDRESS | u64::from(cpu::this().own.id() as u8) << 12;
    (number < MOST_MESSAGES).then_some((address, u32::from(MESSAGES + number)))
}
