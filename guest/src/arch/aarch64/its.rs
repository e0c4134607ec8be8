//! GICv3's interrupt translation service (Arm IHI 0069, chapter 5): the number that a device writes becomes an interrupt by
//! tables, which are written by commands. One event a device, and all of them to one processor.

use alloc::alloc::alloc_zeroed;
use core::alloc::Layout;

use virtio_drivers::transport::pci::bus::DeviceFunction;

use super::flush::finish_stores;
use super::gic;
use super::registers::{read, write};
use crate::layout::DIRECT;
use crate::paging;

/// Bits of their numbers: the least that there can be.
const BITS: u64 = 14;

// Registers of the service.
const CTLR: u64 = 0x0;
const TYPER: u64 = 0x8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const BASERS: u64 = 8;
/// Where devices write to, from the service's registers on.
const TRANSLATER: u64 = 0x1_0040;
// Registers of a redistributor.
const REDISTRIBUTOR_CTLR: u64 = 0x0;
const REDISTRIBUTOR_TYPER: u64 = 0x8;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;

/// What memory of tables is: inner shareable, cacheable, read- and write-allocate.
const CACHED: u64 = 0b01 << 10 | 0b111 << 7;
/// In the registers of tables and of commands (BASER, CBASER), what it is besides: the same, with bits elsewhere.
const TABLE_CACHED: u64 = 0b01 << 10 | 0b111 << 59;
const VALID: u64 = 1 << 63;
const PAGE: u64 = 4096;
/// What tables are for.
const DEVICES: u64 = 1;
const COLLECTIONS: u64 = 4;
/// Looks at a register until the service must have done something.
const PATIENCE: u32 = 1 << 22;

// Commands.
const SYNC: u64 = 0x05;
const MAP_DEVICE: u64 = 0x08;
const MAP_COLLECTION: u64 = 0x09;
const MAP_EVENT: u64 = 0x0a;
const INVALIDATE: u64 = 0x0c;

/// The service, set up.
pub struct Its {
    /// Its registers, and where they are for devices.
    at: u64,
    physical: u64,
    commands: u64,
    /// Bytes of commands written so far, in a page that begins anew.
    written: u64,
    /// What names this processor's redistributor.
    target: u64,
    /// A byte for each interrupt: its priority, and whether it is on.
    settings: u64,
    /// Bytes of an event's entry.
    entry: u64,
}

/// Zeroed memory for good: where it is here.
fn memory(bytes: u64, align: u64) -> Option<u64> {
    let layout = Layout::from_size_align(bytes as usize, align as usize).ok()?;
    // SAFETY: the layout's size is above zero.
    let at = unsafe { alloc_zeroed(layout) };
    (!at.is_null()).then_some(at as u64)
}

/// Sets the service up, for messages to this processor. `None` where it is not as one needs it.
pub fn open((physical, bytes): (u64, u64)) -> Option<Its> {
    const HAS_LPIS: u64 = 1;
    const ENABLE_LPIS: u32 = 1;
    const BY_ADDRESS: u64 = 1 << 19;
    const ENABLE: u32 = 1;
    let redistributor = gic::redistributor()?;
    let says = read::<u64>(redistributor + REDISTRIBUTOR_TYPER);
    // Somebody who has turned them on has told where their tables are, and that cannot be changed.
    if says & HAS_LPIS == 0 || read::<u32>(redistributor + REDISTRIBUTOR_CTLR) & ENABLE_LPIS != 0 {
        return None;
    }
    let at = paging::map_device(physical, bytes).ok()?;
    let has = read::<u64>(at + TYPER);
    let target =
        if has & BY_ADDRESS != 0 { gic::redistributor_physical()? } else { (says >> 8 & 0xffff) << 16 };

    // The interrupts' settings, and which of them are pending: a bit each, of the lower ones too.
    let settings = memory((1 << BITS) - u64::from(gic::MESSAGES), PAGE)?;
    let pending = memory((1 << BITS) / 8, 1 << 16)?;
    write::<u64>(redistributor + PROPBASER, (settings - DIRECT) | CACHED | (BITS - 1));
    const IS_ZERO: u64 = 1 << 62;
    write::<u64>(redistributor + PENDBASER, (pending - DIRECT) | CACHED | IS_ZERO);
    finish_stores();
    write::<u32>(
        redistributor + REDISTRIBUTOR_CTLR,
        read::<u32>(redistributor + REDISTRIBUTOR_CTLR) | ENABLE_LPIS,
    );

    // A page for each table: devices of the first bus, and one collection.
    for register in (0..BASERS).map(|table| at + BASER + table * 8) {
        let is = read::<u64>(register);
        let kind = is >> 56 & 7;
        if kind != DEVICES && kind != COLLECTIONS {
            continue;
        }
        let entry = (is >> 48 & 0x1f) + 1;
        let table = memory(PAGE, PAGE)?;
        write::<u64>(register, (table - DIRECT) | VALID | TABLE_CACHED);
        // Pages of 4 KiB, which not every service takes.
        let is_small = read::<u64>(register) >> 8 & 3 == 0;
        if !is_small || (kind == DEVICES && PAGE / entry < 256) {
            return None;
        }
    }
    let commands = memory(PAGE, PAGE)?;
    write::<u64>(at + CBASER, (commands - DIRECT) | VALID | TABLE_CACHED);
    write::<u64>(at + CWRITER, 0);
    write::<u32>(at + CTLR, read::<u32>(at + CTLR) | ENABLE);
    let entry = (has >> 4 & 0xf) + 1;
    let mut its = Its { at, physical, commands, written: 0, target, settings, entry };
    // Collection 0 is this processor.
    its.command([MAP_COLLECTION, 0, VALID | target, 0])?;
    its.sync()?;
    Some(its)
}

impl Its {
    /// Where the message of a device goes, and what it is.
    pub fn map(&mut self, function: DeviceFunction, number: u32) -> Option<(u64, u32)> {
        // Group 1; the usual priority; on.
        const SETTING: u8 = 0xa0 | 1;
        const EVENT: u64 = 0;
        let device =
            u64::from(function.bus) << 8 | u64::from(function.device) << 3 | u64::from(function.function);
        // Two events, the fewest.
        let events = memory((2 * self.entry).next_multiple_of(256), 256)?;
        // SAFETY: a byte of the settings for each number below 8192.
        unsafe { ((self.settings + u64::from(number)) as *mut u8).write_volatile(SETTING) };
        finish_stores();
        self.command([MAP_DEVICE | device << 32, 0, VALID | (events - DIRECT), 0])?;
        self.command([MAP_EVENT | device << 32, EVENT | u64::from(gic::MESSAGES + number) << 32, 0, 0])?;
        self.command([INVALIDATE | device << 32, EVENT, 0, 0])?;
        self.sync()?;
        Some((self.physical + TRANSLATER, EVENT as u32))
    }

    fn sync(&mut self) -> Option<()> {
        self.command([SYNC, 0, self.target, 0])
    }

    /// Has it do one, and waits until it has. `None` where it does not.
    fn command(&mut self, words: [u64; 4]) -> Option<()> {
        const STALLED: u64 = 1;
        for (to, word) in (self.commands + self.written..).step_by(8).zip(words) {
            // SAFETY: in the page of commands, of which each has 32 bytes; the service has read what was there before.
            unsafe { (to as *mut u64).write_volatile(word.to_le()) };
        }
        finish_stores();
        self.written = (self.written + 32) % PAGE;
        write::<u64>(self.at + CWRITER, self.written);
        let is_done = (0..PATIENCE).any(|_| {
            core::hint::spin_loop();
            read::<u64>(self.at + CREADR) & !STALLED == self.written
        });
        (is_done && read::<u64>(self.at + CREADR) & STALLED == 0).then_some(())
    }
}
