//! Plugging and unplugging memory blocks: engine, driver, virtqueue and device together, in pairs. See
//! `docs/benchmarks.md`.

mod pairs;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig, OnlinePolicy, Unmovable};
use pagefold_engine::platform::Barrier;
use pagefold_engine::{Config, Engine, Kind, Order, Pfn, Zone};
use pagefold_linux::{Linux, Membarrier};
use pagefold_virtio_loopback::{Loopback, LoopbackHal, LoopbackTransport};
use pagefold_virtio_mem::{Driver, DriverSettings, Next, VirtioChannel};
use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};
use pairs::{Bar, Row, pair, print, punch_hole, time};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = 128 * MIB;
/// Where regions begin.
const ADDR: u64 = 4 * GIB;

/// A barrier, and how often its writer's half ran: once a grace period.
#[derive(Clone)]
struct Counted(Membarrier, Arc<AtomicU64>);

// SAFETY: both halves are those of the barrier inside; counting comes before and changes nothing.
unsafe impl Barrier for Counted {
    fn light(&self) {
        self.0.light();
    }
    fn heavy(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.heavy();
    }
    fn wait(&self, turn: u32) {
        self.0.wait(turn);
    }
}

type BenchPlatform = Linux<Counted, [u64; 7]>;
type BenchDriver<'e> = Driver<'e, VirtioChannel<LoopbackHal, LoopbackTransport<Device<Memfd>>>>;

/// Linux's virtio-mem guest, a 128 MiB block of untouched memory: HyperAlloc (EuroSys '25), raw data, Linux 6.1.
const LINUX_PLUG: Duration = Duration::from_micros(1400);
const LINUX_UNPLUG: Duration = Duration::from_micros(3300);

/// A machine with a device, and a second one that is used to measure a peer.
struct Rig<'e> {
    device: Loopback<Device<Memfd>>,
    hotplug: Hotplug<'e, BenchPlatform>,
    driver: BenchDriver<'e>,
}

fn counted(end: u64) -> (Engine<BenchPlatform>, Arc<AtomicU64>) {
    let graces = Arc::<AtomicU64>::default();
    let barrier = Counted(Membarrier::register().expect("membarrier"), Arc::clone(&graces));
    let host = Linux::new(barrier).expect("a platform");
    (Engine::new(host, Config::new(end >> 12)).expect("an engine"), graces)
}

fn engine(end: u64) -> Engine<BenchPlatform> {
    counted(end).0
}

impl<'e> Rig<'e> {
    fn new(engine: &'e Engine<BenchPlatform>, size: u64, fake_offline: FakeOffline) -> Self {
        let config = HotplugConfig {
            policy: OnlinePolicy::Zone(Zone::Movable),
            fake_offline,
            ..HotplugConfig::default()
        };
        let mut hotplug = engine.hotplug(config).expect("hotplug");
        hotplug.boot(0..BLOCK / 4096, 0).expect("boot memory");
        let settings = Settings { block_size: Some(2 * MIB), ..Settings::new(ADDR, size) };
        let backing = Memfd::new(size, Pages::Normal).expect("a memfd");
        let device = Loopback::new(Device::new(settings, backing, ()).expect("a device"));
        let channel =
            VirtioChannel::new(device.connect().expect("a transport"), u64::MAX).expect("a channel");
        let driver = Driver::probe(channel, &mut hotplug, DriverSettings::default()).expect("a driver");
        Self { device, hotplug, driver }
    }

    fn resize(&mut self, size: u64) -> Duration {
        let (took, step) = self.follow(size);
        assert_eq!(step, Next::Reached);
        took
    }

    fn follow(&mut self, size: u64) -> (Duration, Next) {
        self.device.set_requested_size(size).expect("a size");
        let mut step = Next::Again;
        let took = time(|| step = self.driver.work(&mut self.hotplug, &mut Unmovable, |_| true));
        (took, step)
    }

    /// UNPLUG requests so far.
    fn unplugged(&self) -> u64 {
        self.device.with(|device, _| device.stats().unplug.count())
    }

    fn file(&self) -> File {
        self.device.with(|device, _| device.backing().file().try_clone().expect("a descriptor"))
    }
}

fn main() -> ExitCode {
    let mut rows = Vec::new();
    untouched(&mut rows);
    touched(&mut rows);
    let counts = [stuck(&mut rows), used(&mut rows)];
    let holds = print(&rows) & counts.iter().all(Counts::holds);
    println!();
    println!("| counts, exact | memory blocks | runs given back | requests | grace periods |");
    println!("|---|---|---|---|---|");
    counts.iter().for_each(Counts::print);
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Blocks a side plugs and unplugs at once.
const BLOCKS: u64 = 8;

fn untouched(rows: &mut Vec<Row>) {
    let (engine, other) = (engine(2048 * GIB), engine(2048 * GIB));
    let mut rig = Rig::new(&engine, GIB * 1024, FakeOffline::Folded);
    let linux = |one: Duration| move || one * BLOCKS as u32;
    for base in [0, 512 * GIB] {
        let state = if base == 0 { "an empty 1 TiB device" } else { "a 1 TiB device, half of it plugged" };
        rig.resize(base);
        rows.push(pair(
            &format!("plug 128 MiB, {state}"),
            &mut || {
                let took = rig.resize(base + BLOCKS * BLOCK);
                rig.resize(base);
                took
            },
            "Linux 6.1, published",
            &mut linux(LINUX_PLUG),
            BLOCKS,
            Bar::Faster(20.0),
        ));
        rows.push(pair(
            &format!("unplug 128 MiB, untouched, {state}"),
            &mut || {
                rig.resize(base + BLOCKS * BLOCK);
                rig.resize(base)
            },
            "Linux 6.1, published",
            &mut linux(LINUX_UNPLUG),
            BLOCKS,
            Bar::Faster(20.0),
        ));
    }
    let mut small = Rig::new(&other, 2 * GIB, FakeOffline::Folded);
    rows.push(pair(
        "plug + unplug 128 MiB, a 1 TiB device, half of it plugged",
        &mut || {
            let base = 512 * GIB;
            rig.resize(base + BLOCKS * BLOCK) + rig.resize(base)
        },
        "the same, an empty 2 GiB device",
        &mut || small.resize(BLOCKS * BLOCK) + small.resize(0),
        BLOCKS,
        Bar::AtMost(1.5),
    ));
    drop((rig, small));
}

/// Writes a byte into each page of the first `len` bytes of `file`.
fn touch(file: &File, len: u64) {
    // SAFETY: a fresh shared mapping of a file that is that long, unmapped right below.
    unsafe {
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let base = mmap(std::ptr::null_mut(), len as usize, flags.0, flags.1, file, 0).expect("a mapping");
        for page in (0..len as usize).step_by(4096) {
            base.cast::<u8>().add(page).write_volatile(1);
        }
        munmap(base, len as usize).expect("unmapped");
    }
}

fn touched(rows: &mut Vec<Row>) {
    const LEN: u64 = 2 * BLOCK;
    let engine = engine(16 * GIB);
    let mut rig = Rig::new(&engine, 2 * GIB, FakeOffline::Folded);
    let file = rig.file();
    let bare = File::from(memfd_create("bare", MemfdFlags::CLOEXEC).expect("a memfd"));
    ftruncate(bare.as_fd(), LEN).expect("a length");
    rows.push(pair(
        "unplug 128 MiB, all touched",
        &mut || {
            rig.resize(LEN);
            touch(&file, LEN);
            rig.resize(0)
        },
        "the hole punch alone",
        &mut || {
            touch(&bare, LEN);
            time(|| (0..LEN / BLOCK).for_each(|block| punch_hole(&bare, block * BLOCK, BLOCK)))
        },
        LEN / BLOCK,
        Bar::AtMost(1.2),
    ));
}

/// What one shrink came to.
struct Counts {
    what: &'static str,
    blocks: u64,
    runs: u64,
    requests: u64,
    graces: u64,
}

impl Counts {
    /// At most two requests for each run, and a grace period a memory block.
    fn holds(&self) -> bool {
        self.requests <= 2 * self.runs && self.graces <= self.blocks
    }

    fn print(&self) {
        let Self { what, blocks, runs, requests, graces } = self;
        let holds = if self.holds() { "✓" } else { "✗" };
        println!("| {what} {holds} | {blocks} | {runs} | {requests} | {graces} |");
    }
}

/// A shrink that one stuck page in the middle of each memory block keeps from going through.
fn stuck(rows: &mut Vec<Row>) -> Counts {
    const SIZE: u64 = 1024 * GIB;
    let ((engine, graces), other) = (counted(2048 * GIB), engine(2048 * GIB));
    let mut rig = Rig::new(&engine, SIZE, FakeOffline::Folded);
    let mut idle = Rig::new(&other, SIZE, FakeOffline::Folded);
    let mut counts = Counts {
        what: "1 TiB to a stuck chunk in each block",
        blocks: SIZE / BLOCK,
        runs: SIZE / BLOCK + 1,
        requests: 0,
        graces: 0,
    };
    rows.push(pair(
        "shrink 1 TiB to nothing, a stuck chunk in each block",
        &mut || {
            rig.resize(0);
            rig.resize(SIZE);
            let pin = |block| {
                let pfn = Pfn((ADDR + block * BLOCK + BLOCK / 2) >> 12);
                engine.alloc_at(pfn, Order::ZERO, Kind::Anon).expect("free memory").share()
            };
            let pins: Vec<_> = (0..SIZE / BLOCK).map(pin).collect();
            let before = (rig.unplugged(), graces.load(Ordering::Relaxed));
            let (took, step) = rig.follow(0);
            assert!(matches!(step, Next::Later(..)), "{step:?}");
            counts.requests = rig.unplugged() - before.0;
            counts.graces = graces.load(Ordering::Relaxed) - before.1;
            drop(pins);
            took
        },
        "the same with nothing in use",
        &mut || {
            idle.resize(SIZE);
            idle.resize(0)
        },
        SIZE / BLOCK,
        Bar::AtMost(10.0),
    ));
    counts
}

/// A shrink of memory of which 2 MiB a memory block were used, and are free again.
fn used(rows: &mut Vec<Row>) -> Counts {
    const SIZE: u64 = 64 * GIB;
    let ((engine, graces), other) = (counted(128 * GIB), engine(128 * GIB));
    let mut rig = Rig::new(&engine, SIZE, FakeOffline::Folded);
    let mut idle = Rig::new(&other, SIZE, FakeOffline::Folded);
    let mut counts = Counts {
        what: "64 GiB to 1 GiB, 2 MiB a block used before",
        blocks: 63 * GIB / BLOCK,
        runs: 1,
        requests: 0,
        graces: 0,
    };
    rows.push(pair(
        "shrink 64 GiB to 1 GiB, 2 MiB of each block used before",
        &mut || {
            rig.resize(SIZE);
            let take = |block| {
                let pfn = Pfn((ADDR + block * BLOCK) >> 12);
                engine.alloc_at(pfn, Order::AREA, Kind::Anon).expect("free memory")
            };
            drop((0..SIZE / BLOCK).map(take).collect::<Vec<_>>());
            let before = (rig.unplugged(), graces.load(Ordering::Relaxed));
            let took = rig.resize(GIB);
            counts.requests = rig.unplugged() - before.0;
            counts.graces = graces.load(Ordering::Relaxed) - before.1;
            rig.resize(0);
            took
        },
        "the same, untouched",
        &mut || {
            idle.resize(SIZE);
            let took = idle.resize(GIB);
            idle.resize(0);
            took
        },
        63 * GIB / BLOCK,
        Bar::AtMost(10.0),
    ));
    counts
}
