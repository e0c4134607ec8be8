//! Devices and hosts that are odd, one oddity at a time: none ends the driver, none makes it spin, each has a reason.

mod common;
#[path = "common/model.rs"]
mod model;

use common::{ADDR, GIB, MIB, TestPlatform, config, engine, hotplug, hotplug_of};
use model::Model;
use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig, OnlineTo, Unmovable};
use pagefold_engine::{Kind, Order, Pfn};
use pagefold_virtio_mem::{ConfigError, Driver, DriverSettings, Next, ProbeError, Removed, Shortfall};
use pagefold_virtio_mem_spec::{RequestType, Response, ResponseType};

fn is(request: &pagefold_virtio_mem_spec::Request, kind: RequestType) -> bool {
    request.kind.get() == kind as u16
}

#[test]
fn an_interrupt_that_says_nothing_new_costs_no_unit_its_turn() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, 126 * MIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    for round in 0..40 {
        device.resize(126 * MIB);
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        device.resize(0);
        let mut requests = 0;
        device.answer(move |state, _| {
            requests += 1;
            state.interrupts += u32::from(requests == round);
            None
        });
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached, "{}", driver.status());
        device.be_honest();
    }
}

#[test]
fn a_device_that_interrupts_all_the_time_is_followed_all_the_same() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    device.with(|state| state.interrupts = u32::MAX);
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    device.resize(0);
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    assert_eq!(device.plugged(), 0);
}

#[test]
fn a_wish_that_changes_all_the_time_ends_in_a_pause() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    let mut reads = 0u64;
    device.with(|state| {
        state.interrupts = u32::MAX;
        // Never the same twice in a row, and always something to do.
        state.says = Some(Box::new(move |config| {
            reads += 1;
            config.requested_size = ((512 + reads % 2 * 256) * MIB).into();
        }));
    });
    let mut steps = 0;
    let step = driver.work(hotplug, &mut Unmovable, |_| {
        steps += 1;
        steps < 10_000
    });
    assert!(matches!(step, Next::Later(_, Shortfall::Unsteady)), "{step:?} after {steps} steps");
    device.be_honest();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    assert_eq!(device.plugged(), GIB);
}

#[test]
fn a_usable_region_that_shrinks_is_a_limit_and_is_read_after_everything_was_unplugged() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, 256 * MIB));
    device.with(|state| state.plugged[..5].fill(1));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    // As Firecracker does: nothing is usable any more, whatever is requested, and no interrupt tells.
    device.answer(|state, request| {
        state.usable = if is(request, RequestType::UnplugAll) { 0 } else { state.usable };
        None
    });
    let step = driver.work(hotplug, &mut Unmovable, |_| true);
    assert_eq!(step, Next::Asleep(Shortfall::NoSpace));
    assert_eq!((driver.status().usable, device.requests()), (0, 1), "nothing was asked that must fail");
    // Until the host says more.
    device.with(|state| state.usable = GIB);
    device.resize(256 * MIB);
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    // Below what is plugged: that stays as it is.
    device.with(|state| (state.usable, state.interrupts) = (128 * MIB, 1));
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    assert_eq!(driver.status().plugged, 256 * MIB);
    device.with(|state| state.usable = GIB);
    device.resize(0);
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
}

#[test]
fn a_node_that_no_machine_has_is_refused_by_its_number() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    device.with(|state| state.node = Some(300));
    let error = Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap_err();
    assert_eq!(error, ProbeError::Config(ConfigError::Node(300)));
    device.with(|state| state.node = Some(255));
    assert_eq!(Driver::probe(device, hotplug, DriverSettings::default()).unwrap().node(), 255);
}

#[test]
fn what_the_device_lost_or_kept_is_found_by_its_plugged_size() {
    for policy in [FakeOffline::Folded, FakeOffline::Classic { rcu: true }] {
        let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, 200 * MIB));
        let hotplug = &mut hotplug(&engine, policy);
        let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        // Lost behind the driver's back, in a full block and in a partial one; and plugged where nothing was asked for.
        device.with(|state| {
            (state.plugged[3], state.plugged[70], state.plugged[99], state.plugged[400]) = (0, 0, 0, 1);
            state.interrupts = 1;
        });
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached, "{}", driver.status());
        assert_eq!((driver.status().plugged, device.plugged()), (200 * MIB, 200 * MIB));
        engine.audit().unwrap();
        device.resize(0);
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        assert_eq!((device.plugged(), hotplug.blocks().count()), (0, 0));
    }
}

#[test]
fn a_plugged_size_that_is_never_right_is_reported_and_costs_one_survey_a_wait() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, GIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    device.with(|state| state.says = Some(Box::new(|config| config.plugged_size = (6 * MIB).into())));
    for _ in 0..3 {
        let mut steps = 0;
        let step = driver.work(hotplug, &mut Unmovable, |_| {
            steps += 1;
            steps < 200
        });
        let miscounted = Shortfall::Miscounted { device: 6 * MIB, driver: GIB };
        assert!(matches!(step, Next::Later(_, why) if why == miscounted), "{step:?} after {steps} steps");
        assert_eq!(device.plugged(), GIB, "what the host wants is done in any case");
    }
    device.be_honest();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
}

/// Classic: a walker holds a fake-offline page of the block that is to be filled, and the device is busy when what was
/// plugged for it is to go back.
#[test]
fn a_page_that_a_walker_holds_costs_no_sub_block_whatever_the_device_says() {
    for refusal in [None, Some(ResponseType::Busy), Some(ResponseType::Error)] {
        let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, 126 * MIB));
        let hotplug = &mut hotplug(&engine, FakeOffline::Classic { rcu: true });
        let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        let walker = engine.walker().unwrap();
        let held =
            walker.try_get(Pfn((ADDR + 127 * MIB) >> 12)).expect("a page of kind Offline has a reference");
        device.answer(move |_, request| {
            refusal.filter(|_| is(request, RequestType::Unplug)).map(|kind| Ok(Response::new(kind)))
        });
        device.resize(128 * MIB);
        for _ in 0..10 {
            let mut steps = 0;
            let step = driver.work(hotplug, &mut Unmovable, |_| {
                steps += 1;
                steps < 100
            });
            assert!(matches!(step, Next::Later(_, Shortfall::Held(_))), "{step:?}, {refusal:?}");
            engine.audit().unwrap();
        }
        drop(held);
        device.be_honest();
        for size in [128, 130, 128, 130, 0] {
            device.resize(size * MIB);
            let step = driver.work(hotplug, &mut Unmovable, |_| true);
            assert_eq!((step, device.plugged()), (Next::Reached, size * MIB), "{}", driver.status());
            engine.audit().unwrap();
        }
        assert_eq!(hotplug.blocks().count(), 0);
    }
}

#[test]
fn no_memory_to_bring_a_block_online_is_made_up_for() {
    for force_big in [false, true] {
        let (engine, device) = (engine(16 * GIB), Model::new(ADDR, GIB, 512 * MIB));
        let hotplug = &mut hotplug_of(&engine, HotplugConfig { ..config() });
        let settings = DriverSettings {
            force_big,
            big_block: force_big.then_some(256 * MIB),
            ..DriverSettings::default()
        };
        let driver = &mut Driver::probe(device.clone(), hotplug, settings).unwrap();
        let budget = engine.platform().budget();
        let mut fell_short = 0;
        for pages in 0..200 {
            budget.set_limit(budget.used() + pages);
            if driver.work(hotplug, &mut Unmovable, |_| true) == Next::Reached {
                break;
            }
            fell_short += 1;
        }
        budget.set_limit(u64::MAX);
        assert!(fell_short > 0, "there was always enough memory");
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        assert_eq!(device.plugged(), 512 * MIB);
        let online = hotplug.blocks().filter(|block| block.state == pagefold_engine::BlockState::Online);
        assert_eq!(online.count(), 4, "what is plugged is in use");
        engine.audit().unwrap();
    }
}

#[test]
fn another_machines_memory_is_left_alone() {
    let (ours, other) = (engine(8 * GIB), engine(8 * GIB));
    let device = Model::new(ADDR, GIB, GIB);
    let (mut mine, mut foreign) = (hotplug(&ours, FakeOffline::Folded), hotplug(&other, FakeOffline::Folded));
    let mut driver = Driver::probe(device.clone(), &mut mine, DriverSettings::default()).unwrap();
    let step = driver.step(&mut foreign, &mut Unmovable);
    assert_eq!((step, device.requests()), (Next::Asleep(Shortfall::OtherMachine), 0));
    assert_eq!(driver.work(&mut mine, &mut Unmovable, |_| true), Next::Reached);
}

/// A driver ends with its memory in use, and leaves it to the next one.
fn leave<'e>(driver: Driver<'e, Model>, hotplug: &mut Hotplug<'e, TestPlatform>) {
    let Removed::InUse(remains) = driver.remove_driver(hotplug) else { panic!("it is in use") };
    remains.hand_over(hotplug);
}

/// Half of a memory block is plugged, and two drivers end, the second one before its first step or with the block where the
/// device cannot be asked: what they leave does not go online with its hole.
#[test]
fn a_hole_that_the_next_driver_has_not_found_stays_out_of_use() {
    for usable in [GIB, 128 * MIB, 0] {
        for steps in [false, true] {
            let (engine, device) = (engine(8 * GIB), Model::new(ADDR, GIB, 320 * MIB));
            let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
            let mut driver = Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
            assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
            leave(driver, hotplug);
            device.with(|state| (state.usable, state.interrupts) = (usable, state.interrupts + 1));
            let mut driver = Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
            if steps {
                driver.work(hotplug, &mut Unmovable, |_| true);
            }
            let partial = hotplug.blocks().last().unwrap().id;
            let goes = hotplug.offline(partial, &mut Unmovable);
            // Where the block is known it may go offline, and come back without its hole.
            assert_eq!(goes.is_ok(), steps && usable == GIB, "{usable} {steps}");
            let comes = hotplug.online(partial, OnlineTo::Policy);
            assert_eq!(comes.is_ok(), goes.is_ok(), "{usable} {steps}");
            assert!(matches!(driver.remove_driver(hotplug), Removed::InUse(_)), "{usable} {steps}");
            assert!(hotplug.offline(partial, &mut Unmovable).is_err(), "{usable} {steps}");
            let hole = Pfn((ADDR + 350 * MIB) >> 12);
            assert!(engine.alloc_at(hole, Order::ZERO, Kind::Anon).is_err(), "{usable} {steps}");
            engine.audit().unwrap();
        }
    }
}

/// An earlier driver's memory lies where the next one has no unit, or cannot ask. It keeps it, and uses it again when it can.
#[test]
fn memory_in_use_is_not_unplugged_for_lying_outside_of_whole_units() {
    // How much is plugged, where a folio is held in it, how much is usable then, and the next driver's big blocks.
    for (plugged, held, usable, big) in [
        (128 * MIB, 4 * MIB, 8 * MIB, None),
        (384 * MIB, 300 * MIB, 384 * MIB, Some(256 * MIB)),
        (2 * MIB, 0, 8 * MIB, None),
        (2 * MIB, 0, 0, None),
    ] {
        let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 384 * MIB, plugged));
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let mut driver = Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        let pfn = Pfn((ADDR + held) >> 12);
        let folio = engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share();
        leave(driver, hotplug);
        device.with(|state| (state.usable, state.interrupts) = (usable, state.interrupts + 1));
        let settings =
            DriverSettings { force_big: big.is_some(), big_block: big, ..DriverSettings::default() };
        let mut driver = Driver::probe(device.clone(), hotplug, settings).unwrap();
        for _ in 0..3 {
            driver.work(hotplug, &mut Unmovable, |_| true);
        }
        assert_eq!(device.plugged(), plugged, "{usable}");
        drop(folio);
        if big.is_none() {
            // All is usable again: the driver finds out what is there, and goes on with it.
            device.with(|state| (state.usable, state.interrupts) = (384 * MIB, state.interrupts + 1));
            for size in [384 * MIB, 0] {
                device.resize(size);
                assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached, "{usable}");
                assert_eq!(device.plugged(), size);
            }
            assert!(matches!(driver.remove_driver(hotplug), Removed::Clean));
        } else {
            let last = hotplug.blocks().last().unwrap().id;
            assert!(hotplug.offline(last, &mut Unmovable).is_err());
            assert!(matches!(driver.remove_driver(hotplug), Removed::InUse(_)));
        }
        engine.audit().unwrap();
    }
}

/// As above, with nothing in the next driver's only unit: it may not have the device unplug everything.
#[test]
fn memory_in_use_is_not_unplugged_with_everything_else() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 384 * MIB, 384 * MIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let mut driver = Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    let pfn = Pfn((ADDR + 300 * MIB) >> 12);
    let folio = engine.alloc_at(pfn, Order::ZERO, Kind::Anon).unwrap().share();
    device.resize(0);
    driver.work(hotplug, &mut Unmovable, |_| true);
    assert_eq!(device.plugged(), 2 * MIB);
    leave(driver, hotplug);
    let settings =
        DriverSettings { force_big: true, big_block: Some(256 * MIB), ..DriverSettings::default() };
    let mut driver = Driver::probe(device.clone(), hotplug, settings).unwrap();
    for size in [0, 256 * MIB, 0] {
        device.resize(size);
        driver.work(hotplug, &mut Unmovable, |_| true);
        let page = folio.pfn().0 - (ADDR >> 12);
        assert!(device.with(|state| state.plugged[(page >> 9) as usize]) == 1, "{size}");
    }
    assert!(matches!(driver.remove_driver(hotplug), Removed::InUse(_)));
    engine.audit().unwrap();
}

#[test]
fn what_the_driver_uses_is_not_unplugged_when_less_is_usable() {
    let (engine, device) = (engine(8 * GIB), Model::new(ADDR, 384 * MIB, 128 * MIB));
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let driver = &mut Driver::probe(device.clone(), hotplug, DriverSettings::default()).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    // And the device has one more block than the driver knows of, so that it asks about everything.
    device.with(|state| (state.usable, state.plugged[100]) = (8 * MIB, 1));
    device.with(|state| state.interrupts += 1);
    for _ in 0..3 {
        driver.work(hotplug, &mut Unmovable, |_| true);
    }
    assert!(device.with(|state| state.plugged[..64].iter().all(|&block| block == 1)));
    engine.audit().unwrap();
}
