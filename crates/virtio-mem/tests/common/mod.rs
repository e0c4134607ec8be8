//! A machine with a real engine, a real device, and a driver between them over a real virtqueue.
#![allow(dead_code, reason = "each test uses a part of it")]

use pagefold_engine::hotplug::{
    FakeOffline, Hotplug, HotplugConfig, Migrate, Migration, OnlinePolicy, OnlineTo,
};
use pagefold_engine::{Config, Engine, Folio, Kind, Order, Pfn, Zone};
use pagefold_linux::{Linux, Membarrier};
use pagefold_virtio_loopback::{Loopback, LoopbackHal, LoopbackTransport};
use pagefold_virtio_mem::{Driver, DriverSettings, Next, Status, VirtioChannel};
use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// Pages of a MiB.
pub const PAGES: u64 = 256;
/// Where the device's region begins.
pub const ADDR: u64 = 4 * GIB;

pub type TestPlatform = Linux<Membarrier, [u64; 7]>;
pub type TestEngine = Engine<TestPlatform>;
pub type TestDevice = Loopback<Device<Memfd>>;
pub type TestChannel = VirtioChannel<LoopbackHal, LoopbackTransport<Device<Memfd>>>;

/// A machine whose physical address space ends at `end` bytes.
pub fn engine(end: u64) -> TestEngine {
    Engine::new(Linux::new(Membarrier::register().unwrap()).unwrap(), Config::new(end >> 12)).unwrap()
}

/// Its memory hotplug, with 512 MiB of boot memory.
pub fn hotplug(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    hotplug_of(engine, HotplugConfig { fake_offline, ..config() })
}

pub fn config() -> HotplugConfig {
    HotplugConfig { policy: OnlinePolicy::Zone(Zone::Movable), ..HotplugConfig::default() }
}

pub fn hotplug_of(engine: &TestEngine, config: HotplugConfig) -> Hotplug<'_, TestPlatform> {
    let mut hotplug = engine.hotplug(config).unwrap();
    hotplug.boot(0..512 * PAGES, 0).unwrap();
    hotplug
}

pub fn device_settings(size: u64) -> Settings {
    Settings { block_size: Some(2 * MIB), ..Settings::new(ADDR, size) }
}

pub fn device_of(settings: Settings) -> TestDevice {
    let backing = Memfd::new(settings.region_size, Pages::Normal).unwrap();
    Loopback::new(Device::new(settings, backing, ()).unwrap())
}

pub fn device(size: u64) -> TestDevice {
    device_of(device_settings(size))
}

pub fn channel(device: &TestDevice) -> TestChannel {
    VirtioChannel::new(device.connect().unwrap(), u64::MAX).unwrap()
}

pub fn probe<'e>(device: &TestDevice, hotplug: &mut Hotplug<'e, TestPlatform>) -> Driver<'e, TestChannel> {
    Driver::probe(channel(device), hotplug, settings()).unwrap()
}

pub fn settings() -> DriverSettings {
    DriverSettings { online: Some(OnlineTo::Policy), ..DriverSettings::default() }
}

/// Asks the host for `bytes` and works until nothing more can be done at once.
pub fn resize<'e>(
    device: &TestDevice,
    driver: &mut Driver<'e, TestChannel>,
    hotplug: &mut Hotplug<'e, TestPlatform>,
    cache: &mut Cache<'e>,
    bytes: u64,
) -> (Next, Status) {
    device.set_requested_size(bytes).unwrap();
    let step = driver.work(hotplug, cache, |_| true);
    check(device, driver, hotplug);
    (step, driver.status())
}

/// What must hold whenever nothing moves.
pub fn check<'e>(device: &TestDevice, driver: &Driver<'e, TestChannel>, hotplug: &Hotplug<'e, TestPlatform>) {
    hotplug.engine().audit().unwrap();
    let status = driver.status();
    device.with(|device, _| {
        assert_eq!(device.config().plugged_size.get(), status.plugged, "the two ends disagree");
        let ranges: u64 = device.plugged_ranges().map(|range| range.len).sum();
        assert_eq!(ranges, status.plugged, "the bitmap and the size disagree");
        // Nothing that can be reached lies in what is not plugged.
        let geometry = driver.geometry();
        let plugged: Vec<_> = device.plugged_ranges().collect();
        for block in hotplug.blocks().filter(|block| block.state == pagefold_engine::BlockState::Online) {
            let pages = hotplug.pages(block.id);
            for area in pages.step_by(512) {
                let offset = (area << 12).checked_sub(geometry.addr);
                let is_plugged = offset.is_some_and(|offset| {
                    plugged
                        .iter()
                        .any(|range| range.offset <= offset && offset + 2 * MIB <= range.offset + range.len)
                });
                let is_out = hotplug.is_fake_offline(area..area + 1).unwrap();
                assert_eq!(is_plugged, !is_out, "area at page {area:#x}");
            }
        }
    });
}

/// Keeps folios, and moves them when asked, but for those that are pinned.
#[derive(Default)]
pub struct Cache<'e> {
    pub folios: Vec<Folio<'e, TestPlatform>>,
    pub pinned: Vec<Pfn>,
}

impl<'e> Cache<'e> {
    /// Takes `count` more folios of order `bits`.
    pub fn fill(&mut self, engine: &'e TestEngine, count: usize, bits: u32) {
        for _ in 0..count {
            let order = Order::new(bits).unwrap();
            self.folios.push(engine.alloc_movable(order, Kind::File).unwrap().share());
        }
    }
}

impl<'e> Migrate<'e, TestPlatform> for Cache<'e> {
    fn migrate(&mut self, folio: Folio<'e, TestPlatform>) -> Migration {
        let Some(slot) = self.folios.iter_mut().find(|mine| mine.pfn() == folio.pfn()) else {
            return Migration::Unmovable;
        };
        if self.pinned.contains(&folio.pfn()) {
            return Migration::Unmovable;
        }
        match folio.engine().alloc_movable(folio.order(), Kind::File) {
            Ok(copy) => {
                *slot = copy.share();
                Migration::Moved
            }
            Err(_) => Migration::NoMemory,
        }
    }
}
