//! The virtio-mem device, asked over a real virtqueue, beside the bare hole punch. `cargo bench -p pagefold-virtio-loopback`.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../pagefold/benches/pairs/mod.rs"]
mod pairs;

use std::time::Duration;

use common::{Accepted, Client, MIB, MemoryLoopback, device, settings};
use pagefold_virtio_mem_device::{Memfd, Pages, Settings};
use pagefold_virtio_mem_spec::RequestType::{Plug, Unplug};
use pagefold_virtio_mem_spec::{RequestType, Response, ResponseType};
use pairs::{Bar, Row, pair, print, punch_hole, time};
use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

/// A memory block of the guest, and as device blocks of 2 MiB.
const MEMORY_BLOCK: u64 = 128 * MIB;
const BLOCKS: u16 = 64;
/// Where the region begins.
const ADDR: u64 = 1 << 40;
/// Memory blocks in a run of untouched memory, so that it takes long enough to be timed.
const RUN: u64 = 8;

/// A device of `size` bytes with a driver, all of it requested, and its memory mapped as the guest's would be.
struct Rig {
    _host: MemoryLoopback,
    client: Client,
    region: GuestRegionMmap,
}

impl Rig {
    fn new(size: u64) -> Self {
        let host = device(Settings { region_size: size, ..settings(ADDR) });
        let client = Client::new(&host, Accepted::all());
        host.set_requested_size(size).expect("a size");
        let region = host.with(|device, _| device.backing().guest_region(ADDR)).expect("a mapping");
        Self { _host: host, client, region }
    }

    fn ask(&mut self, kind: RequestType, memory_block: u64) {
        let answer = self.client.ask(kind, ADDR + memory_block * MEMORY_BLOCK, BLOCKS);
        assert_eq!(answer, Response::new(ResponseType::Ack));
    }
}

/// A file of the same size, mapped in the same way, and nothing else.
struct Bare {
    file: Memfd,
    region: GuestRegionMmap,
}

impl Bare {
    fn new(size: u64) -> Self {
        let file = Memfd::new(size, Pages::Normal).expect("memory");
        let region = file.guest_region(ADDR).expect("a mapping");
        Self { file, region }
    }

    fn punch(&self, memory_block: u64) {
        punch_hole(self.file.file(), memory_block * MEMORY_BLOCK, MEMORY_BLOCK);
    }
}

fn touch(region: &GuestRegionMmap, memory_block: u64) {
    for page in (0..MEMORY_BLOCK).step_by(4096) {
        region.write_obj(page, MemoryRegionAddress(memory_block * MEMORY_BLOCK + page)).expect("memory");
    }
}

/// Plug and unplug of untouched memory blocks, one request each.
fn untouched(rig: &mut Rig) -> Duration {
    time(|| {
        for block in 0..RUN {
            rig.ask(Plug, block);
            rig.ask(Unplug, block);
        }
    })
}

fn main() {
    let size = 8 * 1024 * MIB;
    let (mut rig, bare) = (Rig::new(size), Bare::new(size));
    let mut rows: Vec<Row> = Vec::new();

    rows.push(pair(
        "plug + unplug of 128 MiB, untouched, over the queue",
        &mut || untouched(&mut rig),
        "bare hole punch of the same range",
        &mut || time(|| (0..RUN).for_each(|block| bare.punch(block))),
        RUN,
        Bar::None,
    ));

    let mut large = Rig::new(1024 * 1024 * MIB);
    rows.push(pair(
        "the same, in a device of 1 TiB",
        &mut || untouched(&mut large),
        "in a device of 8 GiB",
        &mut || untouched(&mut rig),
        RUN,
        Bar::AtMost(1.1),
    ));

    rows.push(pair(
        "plug + unplug of 128 MiB, every page touched in between",
        &mut || {
            let plug = time(|| rig.ask(Plug, 0));
            touch(&rig.region, 0);
            plug + time(|| rig.ask(Unplug, 0))
        },
        "bare hole punch of the same range, touched",
        &mut || {
            touch(&bare.region, 0);
            time(|| bare.punch(0))
        },
        1,
        Bar::AtMost(1.2),
    ));

    if !print(&rows) {
        println!("\nNot every bar holds in this run.");
    }
}
