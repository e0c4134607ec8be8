//! What one step may cost, counted in requests to the device and in questions to owners.

mod common;
#[path = "common/model.rs"]
mod model;

use std::collections::HashMap;

use common::{ADDR, GIB, MIB, PAGES, TestEngine, TestPlatform, engine, hotplug};
use model::Model;
use pagefold_engine::hotplug::{FakeOffline, Hotplug, Migrate, Migration, Unmovable};
use pagefold_engine::{Folio, Kind, Order, Pfn};
use pagefold_virtio_mem::{Driver, DriverSettings, Inherited, Next, Shortfall};
use pagefold_virtio_mem_spec::{PlugState, RequestType, Response};

/// Requests of one step at most: see `Driver::step`.
const REQUESTS: u64 = 800;
/// Questions to owners of one step at most.
const QUESTIONS: u64 = 4096;

/// Keeps folios by their page number, moves them, and counts.
#[derive(Default)]
struct Owner<'e> {
    folios: HashMap<Pfn, Folio<'e, TestPlatform>>,
    /// Nothing of it moves.
    is_pinned: bool,
    asked: u64,
    without_memory: u64,
}

impl<'e> Owner<'e> {
    fn keep(&mut self, folio: Folio<'e, TestPlatform>) {
        self.folios.insert(folio.pfn(), folio);
    }

    /// A page in each 2 MiB of `bytes` from the region's beginning on.
    fn fill_areas(&mut self, engine: &'e TestEngine, bytes: u64) {
        for area in 0..bytes / (2 * MIB) {
            let pfn = Pfn((ADDR >> 12) + area * 512 + 7);
            self.keep(engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share());
        }
    }

    fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.asked), std::mem::take(&mut self.without_memory))
    }
}

impl<'e> Migrate<'e, TestPlatform> for Owner<'e> {
    fn migrate(&mut self, folio: Folio<'e, TestPlatform>) -> Migration {
        self.asked += 1;
        if self.is_pinned || !self.folios.contains_key(&folio.pfn()) {
            return Migration::Unmovable;
        }
        match folio.engine().alloc_movable(folio.order(), Kind::File) {
            Ok(copy) => {
                self.folios.remove(&folio.pfn());
                self.keep(copy.share());
                Migration::Moved
            }
            Err(_) => {
                self.without_memory += 1;
                Migration::NoMemory
            }
        }
    }
}

#[test]
fn a_pinned_folio_is_asked_about_once_and_again_only_when_that_may_help() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    let owner = &mut Owner { is_pinned: true, ..Owner::default() };
    owner.fill_areas(&engine, GIB);
    let pins = owner.folios.len() as u64;
    device.resize(0);
    let step = driver.work(hotplug, owner, |_| true);
    let Next::Later(_, Shortfall::InUse { movable, .. }) = step else { panic!("{step:?}") };
    assert_eq!((movable.pinned, owner.take_counts()), (pins, (pins, 0)));
    // Time alone changes nothing, nor does an interrupt without a new wish.
    let requests = device.requests();
    for interrupts in [0, 0, 1, 100] {
        device.with(|state| state.interrupts = interrupts);
        let step = driver.work(hotplug, owner, |_| true);
        let Next::Later(_, Shortfall::InUse { movable, .. }) = step else { panic!("{step:?}") };
        assert_eq!((movable.pinned, owner.take_counts()), (pins, (0, 0)));
        assert_eq!(device.requests(), requests);
    }
    // A pin that ends gives a reference back: here, the folio is freed. Nobody has to be asked then.
    owner.folios.remove(&Pfn((ADDR >> 12) + 7 * 512 + 7));
    driver.work(hotplug, owner, |_| true);
    assert_eq!((device.plugged(), owner.take_counts()), (GIB - 2 * MIB, (0, 0)));
    // One that loses a reference, and stays: its owner is asked, and nobody else.
    let twice = owner.folios[&Pfn((ADDR >> 12) + 8 * 512 + 7)].get().unwrap();
    driver.ask_again();
    driver.work(hotplug, owner, |_| true);
    assert_eq!(owner.take_counts(), (pins - 1, 0), "whoever says so has all of them asked");
    drop(twice);
    driver.work(hotplug, owner, |_| true);
    assert_eq!(owner.take_counts(), (1, 0));
    // Freed, and another folio, of which nobody was asked, is at the same place by the next attempt.
    let place = Pfn((ADDR >> 12) + 9 * 512 + 7);
    let (order, kind) = (Order::ZERO, Kind::Anon);
    owner.folios.remove(&place);
    owner.keep(engine.alloc_at(place, order, kind).unwrap().share());
    driver.work(hotplug, owner, |_| true);
    assert_eq!(owner.take_counts(), (1, 0));
    // A new wish asks all of them.
    device.resize(2 * MIB);
    driver.work(hotplug, owner, |_| true);
    assert_eq!(owner.take_counts(), (pins - 1, 0));
    // And when they may move they do, into boot memory.
    owner.is_pinned = false;
    device.resize(0);
    assert_eq!(driver.work(hotplug, owner, |_| true), Next::Reached);
    engine.audit().unwrap();
}

/// How the driver ends, and its requests.
fn resize<'e>(
    device: &Model,
    driver: &mut Driver<'e, Model>,
    hotplug: &mut Hotplug<'e, TestPlatform>,
    owner: &mut Owner<'e>,
    bytes: u64,
) -> (Next, u64) {
    device.resize(bytes);
    let requests = device.requests();
    let next = driver.work(hotplug, owner, |_| true);
    (next, device.requests() - requests)
}

#[test]
fn what_is_given_back_takes_a_request_for_each_run_however_many_blocks_it_spans() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    let owner = &mut Owner::default();
    assert_eq!(
        resize(&device, driver, hotplug, owner, GIB),
        (Next::Reached, 8),
        "a memory block is added, then the next"
    );
    assert_eq!(resize(&device, driver, hotplug, owner, 0), (Next::Reached, 1), "all of them go at once");
    resize(&device, driver, hotplug, owner, 300 * MIB);
    assert_eq!(
        resize(&device, driver, hotplug, owner, 128 * MIB),
        (Next::Reached, 2),
        "a part, then a whole"
    );
    resize(&device, driver, hotplug, owner, GIB);
    // A page stays in the middle of each block.
    owner.is_pinned = true;
    for block in 0..8 {
        let pfn = Pfn((ADDR + block * 128 * MIB + 64 * MIB) >> 12);
        owner.keep(engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share());
    }
    let (next, requests) = resize(&device, driver, hotplug, owner, 0);
    assert!(matches!(next, Next::Later(_, Shortfall::InUse { .. })), "{next:?}");
    assert_eq!((device.plugged(), requests), (16 * MIB, 9));
    assert_eq!(hotplug.blocks().count(), 8);
    engine.audit().unwrap();
}

#[test]
fn big_blocks_go_back_with_a_request_for_each_run_too() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 4 * GIB, 4 * GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings =
        DriverSettings { force_big: true, big_block: Some(256 * MIB), ..DriverSettings::default() };
    let driver = &mut Driver::probe(device.clone(), hotplug, settings).unwrap();
    let owner = &mut Owner::default();
    assert_eq!(resize(&device, driver, hotplug, owner, 4 * GIB).0, Next::Reached);
    assert_eq!(resize(&device, driver, hotplug, owner, 0), (Next::Reached, 1), "all of them go at once");
    assert_eq!(resize(&device, driver, hotplug, owner, 4 * GIB).0, Next::Reached);
    // Of sixteen, the second will be pinned, and the tenth and eleventh are in use.
    let in_use = |unit: u64| {
        let pfn = Pfn((ADDR + unit * 256 * MIB + 64 * MIB) >> 12);
        engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share()
    };
    [9, 10].into_iter().for_each(|unit| owner.keep(in_use(unit)));
    assert_eq!(
        resize(&device, driver, hotplug, owner, GIB),
        (Next::Reached, 3),
        "around what is in use, and the rest"
    );
    assert_eq!((device.plugged(), owner.take_counts()), (GIB, (0, 0)), "nobody was asked");
    owner.keep(in_use(1));
    owner.is_pinned = true;
    let (next, requests) = resize(&device, driver, hotplug, owner, 256 * MIB);
    assert!(matches!(next, Next::Later(_, Shortfall::InUse { .. })), "{next:?}");
    assert_eq!((device.plugged(), requests, owner.take_counts()), (768 * MIB, 1, (3, 0)));
    // What is pinned is left out next time.
    driver.work(hotplug, owner, |_| true);
    assert_eq!(owner.take_counts(), (0, 0));
    owner.is_pinned = false;
    assert_eq!(resize(&device, driver, hotplug, owner, 0).0, Next::Reached);
    engine.audit().unwrap();
}

#[test]
fn what_is_free_goes_before_anybody_is_asked_wherever_it_is() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    // All of the upper half is in use, and could move.
    let owner = &mut Owner::default();
    for area in 256..512 {
        let pfn = Pfn((ADDR >> 12) + area * 512);
        owner.keep(engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share());
    }
    device.resize(512 * MIB);
    assert_eq!(driver.work(hotplug, owner, |_| true), Next::Reached);
    assert_eq!((device.plugged(), owner.take_counts()), (512 * MIB, (0, 0)));
    // No more is asked for than has to go.
    device.resize(500 * MIB);
    assert_eq!(driver.work(hotplug, owner, |_| true), Next::Reached);
    assert_eq!((device.plugged(), owner.take_counts()), (500 * MIB, (6, 0)));
    engine.audit().unwrap();
}

#[test]
fn without_memory_for_copies_a_step_ends_at_once_and_says_so() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    let owner = &mut Owner::default();
    // More than boot memory can hold.
    for _ in 0..768 * PAGES {
        owner.keep(engine.alloc_movable(Order::ZERO, Kind::File).unwrap().share());
    }
    device.resize(0);
    let step = loop {
        let requests = device.requests();
        let step = driver.step(hotplug, owner);
        let (asked, without_memory) = owner.take_counts();
        assert!(asked <= QUESTIONS, "{asked} questions in one step");
        assert!(without_memory <= 1, "{without_memory} owners found no memory in one step");
        assert!(device.requests() - requests <= REQUESTS);
        if step != Next::Again {
            break step;
        }
    };
    assert!(matches!(step, Next::Later(_, Shortfall::NoRoom)), "{step:?}");
    let stays = driver.status().plugged;
    assert!((256 * MIB..=384 * MIB).contains(&stays), "{stays:#x}: what has no room elsewhere, and no more");
    // Attempts that find no room cost no more than two questions.
    for _ in 0..8 {
        let step = driver.work(hotplug, owner, |_| true);
        assert!(matches!(step, Next::Later(_, Shortfall::NoRoom)), "{step:?}");
        assert!(owner.take_counts().0 <= 2);
    }
    // With room again all of it goes.
    let half: Vec<_> = owner.folios.keys().copied().filter(|pfn| pfn.0 % 2 == 0).collect();
    half.iter().for_each(|pfn| drop(owner.folios.remove(pfn)));
    let mut attempts = 0;
    while driver.work(hotplug, owner, |_| true) != Next::Reached {
        attempts += 1;
        assert!(attempts < 20, "{}", driver.status());
    }
    engine.audit().unwrap();
}

/// Says that everything moves, and moves nothing; or that it would move some time.
struct Promises(Migration, u64);

impl<'e> Migrate<'e, TestPlatform> for Promises {
    fn migrate(&mut self, _: Folio<'e, TestPlatform>) -> Migration {
        self.1 += 1;
        self.0
    }
}

#[test]
fn owners_who_promise_and_do_nothing_do_not_keep_the_driver_going() {
    for answer in [Migration::Moved, Migration::Busy] {
        let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 256 * MIB, 256 * MIB));
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        let full: Vec<_> = (0..250 * PAGES)
            .map(|_| engine.alloc_movable(Order::ZERO, Kind::File).unwrap().share())
            .collect();
        device.resize(0);
        let owners = &mut Promises(answer, 0);
        for _ in 0..3 {
            let mut steps = 0;
            loop {
                owners.1 = 0;
                let step = driver.step(hotplug, owners);
                assert!(owners.1 <= QUESTIONS, "{} questions in one step", owners.1);
                steps += 1;
                assert!(steps < 500, "{step:?}");
                if step != Next::Again {
                    break;
                }
            }
            assert!(steps > 2);
        }
        drop(full);
        assert_eq!(driver.work(hotplug, owners, |_| true), Next::Reached);
    }
}

#[test]
fn a_folio_too_large_for_what_is_free_does_not_keep_others_plugged() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 256 * MIB, 256 * MIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    // The last area of the upper block has a folio that needs 2 MiB in one piece; there is none anywhere.
    let owner = &mut Owner::default();
    let last = Pfn((ADDR + 254 * MIB) >> 12);
    owner.keep(engine.alloc_at(last, Order::AREA, Kind::File).unwrap().share());
    let crumbs: Vec<_> = (0..512 / 2 - 1)
        .map(|area| engine.alloc_at(Pfn(area * 512 + 3), Order::ZERO, Kind::Anon).unwrap().share())
        .collect();
    owner.fill_areas(&engine, 254 * MIB);
    let plugged = device.plugged();
    device.resize(0);
    let mut attempts = 0;
    while device.plugged() > 4 * MIB {
        let step = driver.work(hotplug, owner, |_| true);
        attempts += 1;
        assert!(attempts < 20, "{step:?}, {plugged:#x}: {}", driver.status());
    }
    drop(crumbs);
    while driver.work(hotplug, owner, |_| true) != Next::Reached {
        attempts += 1;
        assert!(attempts < 40, "{}", driver.status());
    }
}

/// Every other block is plugged, and nobody here knows.
fn half_plugged(device: &Model) -> u64 {
    device.with(|state| {
        state.plugged.iter_mut().step_by(2).for_each(|plugged| *plugged = 1);
        state.plugged_bytes()
    })
}

#[test]
fn what_is_plugged_already_is_found_in_bounded_steps() {
    // Blocks of 64 KiB: each sub-block is plugged in part, and every device block has to be unplugged by itself.
    let region = GIB;
    for (block, force_big) in [(2 * MIB, false), (64 << 10, false), (64 << 10, true)] {
        let (engine, device) = (engine(8 * GIB), Model::with_block(block, ADDR, region, 0));
        half_plugged(&device);
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let settings = DriverSettings { inherited: Inherited::Adopt, force_big, ..DriverSettings::default() };
        let driver = &mut Driver::probe(device.clone(), hotplug, settings).unwrap();
        let (mut steps, mut last) = (0, Next::Again);
        while last == Next::Again {
            let requests = device.requests();
            last = driver.step(hotplug, &mut Unmovable);
            steps += 1;
            assert!(device.requests() - requests <= REQUESTS, "{} requests", device.requests() - requests);
            assert!(steps < 2000);
        }
        assert_eq!((last, device.plugged(), driver.status().plugged), (Next::Reached, 0, 0));
    }
}

#[test]
fn an_empty_device_of_a_tebibyte_is_asked_a_few_questions() {
    let (engine, device) = (engine(1028 * GIB), Model::new(ADDR, 1024 * GIB, 0));
    device.with(|state| state.plugged[300_000] = 1);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings = DriverSettings { inherited: Inherited::Adopt, ..DriverSettings::default() };
    let driver = &mut Driver::probe(device.clone(), hotplug, settings).unwrap();
    let step = driver.work(hotplug, &mut Unmovable, |_| true);
    assert_eq!((step, device.plugged()), (Next::Reached, 0));
    assert!(device.requests() < 300, "{} requests", device.requests());
}

#[test]
fn a_device_that_calls_everything_mixed_is_not_asked_for_ever() {
    let (engine, device) = (engine(8 * GIB), Model::with_block(4 << 10, ADDR, GIB, 0));
    half_plugged(&device);
    device.answer(|_, request| {
        let is_question = request.kind.get() == RequestType::State as u16 && request.nb_blocks.get() > 1;
        is_question.then(|| Ok(Response::state(PlugState::Mixed)))
    });
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let settings = DriverSettings { inherited: Inherited::Adopt, ..DriverSettings::default() };
    let driver = &mut Driver::probe(device.clone(), hotplug, settings).unwrap();
    for _ in 0..3 {
        let mut steps = 0;
        loop {
            let requests = device.requests();
            let step = driver.step(hotplug, &mut Unmovable);
            assert!(device.requests() - requests <= REQUESTS);
            steps += 1;
            assert!(steps < 20_000, "{step:?}");
            if step != Next::Again {
                break;
            }
        }
    }
    device.be_honest();
    let mut attempts = 0;
    while driver.work(hotplug, &mut Unmovable, |_| true) != Next::Reached {
        attempts += 1;
        assert!(attempts < 100, "{}", driver.status());
    }
    assert_eq!(device.plugged(), 0);
}
