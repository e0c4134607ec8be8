//! A machine for tests.

#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig};
use pagefold_engine::protocol::{Fold, Protocol};
use pagefold_engine::{Class, Config, Descriptors, Engine, FrameAllocator, Layout, Order, Pfn, Platform};
use pagefold_linux::{Linux, Membarrier, Region};

/// What tests keep in descriptors.
pub type Owner = [u64; 7];
/// What a descriptor is: the same tests run over both kinds.
#[cfg(not(feature = "memdesc"))]
pub type TestDescriptors = pagefold_engine::Page64;
#[cfg(feature = "memdesc")]
pub type TestDescriptors = pagefold_engine::Memdesc;

pub type TestPlatform<R = Fold> = Linux<Membarrier, Owner, R, TestDescriptors>;
/// Pages described by one map page.
pub const DESCRIBED: u64 = TestDescriptors::PAGES_PER_MAP_PAGE;
pub type TestEngine<R = Fold> = Engine<TestPlatform<R>>;

/// A machine of such descriptors, whatever the tests' are.
pub type MachineOf<D> = Engine<Linux<Membarrier, [u64; 6], Fold, D>>;

/// Pages of 1 MiB.
pub const MIB: u64 = 256;
/// Pages of a memory block.
pub const BLOCK: u64 = 128 * MIB;

pub fn host() -> TestPlatform {
    host_under()
}

/// The same under any rules.
pub fn host_under<R: Protocol>() -> TestPlatform<R> {
    Linux::new(Membarrier::register().unwrap()).unwrap()
}

/// Tells threads to stop when it is dropped, also by a panic: a test that fails must not wait for them for ever.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A machine with `pages` pages of free memory from page 0 on.
pub fn machine<R: Protocol>(pages: u64, layout: Layout) -> TestEngine<R> {
    // SAFETY: the tests come with rules that keep the promises, if they look at more than what is reported.
    let mut engine = unsafe { Engine::with_rules(host_under(), Config { pages, layout }) }.unwrap();
    engine.online(0..pages).unwrap();
    engine
}

pub fn folded(pages: u64) -> TestEngine {
    machine(pages, Layout::Folded)
}

pub fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

/// A machine of such descriptors, whatever the tests' are, with `pages` pages of free memory from page 0 on.
pub fn machine_of<D: Descriptors>(pages: u64) -> MachineOf<D> {
    let host = Linux::new(Membarrier::register().unwrap()).unwrap();
    let mut engine = Engine::new(host, Config::new(pages)).unwrap();
    engine.online(0..pages).unwrap();
    engine
}

/// Pages of memory behind all tables, as the system has them.
pub fn measured<P: Platform<Mapping = Region>>(engine: &Engine<P>) -> u64 {
    engine.tables().map(|(_, table)| table.measured_pages().unwrap()).sum()
}

/// Memory hotplug that keeps in such a way what is fake-offline.
pub fn hotplug(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    engine.hotplug(HotplugConfig { fake_offline, ..HotplugConfig::default() }).unwrap()
}

/// The same, with the first block as boot memory.
pub fn booted(engine: &TestEngine, fake_offline: FakeOffline) -> Hotplug<'_, TestPlatform> {
    let mut hotplug = hotplug(engine, fake_offline);
    hotplug.boot(0..BLOCK, 0).unwrap();
    hotplug
}

/// Pages behind the memory map: the system's count, after checking that it is ours.
pub fn map_pages_measured<R: Protocol>(engine: &TestEngine<R>) -> u64 {
    let (_, map) = engine.tables().next().unwrap();
    let measured = map.measured_pages().unwrap();
    assert_eq!(measured, map.counted_pages(), "the system and the platform disagree");
    assert_eq!(measured, engine.materialised_map_pages(), "the system and the engine disagree");
    measured
}

pub fn classes<R: Protocol>(engine: &TestEngine<R>, first: Pfn, map_pages: u64) -> Vec<Class> {
    (0..map_pages).map(|i| engine.class(Pfn(first.0 + i * DESCRIBED)).0).collect()
}

/// A frame allocator on this system's mappings, without memory.
pub fn frame_allocator(pages: u64) -> FrameAllocator<Region> {
    let linux: TestPlatform = host();
    FrameAllocator::new(pages, |kind, bytes| linux.reserve(kind, bytes)).unwrap()
}
