//! Messages of devices: by GICv2's frame for them (v2m), whose register raises the interrupt that is written to it; by GICv3's
//! translation service.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;
use virtio_drivers::transport::pci::bus::DeviceFunction;

use super::firmware::Firmware;
use super::gic::{self, Trigger};
use super::its::{self, Its};
use super::registers;
use crate::{cpu, paging};

/// Devices that have a message each, at most.
const MOST: u32 = 8;

// Registers of the frame (Arm SBSA, appendix I).
const TYPER: u64 = 0x8;
const SET_SPI: u64 = 0x40;

/// Who takes messages.
enum Taker {
    /// The frame: where its register is, the first interrupt that is for messages, and how many are.
    Frame {
        address: u64,
        first: u32,
        count: u32,
    },
    Service(Its),
}

static TAKER: Mutex<Option<Taker>> = Mutex::new(None);
/// The interrupt of the first device's message, once there is one: above all of them before. Relaxed: noted before any can come.
static FIRST: AtomicU32 = AtomicU32::new(u32::MAX);

/// Finds out who takes messages.
pub fn init(firmware: &Firmware) {
    let taker = match (firmware.frame, firmware.its) {
        (Some(frame), _) => frame_at(frame),
        (None, Some(service)) => its::open(service).map(Taker::Service),
        (None, None) => None,
    };
    let first = match &taker {
        Some(Taker::Frame { first, .. }) => *first,
        Some(Taker::Service(_)) => gic::MESSAGES,
        None => return,
    };
    FIRST.store(first, Ordering::Relaxed);
    *TAKER.lock() = taker;
}

fn frame_at((address, bytes): (u64, u64)) -> Option<Taker> {
    let at = paging::map_device(address, bytes).ok()?;
    let has: u32 = registers::read(at + TYPER);
    Some(Taker::Frame { address: address + SET_SPI, first: has >> 16 & 0x3ff, count: has & 0x3ff })
}

/// Where the message of a device goes, and what it is: an interrupt of this processor.
pub fn of(function: DeviceFunction, number: u8) -> Option<(u64, u32)> {
    let number = u32::from(number);
    match TAKER.lock().as_mut()? {
        Taker::Frame { address, first, count } if number < (*count).min(MOST) => {
            gic::open(*first + number, Trigger::Edge, cpu::this().number);
            Some((*address, *first + number))
        }
        Taker::Service(service) if number < MOST => service.map(function, number),
        _ => None,
    }
}

/// The device whose message an interrupt is.
pub fn device_of(interrupt: u32) -> Option<u8> {
    let number = interrupt.checked_sub(FIRST.load(Ordering::Relaxed))?;
    (number < MOST).then_some(number as u8)
}
