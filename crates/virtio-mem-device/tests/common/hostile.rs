//! A driver that does whatever bytes tell it, and what must hold of the device all the same. The fuzz target and a test run
//! this.

use std::ops::Range;
use std::slice::Iter;

use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings, SystemReset, VERSION_1};
use rustix::fs::{SeekFrom, seek};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
/// The region begins where RAM ends, so that buffers reach across.
const RAM: u64 = MIB;
const REGION: u64 = 16 * MIB;
const QUEUE: u16 = 16;
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

struct Hostile<'a> {
    bytes: Iter<'a, u8>,
    device: Device<Memfd>,
    memory: GuestMemoryMmap,
    queue: Queue,
    outcome: Outcome,
}

/// Runs the bytes, and panics where the device breaks a promise.
pub fn run(bytes: &[u8]) -> Outcome {
    let settings = Settings {
        block_size: Some(MIB),
        guest_block_size: MIB,
        requested_size: 8 * MIB,
        ..Settings::new(RAM, REGION)
    };
    let device = Device::new(settings, Memfd::new(REGION, Pages::Normal).unwrap(), ()).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let region = device.backing().guest_region(RAM).unwrap();
    let memory = memory.insert_region(region.into()).unwrap();
    let mut hostile = Hostile {
        bytes: bytes.iter(),
        device,
        memory,
        queue: Queue::new(QUEUE).unwrap(),
        outcome: Outcome::default(),
    };
    hostile.connect();
    while let Some(command) = hostile.next() {
        hostile.act(command);
    }
    hostile.ring();
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
        self.device.set_driver_features(VERSION_1 | 2).unwrap();
        self.device.driver_ready();
        self.queue.reset();
        self.queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        self.queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        self.queue.set_used_ring_address(Some(USED as u32), None);
        self.queue.set_ready(true);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(0)).unwrap();
    }

    fn act(&mut self, command: u8) {
        match command % 10 {
            0 => {
                let (at, addr) = (self.byte() % 16, self.address());
                let (len, flags, next) =
                    (u32::from(self.short()), self.byte() % 8, u16::from(self.byte() % 20));
                self.descriptor(at.into(), addr, len, flags.into(), next);
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
                let _ = self.device.set_requested_size(size);
            }
            6 => {
                match self.byte() % 3 {
                    0 => self.device.device_reset(),
                    1 => drop(self.device.system_reset(SystemReset::Reboot)),
                    _ => drop(self.device.system_reset(SystemReset::Wakeup)),
                }
                self.connect();
            }
            7 => {
                if self.byte() & 1 == 0 {
                    self.device.freeze()
                } else {
                    self.device.thaw()
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
            _ => self.request(),
        }
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
        self.descriptor(14, BUFFERS, 24, 1, 15);
        self.descriptor(15, BUFFERS + 0x100, 10, 2, 0);
        self.make_available(14);
        let returned = self.outcome.chains;
        self.ring();
        if self.outcome.chains > returned
            && self.memory.read_obj::<u16>(GuestAddress(BUFFERS + 0x100)).unwrap() == 0
        {
            self.outcome.acknowledged += 1;
        }
    }

    fn descriptor(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(DESCRIPTORS + 16 * at)).unwrap();
    }

    fn make_available(&mut self, head: u16) {
        let index: u16 = self.memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        let slot = AVAILABLE + 4 + 2 * u64::from(index % QUEUE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(AVAILABLE + 2)).unwrap();
    }

    fn ring(&mut self) {
        let served = self.device.serve(&mut self.queue, &self.memory);
        self.outcome.chains += served.chains;
        assert!(served.chains <= u32::from(QUEUE), "one doorbell is served for ever");
        if served.needs_reset {
            self.outcome.resets += 1;
            let again = self.device.serve(&mut self.queue, &self.memory);
            assert_eq!(again, Default::default(), "a queue beyond repair is served");
            self.device.device_reset();
            self.connect();
        } else {
            assert_eq!(self.queue.next_used(), self.queue.next_avail(), "a chain was not returned");
        }
        self.check();
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
