//! Plugging and unplugging memory blocks: engine, driver, virtqueue and device together, in pairs. See
//! `docs/benchmarks.md`.

mod pairs;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig, OnlinePolicy, Unmovable};
use pagefold_engine::{Config, Engine, Zone};
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

type BenchPlatform = Linux<Membarrier, [u64; 7]>;
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

fn engine(end: u64) -> Engine<BenchPlatform> {
    let host = Linux::new(Membarrier::register().expect("membarrier")).expect("a platform");
    Engine::new(host, Config::new(end >> 12)).expect("an engine")
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
        self.device.set_requested_size(size).expect("a size");
        let mut step = Next::Again;
        let took = time(|| step = self.driver.work(&mut self.hotplug, &mut Unmovable, |_| true));
        assert_eq!(step, Next::Reached);
        took
    }

    fn file(&self) -> File {
        self.device.with(|device, _| device.backing().file().try_clone().expect("a descriptor"))
    }
}

fn main() -> ExitCode {
    let mut rows = Vec::new();
    untouched(&mut rows);
    touched(&mut rows);
    if print(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
