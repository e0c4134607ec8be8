//! A driver, a VMM and a host that do whatever bytes tell them, and what must hold of the device all the same. The fuzz target
//! and a test run this.

use std::io;
use std::ops::Range;
use std::slice::Iter;
use std::sync::{Arc, Mutex};

use pagefold_virtio_mem_device::{
    Device, GuestAccess, Memfd, Pages, RegionRange, RestoreError, Settings, SystemReset, VERSION_1,
};
use rustix::fs::{SeekFrom, seek};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
/// The region begins where RAM ends, so that buffers reach across.
const RAM: u64 = MIB;
const REGION: u64 = 16 * MIB;
const QUEUE: u16 = 16;
const EVENT_IDX: u64 = 1 << 29;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x3000;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Chains the device returned.
    pub chains: u32,
    /// Of well-formed requests.
    pub acknowledged: u32,
    /// Times the queue was found unusable.
    pub resets: u32,
}

/// A host whose calls fail as bits say, and the blocks that the guest and its devices reach.
#[derive(Clone, Debug, Default)]
struct Host(Arc<Mutex<(u32, [u32; 2])>>);

impl Host {
    fn turn(&self, which: usize, range: &RegionRange, on: bool) -> io::Result<()> {
        let (fails, reached) = &mut *self.0.lock().unwrap();
        let fail = *fails & 1 == 1;
        *fails >>= 1;
        if fail {
            return Err(io::Error::other("the host was told to refuse"));
        }
        let bits = bits(range.offset..range.offset + range.len);
        assert_eq!(reached[which] & bits, if on { 0 } else { bits }, "{range:?} is so already");
        reached[which] ^= bits;
        Ok(())
    }
}

impl GuestAccess for Host {
    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        self.turn(0, range, true)
    }
    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        self.turn(0, range, false)
    }
    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.turn(1, range, true)
    }
    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.turn(1, range, false)
    }
}

/// A bit for each block of a range.
fn bits(range: Range<u64>) -> u32 {
    (range.start / MIB..range.end / MIB).fold(0, |bits, block| bits | 1 << block)
}

fn settings() -> Settings {
    Settings {
        block_size: Some(MIB),
        guest_block_size: MIB,
        requested_size: 8 * MIB,
        ..Settings::new(RAM, REGION)
    }
}

struct Hostile<'a> {
    bytes: Iter<'a, u8>,
    device: Device<Memfd, Host>,
    host: Host,
    memory: GuestMemoryMmap,
    queue: Queue,
    /// What the driver accepts, and the size of its queue.
    features: u64,
    size: u16,
    outcome: Outcome,
}

/// Runs the bytes, and panics where the device breaks a promise. The first byte says which driver it is: bit 0 that it
/// accepts `EVENT_IDX`, the next three the size of its queue (2^n, at most 16).
pub fn run(bytes: &[u8]) -> Outcome {
    let host = Host::default();
    let device = Device::new(settings(), Memfd::new(REGION, Pages::Normal).unwrap(), host.clone()).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let region = device.backing().guest_region(RAM).unwrap();
    let memory = memory.insert_region(region.into()).unwrap();
    let mut hostile = Hostile {
        bytes: bytes.iter(),
        device,
        host,
        memory,
        queue: Queue::new(QUEUE).unwrap(),
        features: VERSION_1 | 2,
        size: QUEUE,
        outcome: Outcome::default(),
    };
    let driver = hostile.byte();
    if driver & 1 == 1 {
        hostile.features |= EVENT_IDX;
    }
    hostile.size = 1 << (driver >> 1 & 7).min(4);
    hostile.connect();
    while let Some(command) = hostile.next() {
        hostile.act(command);
    }
    hostile.ring();
    hostile.check();
    hostile.outcome
}

impl Hostile<'_> {
    fn next(&mut self) -> Option<u8> {
        self.bytes.next().copied()
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// An address that matters: in the rings, in buffers, about a block's edge, or anything.
    fn address(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from(self.short()),
            1 => BUFFERS + u64::from(self.short() % 512),
            2 => (u64::from(self.byte() % 20) * MIB).wrapping_add_signed(i64::from(self.byte() as i8)),
            _ => self.long(),
        }
    }

    fn connect(&mut self) {
        if self.device.negotiated_features().is_some() {
            assert!(self.device.activate(self.features).is_err(), "two drivers at once");
            return;
        }
        self.device.activate(self.features).unwrap();
        self.queue.reset();
        self.queue.set_size(self.size);
        self.queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        self.queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        self.queue.set_used_ring_address(Some(USED as u32), None);
        self.queue.set_ready(true);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(0)).unwrap();
    }

    fn act(&mut self, command: u8) {
        match command % 14 {
            0 => {
                let (at, addr) = (u16::from(self.byte()) % self.size, self.address());
                let (len, flags, next) =
                    (u32::from(self.short()), self.byte() % 8, u16::from(self.byte() % 20));
                self.descriptor(DESCRIPTORS, at, addr, len, flags.into(), next);
            }
            1 => {
                let (at, len) = (self.short() % 0x4000, self.byte() % 64);
                for at in at..at + u16::from(len) {
                    let byte = self.byte();
                    self.memory.write_obj(byte, GuestAddress(at.into())).unwrap();
                }
            }
            2 => {
                let head = u16::from(self.byte() % 18);
                self.make_available(head);
            }
            3 => {
                let index = self.short();
                self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
            }
            4 => self.ring(),
            5 => {
                let size = u64::from(self.byte()) * MIB / 8;
                let before = self.device.config();
                let done = self.device.set_requested_size(size);
                assert_eq!(
                    done.is_err() || size == before.requested_size.get(),
                    self.device.config() == before
                );
            }
            6 => {
                match self.byte() % 4 {
                    0 => self.device.device_reset(),
                    1 | 3 => self.reboot(),
                    _ => self.device.system_reset(SystemReset::Wakeup).unwrap(),
                }
                self.connect();
            }
            7 => {
                if self.byte() & 1 == 0 {
                    self.device.freeze()
                } else {
                    let failures = self.failures();
                    assert!(self.device.thaw().is_ok() || self.failures() > failures);
                }
            }
            8 => {
                // The addresses of the rings themselves.
                let (descriptors, available, used) = (self.address(), self.address(), self.address());
                let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
                let (low, high) = halves(descriptors);
                self.queue.set_desc_table_address(low, high);
                let (low, high) = halves(available);
                self.queue.set_avail_ring_address(low, high);
                let (low, high) = halves(used);
                self.queue.set_used_ring_address(low, high);
            }
            9 => self.request(),
            10 => {
                let fails = u32::from(self.short());
                self.host.0.lock().unwrap().0 = fails;
            }
            11 => {
                // Nobody is there for a while.
                match self.byte() % 3 {
                    0 => self.device.device_reset(),
                    1 => self.reboot(),
                    _ => self.connect(),
                }
            }
            12 => self.migrate(),
            _ => {
                let failures = self.failures();
                assert!(self.device.settle().is_ok() || self.failures() > failures);
            }
        }
        self.check();
    }

    fn failures(&self) -> u64 {
        self.device.host_failures().0
    }

    fn reboot(&mut self) {
        let failures = self.failures();
        match self.device.system_reset(SystemReset::Reboot) {
            Ok(()) => {}
            Err(_) => assert!(self.failures() > failures),
        }
        assert!(self.device.negotiated_features().is_none());
    }

    /// The guest goes on in another VMM, whose host may refuse once.
    fn migrate(&mut self) {
        let fails = u32::from(self.byte());
        let (saved, queue) = (self.device.snapshot(), self.queue.state());
        let file = self.device.backing().file().try_clone().unwrap();
        let restore = |host: &Host| {
            let memfd = Memfd::from_file(file.try_clone().unwrap(), REGION).unwrap();
            Device::restore(settings(), memfd, host.clone(), &saved)
        };
        let host = Host(Arc::new(Mutex::new((fails, [0; 2]))));
        (self.device, self.host) = match restore(&host) {
            Ok(device) => (device, host),
            Err(RestoreError::Host(_)) => {
                let host = Host::default();
                (restore(&host).unwrap(), host)
            }
            Err(error) => panic!("{error}"),
        };
        self.queue = queue.try_into().unwrap();
        assert_eq!(self.device.snapshot(), saved);
        // What was to fail after all that may fail this.
        let failures = self.failures();
        assert!(self.device.thaw().is_ok() || self.failures() > failures);
    }

    /// A request as a driver would write it, in the last descriptors.
    fn request(&mut self) {
        let (kind, first, count) = (self.byte() % 5, self.byte() % 18, self.byte() % 18);
        let mut bytes = [0u8; 24];
        bytes[0] = kind;
        bytes[8..16].copy_from_slice(&(RAM + u64::from(first) * MIB).to_le_bytes());
        bytes[16] = count;
        self.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        self.memory.write_obj(0xffffu16, GuestAddress(BUFFERS + 0x100)).unwrap();
        let (request, response) = (self.size.wrapping_sub(2), self.size - 1);
        if self.size > 1 {
            self.descriptor(DESCRIPTORS, request, BUFFERS, 24, 1, response);
            self.descriptor(DESCRIPTORS, response, BUFFERS + 0x100, 10, 2, 0);
            self.make_available(request);
        } else {
            // One descriptor is room for a table.
            self.descriptor(BUFFERS + 0x200, 0, BUFFERS, 24, 1, 1);
            self.descriptor(BUFFERS + 0x200, 1, BUFFERS + 0x100, 10, 2, 0);
            self.descriptor(DESCRIPTORS, 0, BUFFERS + 0x200, 32, 4, 0);
            self.make_available(0);
        }
        let returned = self.outcome.chains;
        self.ring();
        if self.outcome.chains > returned
            && self.memory.read_obj::<u16>(GuestAddress(BUFFERS + 0x100)).unwrap() == 0
        {
            self.outcome.acknowledged += 1;
        }
    }

    fn descriptor(&mut self, table: u64, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(at))).unwrap();
    }

    fn make_available(&mut self, head: u16) {
        let index: u16 = self.memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        let slot = AVAILABLE + 4 + 2 * u64::from(index % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(AVAILABLE + 2)).unwrap();
    }

    fn ring(&mut self) {
        let driver = self.device.negotiated_features().is_some();
        // A VMM may tell the queue anything, or nothing.
        let wrong = self.outcome.chains % 3 == 1;
        self.queue.set_event_idx(wrong);
        let mut served = self.device.serve(&mut self.queue, &self.memory);
        self.outcome.chains += served.chains;
        assert!(served.chains <= u32::from(self.size), "one doorbell is served for ever");
        if served.more {
            // Nothing came meanwhile: the driver is a part of this thread.
            served = self.device.serve(&mut self.queue, &self.memory);
            self.outcome.chains += served.chains;
            assert!(!served.more);
        }
        if served.needs_reset {
            self.outcome.resets += 1;
            let again = self.device.serve(&mut self.queue, &self.memory);
            assert_eq!(again, Default::default(), "a queue beyond repair is served");
            self.device.device_reset();
            self.connect();
        } else if driver {
            assert_eq!(self.queue.next_used(), self.queue.next_avail(), "a chain was not returned");
            let (at, heard) = if self.features & EVENT_IDX != 0 {
                (4 + 8 * u64::from(self.size), self.queue.next_avail())
            } else {
                (0, 0)
            };
            let word: u16 = self.memory.read_obj(GuestAddress(self.queue.used_ring() + at)).unwrap();
            assert_eq!(word, heard, "the driver will not ring the doorbell again");
        } else {
            assert_eq!(served, Default::default(), "served without a driver");
        }
    }

    fn check(&self) {
        let config = self.device.config();
        let ranges: Vec<Range<u64>> = self
            .device
            .plugged_ranges()
            .map(|range| {
                assert_eq!(range.addr, RAM + range.offset);
                range.offset..range.offset + range.len
            })
            .collect();
        let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert_eq!(sum, config.plugged_size.get(), "the plugged size is not that of the plugged blocks");
        assert!(config.requested_size <= config.usable_region_size);
        assert!(config.usable_region_size.get() <= REGION);
        if !self.device.is_settled() {
            return;
        }
        let plugged = ranges.iter().fold(0, |all, range| all | bits(range.clone()));
        assert_eq!(self.host.0.lock().unwrap().1, [plugged; 2], "the guest reaches what is not plugged");
        // Nothing was written into memory that was given back.
        let (file, mut at) = (self.device.backing().file(), 0);
        while let Ok(start) = seek(file, SeekFrom::Data(at)) {
            at = seek(file, SeekFrom::Hole(start)).unwrap();
            assert!(
                ranges.iter().any(|range| range.start <= start && at <= range.end),
                "memory at {start:#x}..{at:#x} beside the plugged {ranges:x?}"
            );
        }
    }
}
