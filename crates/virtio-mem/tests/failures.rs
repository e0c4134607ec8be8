//! Driver, device and engine as one state machine, with failures at every allocation and every answer, against a model
//! that only knows what the host wants and what is pinned.

mod common;
#[path = "common/faults.rs"]
mod faults;

use std::cell::Cell;
use std::rc::Rc;

use common::*;
use faults::{Fault, Faulty, Plan, Scarce, with_allocations};
use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig, OnlineTo};
use pagefold_engine::{BlockState, Zone};
use pagefold_virtio_mem::{Driver, DriverSettings, Inherited, Mode, Next, Removed, Shortfall};
use proptest::prelude::*;

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

type FaultyDriver<'e> = Driver<'e, Faulty<TestChannel>>;

#[derive(Clone, Debug)]
enum Op {
    /// The host asks for so many MiB.
    Resize(u64),
    /// The driver steps, with faults to its requests (the last one first) and so many allocations.
    Step { faults: Vec<Option<Fault>>, allocations: Option<u32>, pages: Option<u64> },
    /// The machine's owners take so many folios of an order.
    Fill(usize, u32),
    /// They free every `n`th one.
    Free(usize),
    /// They pin the folio at this place.
    Pin(usize),
    /// Nothing is pinned any more.
    Unpin,
    /// Somebody takes an online block offline, or brings an offline one online.
    Toggle(usize),
    /// The driver goes, and a new one comes.
    Restart,
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        4 => Just(None),
        2 => (1u16..=5).prop_map(|kind| Some(Fault::Instead(kind))),
        2 => (3u16..=5).prop_map(|kind| Some(Fault::Afterwards(kind))),
        1 => Just(Some(Fault::Lost)),
        1 => Just(Some(Fault::Unanswered)),
        1 => Just(Some(Fault::Short)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let step = (
        prop::collection::vec(fault(), 0..4),
        prop_oneof![2 => Just(None), 1 => (0u32..6).prop_map(Some)],
        prop_oneof![3 => Just(None), 1 => (0u64..3).prop_map(Some)],
    );
    prop_oneof![
        3 => (0u64..=256).prop_map(|subs| Op::Resize(subs * 2)),
        8 => step.prop_map(|(faults, allocations, pages)| Op::Step { faults, allocations, pages }),
        2 => (1usize..40, prop_oneof![0u32..4, 7u32..11]).prop_map(|(count, order)| Op::Fill(count, order)),
        1 => (1usize..4).prop_map(Op::Free),
        1 => (0usize..1000).prop_map(Op::Pin),
        1 => Just(Op::Unpin),
        1 => (0usize..8).prop_map(Op::Toggle),
        1 => Just(Op::Restart),
    ]
}

struct World<'e> {
    device: &'e TestDevice,
    hotplug: Hotplug<'e, TestPlatform>,
    driver: Option<FaultyDriver<'e>>,
    settings: DriverSettings,
    plan: Plan,
    cache: Cache<'e>,
    requested: u64,
}

impl<'e> World<'e> {
    fn new(
        engine: &'e TestEngine,
        device: &'e TestDevice,
        policy: FakeOffline,
        settings: DriverSettings,
    ) -> Self {
        let config = HotplugConfig { fake_offline: policy, ..config() };
        let mut world = Self {
            device,
            hotplug: hotplug_of(engine, config),
            driver: None,
            settings,
            plan: Rc::new(Cell::new(Vec::new())),
            cache: Cache::default(),
            requested: 0,
        };
        world.probe();
        world
    }

    fn probe(&mut self) {
        let channel = Faulty { inner: channel(self.device), plan: Rc::clone(&self.plan) };
        self.driver = Some(Driver::probe(channel, &mut self.hotplug, self.settings).unwrap());
    }

    fn driver(&mut self) -> &mut FaultyDriver<'e> {
        self.driver.as_mut().expect("there is always a driver")
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Resize(mib) => {
                self.requested = mib * MIB;
                self.device.set_requested_size(self.requested).unwrap();
            }
            Op::Step { faults, allocations, pages } => {
                self.plan.set(faults);
                let budget = self.hotplug.engine().platform().budget();
                budget.set_limit(pages.map_or(u64::MAX, |pages| budget.used() + pages));
                let Self { driver, hotplug, cache, .. } = self;
                let driver = driver.as_mut().expect("there is always a driver");
                with_allocations(allocations, || driver.step(hotplug, cache));
                self.hotplug.engine().platform().budget().set_limit(u64::MAX);
                self.plan.set(Vec::new());
            }
            Op::Fill(count, bits) => {
                let order = pagefold_engine::Order::new(bits).unwrap();
                for _ in 0..count {
                    let engine = self.hotplug.engine();
                    let Ok(folio) = engine.alloc_movable(order, pagefold_engine::Kind::File) else { break };
                    self.cache.folios.push(folio.share());
                }
            }
            Op::Free(n) => {
                let mut at = 0;
                self.cache.folios.retain(|_| {
                    at += 1;
                    at % n != 0
                });
                self.forget_pins();
            }
            Op::Pin(at) => {
                if let Some(folio) = self.cache.folios.get(at) {
                    let pfn = folio.pfn();
                    self.cache.pinned.push(pfn);
                }
            }
            Op::Unpin => {
                self.cache.pinned.clear();
                self.driver().ask_again();
            }
            Op::Toggle(at) => {
                let blocks: Vec<_> = self.hotplug.blocks().collect();
                let Some(block) = blocks.get(at % blocks.len().max(1)) else { return };
                // It may be busy, or not to be changed just now.
                let _ = match block.state {
                    BlockState::Online => self.hotplug.offline(block.id, &mut self.cache),
                    _ => self.hotplug.online(block.id, OnlineTo::Zone(Zone::Normal)).map(|_| ()),
                };
            }
            Op::Restart => {
                let driver = self.driver.take().expect("there is always a driver");
                if let Removed::InUse(remains) = driver.remove_driver(&mut self.hotplug) {
                    remains.hand_over(&mut self.hotplug);
                }
                self.probe();
            }
        }
    }

    fn forget_pins(&mut self) {
        let Cache { folios, pinned } = &mut self.cache;
        pinned.retain(|pfn| folios.iter().any(|folio| folio.pfn() == *pfn));
    }

    /// What holds at any time: what can be reached is plugged, and everything adds up.
    fn check(&mut self) {
        self.hotplug.engine().audit().unwrap();
        let blocks: Vec<_> =
            self.hotplug.blocks().filter(|block| block.state == BlockState::Online).collect();
        self.device.with(|device, _| {
            let plugged: Vec<_> = device.plugged_ranges().collect();
            let size: u64 = plugged.iter().map(|range| range.len).sum();
            assert_eq!(size, device.config().plugged_size.get());
            for pages in blocks.iter().map(|block| self.hotplug.pages(block.id)) {
                for area in pages.step_by(512) {
                    let offset = (area << 12) - ADDR;
                    let holds = |range: &&pagefold_virtio_mem_device::RegionRange| {
                        range.offset <= offset && offset + 2 * MIB <= range.offset + range.len
                    };
                    let is_plugged = plugged.iter().any(|range| holds(&range));
                    assert!(
                        is_plugged || self.hotplug.is_fake_offline(area..area + 1).unwrap(),
                        "page {area:#x}"
                    );
                }
            }
        });
    }

    /// When nothing fails any more, the host gets what it wants, as far as nothing is pinned.
    fn converge(&mut self) {
        let mut last = Next::Again;
        // After a fault the driver waits; here time passes at once.
        for _ in 0..12 {
            let Self { driver, hotplug, cache, .. } = self;
            last = driver.as_mut().expect("a driver").work(hotplug, cache, |_| true);
            if last == Next::Reached {
                break;
            }
        }
        let unit = self.driver().geometry().sub_block();
        let status = self.driver().status();
        let on_device = self.device.with(|device, _| device.config().plugged_size.get());
        assert_eq!(status.plugged, on_device, "a plugged block was lost, or made up: {last:?}");
        match last {
            Next::Reached => assert!(status.plugged.abs_diff(self.requested) < unit, "{status}"),
            Next::Later(_, Shortfall::InUse { .. }) => {
                // Every unit that stays holds something that cannot move: it is pinned, or there is no room elsewhere.
                assert!(status.plugged > self.requested, "{status}");
                let has_room = self.hotplug.engine().free_pages() > 64 * PAGES;
                let pins = self.cache.pinned.len() as u64;
                assert!(
                    !has_room || status.plugged - self.requested <= pins * 2 * unit + 64 * MIB,
                    "{status}"
                );
            }
            Next::Asleep(Shortfall::OfflineLimit) => {}
            other => panic!("stuck for no reason: {other:?}, {status}"),
        }
        self.check();
    }
}

fn run(ops: Vec<Op>, policy: FakeOffline, settings: DriverSettings) {
    let (engine, device) = (engine(6 * GIB), device(GIB));
    let mut world = World::new(&engine, &device, policy, settings);
    let is_big = matches!(world.driver().geometry().mode, Mode::BigBlock { .. });
    for op in ops {
        // In big-block mode Linux has no partial states for others to disturb either.
        if is_big && matches!(op, Op::Toggle(_)) {
            continue;
        }
        world.apply(op);
        world.check();
    }
    world.converge();
    // Nothing in use, nothing wanted: nothing is left.
    world.cache.folios.clear();
    world.cache.pinned.clear();
    world.apply(Op::Resize(0));
    world.converge();
    assert_eq!(world.driver().status().plugged, 0);
    assert_eq!(world.hotplug.blocks().count(), 0);
    assert_eq!(world.hotplug.engine().free_pages(), 512 * PAGES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn sub_blocks_folded(ops in prop::collection::vec(op(), 1..60)) {
        run(ops, FakeOffline::Folded, DriverSettings { inherited: Inherited::Adopt, ..settings() });
    }

    #[test]
    fn sub_blocks_classic(ops in prop::collection::vec(op(), 1..40)) {
        run(ops, FakeOffline::Classic { rcu: true }, DriverSettings { inherited: Inherited::UnplugAll, ..settings() });
    }

    #[test]
    fn big_blocks(ops in prop::collection::vec(op(), 1..60)) {
        let settings = DriverSettings { force_big: true, big_block: Some(256 * MIB), inherited: Inherited::Adopt, ..settings() };
        run(ops, FakeOffline::Folded, settings);
    }
}

#[test]
fn an_error_is_not_for_ever() {
    let (engine, device) = (engine(6 * GIB), device(GIB));
    let mut world = World::new(&engine, &device, FakeOffline::Folded, settings());
    world.apply(Op::Resize(64));
    for kind in [3, 2, 77, 0xffff] {
        let faults = vec![Some(Fault::Instead(kind))];
        world.apply(Op::Step { faults, allocations: None, pages: None });
        assert!(world.driver().status().shortfall.is_some(), "{kind}");
        world.apply(Op::Restart);
    }
    world.converge();
    assert_eq!(world.driver().status().plugged, 64 * MIB);
}

#[test]
fn nacks_are_not_asked_away() {
    let (engine, device) = (engine(6 * GIB), device(GIB));
    let mut world = World::new(&engine, &device, FakeOffline::Folded, settings());
    world.apply(Op::Resize(64));
    world.plan.set(vec![Some(Fault::Instead(1)); 100]);
    let World { driver, hotplug, cache, plan, .. } = &mut world;
    let step = driver.as_mut().unwrap().work(hotplug, cache, |_| true);
    assert!(matches!(step, Next::Later(_, Shortfall::DeviceRefused)), "{step:?}");
    assert!(plan.take().len() >= 95, "a few requests, then a pause");
}
