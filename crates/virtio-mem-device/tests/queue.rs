//! The queue, with chains that drivers send and some that they should not.

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::cell::Cell;

use common::*;
use hostile::Outcome;
use pagefold_virtio_mem_device::{FeaturesError, QUEUE_SIZE, ResizeError, Served, VERSION_1};
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug};
use pagefold_virtio_mem_spec::{Request, ResponseType};
use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};
use zerocopy::IntoBytes;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const EVENT_IDX: u64 = 1 << 29;
/// Buffers lie here; the rings are below.
const BUFFERS: u64 = 0x8000;

/// A queue as a transport sets it up: rings in pages of their own.
fn ready_queue(size: u16) -> Queue {
    let mut queue = Queue::new(size).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(0x1000), Some(0));
    queue.set_used_ring_address(Some(0x2000), Some(0));
    queue.set_ready(true);
    queue
}

/// A device with a driver's queue. Each test lays out its own chains.
struct Machine {
    device: TestDevice,
    memory: GuestMemoryMmap,
    queue: Queue,
    made: u16,
}

impl Machine {
    fn new() -> Self {
        Self::of(16)
    }

    /// With a queue of this size.
    fn of(size: u16) -> Self {
        let (device, _) = driven(settings(), 64 * MIB);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
        let region = device.backing().memfd.guest_region(ADDR).unwrap();
        let memory = memory.insert_region(region.into()).unwrap();
        let queue = ready_queue(size);
        Self { device, memory, queue, made: 0 }
    }

    /// Makes a chain of (address, bytes, flags) available; NEXT is added. The response is at `BUFFERS + 0x100` by custom.
    fn chain(&mut self, buffers: &[(u64, u32, u16)]) {
        self.memory.write_obj([0xffffu16; 5], GuestAddress(BUFFERS + 0x100)).unwrap();
        let first = 0u16;
        for (at, &(addr, len, flags)) in buffers.iter().enumerate() {
            let last = at + 1 == buffers.len();
            let flags = if last { flags } else { flags | NEXT };
            self.descriptor(first + at as u16, addr, len, flags, first + at as u16 + 1);
        }
        self.make_available(first);
    }

    fn descriptor(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_in(self.queue.desc_table(), at, addr, len, flags, next);
    }

    fn descriptor_in(&self, table: u64, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        self.memory.write_obj(descriptor, GuestAddress(table + 16 * u64::from(at))).unwrap();
    }

    fn make_available(&mut self, head: u16) {
        let slot = self.queue.avail_ring() + 4 + 2 * u64::from(self.made % self.queue.size());
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.made = self.made.wrapping_add(1);
        self.memory.write_obj(self.made, GuestAddress(self.queue.avail_ring() + 2)).unwrap();
    }

    fn request(&self, request: Request) {
        self.memory.write_slice(request.as_bytes(), GuestAddress(BUFFERS)).unwrap();
    }

    fn serve(&mut self) -> Served {
        self.device.serve(&mut self.queue, &self.memory)
    }

    /// Serves one chain; the length it was used with, and the response's type.
    fn served(&mut self) -> (u32, u16) {
        let served = self.serve();
        assert_eq!((served.chains, served.interrupt, served.needs_reset), (1, true, false));
        let slot = self.queue.used_ring() + 4 + 8 * u64::from((self.made - 1) % self.queue.size());
        let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
        assert_eq!(head, 0);
        (len, self.memory.read_obj(GuestAddress(BUFFERS + 0x100)).unwrap())
    }
}

const ACK: (u32, u16) = (10, ResponseType::Ack as u16);
const ERROR: (u32, u16) = (10, ResponseType::Error as u16);
/// Used with length 0; nothing was written.
const UNUSED: (u32, u16) = (0, 0xffff);
const RESPONSE: (u64, u32, u16) = (BUFFERS + 0x100, 10, WRITE);

#[test]
fn a_request_is_answered_and_its_chain_returned() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 3));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    assert_eq!(machine.served(), ACK);
    assert_eq!(plugged(&machine.device), 3 * BLOCK);
}

#[test]
fn ch_82d426162_buffers_may_be_larger_and_split_anyhow() {
    for (request, response) in [
        (vec![(BUFFERS, 24)], vec![(BUFFERS + 0x100, 10)]),
        (vec![(BUFFERS, 64)], vec![(BUFFERS + 0x100, 4096)]),
        (
            vec![(BUFFERS, 1), (BUFFERS + 1, 16), (BUFFERS + 17, 7)],
            vec![(BUFFERS + 0x100, 2), (BUFFERS + 0x102, 8)],
        ),
        (
            vec![(BUFFERS, 0), (BUFFERS, 24), (BUFFERS, 0)],
            vec![(0, 0), (BUFFERS + 0x100, 10), (BUFFERS + 0x200, 1)],
        ),
        (vec![(BUFFERS, 23), (BUFFERS + 23, 100)], (0..10).map(|at| (BUFFERS + 0x100 + at, 1)).collect()),
    ] {
        let mut machine = Machine::new();
        machine.request(Request::new(Plug, ADDR, 1));
        let readable = request.iter().map(|&(addr, len)| (addr, len, 0));
        let writable = response.iter().map(|&(addr, len)| (addr, len, WRITE));
        machine.chain(&readable.chain(writable).collect::<Vec<_>>());
        assert_eq!(machine.served(), ACK, "{request:?} {response:?}");
        assert_eq!(plugged(&machine.device), BLOCK);
    }
}

#[test]
fn indirect_chains_are_chains() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 1));
    let table = BUFFERS + 0x400;
    for (at, (addr, len, flags, next)) in
        [(BUFFERS, 24, NEXT, 1), (BUFFERS + 0x100, 10, WRITE, 0)].into_iter().enumerate()
    {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        machine.memory.write_obj(descriptor, GuestAddress(table + 16 * at as u64)).unwrap();
    }
    machine.chain(&[(table, 32, INDIRECT)]);
    assert_eq!(machine.served(), ACK);
    // A table that is none.
    machine.chain(&[(table, 31, INDIRECT)]);
    assert_eq!(machine.served(), UNUSED);
}

#[test]
fn ch_97e16f249_fc_an_unknown_type_is_an_error_and_the_queue_goes_on() {
    let mut machine = Machine::new();
    for kind in [4u16, 255, 256, u16::MAX] {
        let mut request = Request::new(Plug, ADDR, 1);
        request.kind = kind.into();
        machine.request(request);
        machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
        assert_eq!(machine.served(), ERROR);
    }
    machine.request(Request::new(State, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    assert_eq!(machine.served(), ACK);
}

#[test]
fn ch_6a1fe123c_a_malformed_chain_comes_back_and_does_nothing() {
    let nowhere = 1 << 40;
    for (chain, answer) in [
        // No request, or too little of one.
        (vec![RESPONSE], ERROR),
        (vec![(BUFFERS, 23, 0), RESPONSE], ERROR),
        (vec![(BUFFERS, 0, 0), RESPONSE], ERROR),
        // No room for an answer: no request either.
        (vec![(BUFFERS, 24, 0)], UNUSED),
        (vec![(BUFFERS, 24, 0), (BUFFERS + 0x100, 9, WRITE)], UNUSED),
        (vec![(BUFFERS, 24, 0), (BUFFERS + 0x100, 0, WRITE)], UNUSED),
        // Not memory, or not all of it.
        (vec![(nowhere, 24, 0), RESPONSE], ERROR),
        (vec![(MIB - 8, 24, 0), RESPONSE], ERROR),
        (vec![(u64::MAX - 7, 24, 0), RESPONSE], ERROR),
        (vec![(BUFFERS, 24, 0), (nowhere, 8, 0), RESPONSE], ERROR),
        (vec![(BUFFERS, 24, 0), (nowhere, 10, WRITE)], UNUSED),
        (vec![(BUFFERS, 24, 0), (BUFFERS + 0x100, 4, WRITE), (MIB - 2, 6, WRITE)], UNUSED),
        (vec![(BUFFERS, 24, 0), (BUFFERS + 0x100, u32::MAX, WRITE)], UNUSED),
        // Memory of this device that is not plugged.
        (vec![(ADDR + BLOCK, 24, 0), RESPONSE], ERROR),
        (vec![(BUFFERS, 24, 0), (ADDR, 10, WRITE)], UNUSED),
    ] {
        let mut machine = Machine::new();
        machine.request(Request::new(Plug, ADDR, 1));
        machine.chain(&chain);
        assert_eq!(machine.served(), answer, "{chain:x?}");
        assert_eq!(plugged(&machine.device), 0, "{chain:x?}");
        assert_eq!(machine.device.backing().memfd.resident().unwrap(), 0, "{chain:x?}");
        machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
        assert_eq!(machine.served(), ACK, "after {chain:x?}");
    }
}

#[test]
fn chains_that_run_in_circles_or_out_of_the_table_come_back() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 1));
    machine.descriptor(0, BUFFERS, 24, NEXT, 0);
    machine.make_available(0);
    assert_eq!(machine.served().0, 0);
    machine.descriptor(0, BUFFERS, 24, NEXT, 16);
    machine.make_available(0);
    assert_eq!(machine.served().0, 0);
    assert_eq!(plugged(&machine.device), 0);
}

#[test]
fn an_answer_into_memory_that_its_request_unplugs_is_not_written() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    assert_eq!(machine.served(), ACK);
    machine.request(Request::new(Unplug, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), (ADDR + 4096, 10, WRITE)]);
    assert_eq!(machine.served().0, 0);
    assert_eq!(plugged(&machine.device), 0);
    assert_eq!(machine.device.backing().memfd.resident().unwrap(), 0);
}

#[test]
fn rings_and_tables_in_unplugged_memory_are_not_memory() {
    type Place = fn(&mut Queue, Option<u32>, Option<u32>);
    let rings: [Place; 3] =
        [Queue::set_desc_table_address, Queue::set_avail_ring_address, Queue::set_used_ring_address];
    for place in rings {
        let mut machine = Machine::new();
        let inside = ADDR + BLOCK;
        place(&mut machine.queue, Some(inside as u32), Some((inside >> 32) as u32));
        assert!(machine.serve().needs_reset);
        assert_eq!(machine.device.backing().memfd.resident().unwrap(), 0);
    }
    let mut machine = Machine::new();
    machine.chain(&[(ADDR + BLOCK, 32, INDIRECT)]);
    assert_eq!(machine.served(), UNUSED);
    assert_eq!(machine.device.backing().memfd.resident().unwrap(), 0);
}

#[test]
fn many_requests_behind_one_doorbell() {
    let mut machine = Machine::new();
    for block in 0..8 {
        let at = BUFFERS + block * 0x200;
        machine
            .memory
            .write_slice(Request::new(Plug, ADDR + block * BLOCK, 1).as_bytes(), GuestAddress(at))
            .unwrap();
        machine.descriptor(2 * block as u16, at, 24, NEXT, 2 * block as u16 + 1);
        machine.descriptor(2 * block as u16 + 1, at + 0x100, 10, WRITE, 0);
        machine.make_available(2 * block as u16);
    }
    assert_eq!(machine.serve(), Served { chains: 8, interrupt: true, more: false, needs_reset: false });
    assert_eq!(plugged(&machine.device), 8 * BLOCK);
}

/// Memory that tells where the device looks, before it does.
struct Watched<F> {
    memory: GuestMemoryMmap,
    look: F,
}

impl<F: Fn(&GuestMemoryMmap, GuestAddress, usize)> GuestMemory for Watched<F> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&self.memory, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>, GuestMemoryError> {
        (self.look)(&self.memory, addr, count);
        GuestMemory::get_slices(&self.memory, addr, count, access)
    }
}

#[test]
fn a_driver_that_never_stops_is_served_for_a_while() {
    let mut machine = Machine::new();
    machine.request(Request::new(State, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    machine.memory.write_obj([0u16; 16], GuestAddress(machine.queue.avail_ring() + 4)).unwrap();
    let available = GuestAddress(machine.queue.avail_ring() + 2);
    // The driver is as fast as the device: whenever that looks, there is one more chain.
    let look = |memory: &GuestMemoryMmap, addr, count| {
        if (addr, count) == (available, 2) {
            let index: u16 = memory.read_obj(addr).unwrap();
            memory.write_obj(index.wrapping_add(1), addr).unwrap();
        }
    };
    let memory = Watched { memory: machine.memory.clone(), look };
    let served = machine.device.serve(&mut machine.queue, &memory);
    assert_eq!(served, Served { chains: 16, interrupt: true, more: true, needs_reset: false });
}

#[test]
fn rings_that_make_no_sense_need_a_reset_and_nothing_is_served_until_then() {
    let broken: [fn(&mut Machine); 4] = [
        // More entries than the ring has.
        |machine| machine.memory.write_obj(17u16, GuestAddress(machine.queue.avail_ring() + 2)).unwrap(),
        // A head beyond the table cannot be returned.
        |machine| machine.make_available(16),
        |machine| machine.queue.set_used_ring_address(Some(MIB as u32 - 4), None),
        |machine| machine.queue.set_desc_table_address(Some(0), Some(1 << 8)),
    ];
    for breaks in broken {
        let mut machine = Machine::new();
        machine.request(Request::new(Plug, ADDR, 1));
        breaks(&mut machine);
        assert!(machine.serve().needs_reset);
        assert_eq!(machine.serve(), Served::default());
        // It is no driver that could follow a new size, and no place for another one.
        assert!(matches!(machine.device.set_requested_size(0), Err(ResizeError::NoDriver)));
        assert_eq!(machine.device.activate(VERSION_1 | 2), Err(FeaturesError::Active));
        assert_eq!(ask(&mut machine.device, Plug, 0..1), says(ResponseType::Error));
        machine.device.device_reset();
        drive(&mut machine.device);
        machine.queue = ready_queue(16);
        machine.made = 0;
        machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
        assert_eq!(machine.served(), ACK);
    }
}

#[test]
fn fc_9f6c3b802_a_doorbell_before_during_and_after_a_reset_does_nothing() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    machine.device.device_reset();
    assert_eq!(machine.serve(), Served::default());
    machine.queue.set_ready(false);
    drive(&mut machine.device);
    assert_eq!(machine.serve(), Served::default());
    // What waited is served once the driver is there.
    machine.queue.set_ready(true);
    assert_eq!(machine.served(), ACK);
}

#[test]
fn the_queue_size_is_one_a_queue_can_have() {
    assert_eq!(Queue::new(QUEUE_SIZE).unwrap().size(), 128);
}

/// A driver that rings as `EVENT_IDX` tells it to, and a VMM that has never heard of it, or told the queue something else.
#[test]
fn a_driver_that_negotiated_event_idx_is_heard_and_heeded_whatever_the_vmm_told_the_queue() {
    for negotiated in [true, false] {
        for told in [None, Some(true), Some(false)] {
            let mut machine = Machine::new();
            let event_idx = if negotiated { EVENT_IDX } else { 0 };
            machine.device.device_reset();
            activate(&mut machine.device, VERSION_1 | 2 | event_idx).unwrap();
            told.into_iter().for_each(|told| machine.queue.set_event_idx(told));
            let (avail, used) = (machine.queue.avail_ring(), machine.queue.used_ring());
            // More than 65,536: indices come round.
            let (mut rung, mut interrupts) = (0u32, 0u32);
            for request in 0..70_000u32 {
                // Answers are looked for every fourth time.
                let used_event = GuestAddress(avail + 4 + 2 * 16);
                machine.memory.write_obj((request | 3) as u16, used_event).unwrap();
                machine.request(Request::new(State, ADDR, 1));
                let old = machine.made;
                machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
                let rings = if negotiated {
                    let event: u16 = machine.memory.read_obj(GuestAddress(used + 4 + 8 * 16)).unwrap();
                    machine.made.wrapping_sub(event).wrapping_sub(1) < machine.made.wrapping_sub(old)
                } else {
                    machine.memory.read_obj::<u16>(GuestAddress(used)).unwrap() & 1 == 0
                };
                assert!(rings, "the driver hangs at request {request}: {negotiated} {told:?}");
                rung += 1;
                let served = machine.serve();
                assert_eq!((served.chains, served.more, served.needs_reset), (1, false, false));
                interrupts += u32::from(served.interrupt);
                let answer: u16 = machine.memory.read_obj(GuestAddress(BUFFERS + 0x100)).unwrap();
                assert_eq!(answer, ACK.1, "request {request}: {negotiated} {told:?}");
            }
            assert_eq!((rung, interrupts), (70_000, if negotiated { 17_500 } else { 70_000 }));
        }
    }
}

#[test]
fn a_doorbell_without_a_request_interrupts_nobody() {
    let mut machine = Machine::new();
    assert_eq!(machine.serve(), Served::default());
    machine.request(Request::new(State, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    assert_eq!(machine.served(), ACK);
    assert_eq!(machine.serve(), Served::default());
}

#[test]
fn a_queue_of_one_is_a_queue() {
    for size in [1, 2, 128] {
        let mut machine = Machine::of(size);
        machine.request(Request::new(Plug, ADDR, 1));
        let table = BUFFERS + 0x400;
        machine.descriptor_in(table, 0, BUFFERS, 24, NEXT, 1);
        machine.descriptor_in(table, 1, BUFFERS + 0x100, 10, WRITE, 0);
        machine.chain(&[(table, 32, INDIRECT)]);
        assert_eq!(machine.served(), ACK);
        machine.chain(&[(BUFFERS, 24, 0)]);
        assert_eq!(machine.served(), UNUSED);
    }
}

#[test]
fn a_chain_without_an_end_or_with_too_many_descriptors_is_no_request() {
    let plug = Request::new(Plug, ADDR, 1);
    // A circle of all that a request needs; an end that lies beyond the table; one that is no table.
    for (flags, next) in [(WRITE | NEXT, 0), (WRITE | NEXT, 16), (WRITE | NEXT, 2)] {
        let mut machine = Machine::new();
        machine.request(plug);
        machine.memory.write_obj(0xffffu16, GuestAddress(BUFFERS + 0x100)).unwrap();
        machine.descriptor(0, BUFFERS, 24, NEXT, 1);
        machine.descriptor(1, BUFFERS + 0x100, 10, flags, next);
        machine.descriptor(2, BUFFERS + 0x400, 31, INDIRECT, 0);
        machine.make_available(0);
        assert_eq!(machine.served(), ERROR, "{flags} {next}");
        assert_eq!(plugged(&machine.device), 0);
    }
    // As many descriptors as the longest queue has are looked at, of a table that has 65,535.
    for (empty, answer) in [(126, ACK), (127, UNUSED), (65_533, UNUSED)] {
        let mut machine = Machine::new();
        machine.request(plug);
        machine.memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 * MIB as usize)]).unwrap();
        machine.queue = ready_queue(16);
        machine.memory.write_slice(plug.as_bytes(), GuestAddress(BUFFERS)).unwrap();
        let table = BUFFERS + 0x1000;
        for at in 0..=empty {
            let (addr, len) = if at == empty { (BUFFERS, 24) } else { (0, 0) };
            machine.descriptor_in(table, at, addr, len, NEXT, at + 1);
        }
        machine.descriptor_in(table, empty + 1, BUFFERS + 0x100, 10, WRITE, 0);
        machine.chain(&[(table, 16 * (u32::from(empty) + 2), INDIRECT)]);
        assert_eq!(machine.served(), answer, "{empty}");
    }
}

#[test]
fn writable_buffers_before_readable_ones_and_both_in_one_place_are_served() {
    for chain in [[RESPONSE, (BUFFERS, 24, 0)], [(BUFFERS + 0xf0, 64, 0), (BUFFERS + 0x100, 10, WRITE)]] {
        let mut machine = Machine::new();
        machine.chain(&chain);
        let at = chain.iter().find(|(_, _, flags)| *flags == 0).unwrap().0;
        machine.memory.write_slice(Request::new(Plug, ADDR, 1).as_bytes(), GuestAddress(at)).unwrap();
        assert_eq!(machine.served(), ACK);
        assert_eq!(plugged(&machine.device), BLOCK);
    }
}

#[test]
fn a_descriptor_is_read_once() {
    let mut machine = Machine::new();
    machine.request(Request::new(Plug, ADDR, 1));
    machine.chain(&[(BUFFERS, 24, 0), RESPONSE]);
    let reads = Cell::new(0);
    let look = |_: &GuestMemoryMmap, addr: GuestAddress, count| {
        reads.set(reads.get() + u32::from(addr.0 < 0x1000 && count == 16));
    };
    let memory = Watched { memory: machine.memory.clone(), look };
    assert_eq!(machine.device.serve(&mut machine.queue, &memory).chains, 1);
    assert_eq!(reads.get(), 2);
}

/// Programs for the hostile driver, by hand: what a fuzzer starts from.
const PROGRAMS: &[&[u8]] = &[
    // Plug three blocks, ask, unplug one, unplug all.
    &[8, 9, 0, 0, 3, 9, 3, 0, 4, 9, 1, 1, 1, 9, 2, 0, 0],
    // Plug, then an answer into the plugged block while it is unplugged.
    &[
        8, 9, 0, 0, 1, 1, 0, 48, 24, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 1, 0, 0, 24, 0, 1, 1, 0, 1, 2, 1, 0, 10, 0, 2, 0, 2, 0, 4,
    ],
    // A circle, and a head beyond the table.
    &[8, 0, 0, 1, 0, 0, 24, 0, 1, 0, 2, 0, 4, 2, 17, 4, 9, 0, 0, 1],
    // Rings in each other's places, and outside of memory.
    &[
        8, 8, 0, 0, 32, 0, 0, 16, 0, 0, 0, 9, 0, 0, 1, 8, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0, 32, 4,
        9, 0, 0, 1,
    ],
    // Frozen, resized, rebooted.
    &[9, 7, 0, 9, 0, 0, 1, 7, 1, 5, 255, 5, 64, 9, 0, 0, 8, 6, 1, 9, 0, 0, 2, 6, 0, 6, 2],
    // Too many entries.
    &[8, 3, 255, 255, 4, 9, 0, 0, 1],
    // EVENT_IDX on queues of one and of two, more often than the queue is long; one request finds a host that fails.
    &[1, 9, 0, 0, 1, 9, 0, 1, 1, 9, 1, 0, 1, 9, 3, 0, 4],
    &[3, 9, 0, 0, 1, 9, 0, 1, 1, 10, 6, 0, 9, 1, 0, 1, 13, 9, 1, 0, 1, 9, 3, 0, 4],
    // Rebooted while frozen, with a driver before the thaw, and without; migrated then.
    &[9, 9, 0, 0, 3, 7, 0, 11, 1, 11, 2, 7, 1, 9, 1, 0, 1, 7, 0, 11, 1, 12, 0, 11, 2, 9, 0, 0, 3],
];

#[test]
fn the_hostile_drivers_programs_do_what_they_say() {
    let outcomes: Vec<_> = PROGRAMS.iter().map(|program| hostile::run(program)).collect();
    assert_eq!(outcomes[0], Outcome { chains: 4, acknowledged: 4, resets: 0 });
    assert_eq!(outcomes[1], Outcome { chains: 2, acknowledged: 1, resets: 0 });
    assert_eq!(outcomes[2], Outcome { chains: 2, acknowledged: 1, resets: 1 });
    assert!(outcomes[3].resets >= 1);
    assert_eq!(outcomes[4], Outcome { chains: 3, acknowledged: 2, resets: 0 });
    assert_eq!(outcomes[5], Outcome { chains: 1, acknowledged: 1, resets: 1 });
    assert_eq!(outcomes[6], Outcome { chains: 4, acknowledged: 4, resets: 0 });
    assert_eq!(outcomes[7], Outcome { chains: 5, acknowledged: 4, resets: 0 });
    assert_eq!(outcomes[8], Outcome { chains: 3, acknowledged: 3, resets: 0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_a_promise(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }

    /// Programs of the right shape get further than bytes.
    #[test]
    fn no_program_breaks_a_promise(
        driver in 0u8..16,
        commands in prop::collection::vec((0u8..14, prop::collection::vec(any::<u8>(), 0..9)), 0..80),
    ) {
        let commands = commands.into_iter().flat_map(|(command, rest)| std::iter::once(command).chain(rest));
        let bytes: Vec<u8> = std::iter::once(driver).chain(commands).collect();
        hostile::run(&bytes);
    }
}
