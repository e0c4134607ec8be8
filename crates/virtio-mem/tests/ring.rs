//! A device that is odd below its answers: in the rings, in its status, in what it offers, in when it is reset.

mod common;

use std::sync::{Arc, Mutex};

use common::{Cache, GIB, MIB, check, device_of, device_settings, engine, hotplug, settings};
use pagefold_engine::hotplug::{FakeOffline, Unmovable};
use pagefold_virtio_loopback::{Loopback, LoopbackDevice, LoopbackHal, LoopbackTransport, Signals};
use pagefold_virtio_mem::{Channel, ChannelError, Driver, Next, Shortfall, VirtioChannel};
use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};
use proptest::prelude::*;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Looks at the ring before a request is unanswered. The loopback answers before the doorbell returns.
const PATIENCE: u64 = 100;

/// What the device does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// What it should.
    Right,
    /// It takes the request, and never returns it.
    Silence,
    /// It does what was asked, and returns another chain than it was given.
    WrongId(u32),
    /// It does what was asked, and says that it wrote so many bytes.
    Length(u32),
    /// It does what was asked, and moves the used index by so many.
    Jump(u16),
    /// It fails instead.
    Fail,
}

/// The real device behind rings that it does not keep in order.
struct Odd {
    device: Device<Memfd>,
    /// Deeds to come, the last one first; `Right` when they run out.
    deeds: Vec<Deed>,
    queue_size: [u16; 1],
    offered: u64,
    accepts: bool,
    /// Reads of the config generation that find another one each.
    unsteady: u32,
    generation: Mutex<u32>,
    resets: u32,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Odd>>, &'static [u16]);

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;

impl Shared {
    fn new(change: impl FnOnce(&mut Odd)) -> Self {
        let settings = Settings { persistent_suspend: true, ..device_settings(GIB) };
        let device = Device::new(settings, Memfd::new(GIB, Pages::Normal).unwrap(), ()).unwrap();
        let offered = device.features();
        let mut odd = Odd {
            device,
            deeds: Vec::new(),
            queue_size: [128],
            offered,
            accepts: true,
            unsteady: 0,
            generation: Mutex::new(0),
            resets: 0,
        };
        change(&mut odd);
        let sizes: &'static [u16] = Box::leak(Box::new(odd.queue_size));
        Self(Arc::new(Mutex::new(odd)), sizes)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Odd) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn ask_for(&self, bytes: u64) {
        self.with(|odd| odd.device.set_requested_size(bytes).map(|_| ())).unwrap();
    }

    fn plugged(&self) -> u64 {
        self.with(|odd| odd.device.config().plugged_size.get())
    }

    fn connect(&self) -> (Loopback<Shared>, Result<TheChannel, ChannelError>) {
        let loopback = Loopback::new(self.clone());
        let channel = VirtioChannel::new(loopback.connect().unwrap(), PATIENCE);
        (loopback, channel)
    }
}

type TheChannel = VirtioChannel<LoopbackHal, LoopbackTransport<Shared>>;

impl LoopbackDevice for Shared {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }
    fn offered_features(&self) -> u64 {
        self.with(|odd| odd.offered)
    }
    fn accept_features(&mut self, features: u64) -> bool {
        // The bits of transport and queue are the loopback's own business here.
        self.with(|odd| odd.accepts && odd.device.check_features(features | VERSION_1).is_ok())
    }
    fn queue_sizes(&self) -> &[u16] {
        self.1
    }
    fn driver_ready(&mut self, features: u64) -> bool {
        self.with(|odd| odd.device.activate(features | VERSION_1).is_ok())
    }
    fn reset(&mut self) {
        self.with(|odd| {
            odd.resets += 1;
            odd.device.device_reset();
        });
    }
    fn config_generation(&self) -> u32 {
        self.with(|odd| {
            let changes = odd.unsteady > 0;
            odd.unsteady = odd.unsteady.saturating_sub(1);
            let mut generation = odd.generation.lock().unwrap();
            *generation += u32::from(changes);
            *generation
        })
    }
    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> bool {
        self.with(|odd| LoopbackDevice::read_config(&odd.device, offset, bytes))
    }
    fn serve(&mut self, _: u16, queue: &mut Queue, memory: &GuestMemoryMmap) -> Signals {
        self.with(|odd| odd.serve(queue, memory))
    }
}

impl Odd {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Signals {
        let used = |offset: u64, queue: &Queue| GuestAddress(queue.used_ring() + offset);
        if !queue.ready() {
            return Signals::default();
        }
        let before = queue.next_used();
        let available: u16 =
            memory.load(GuestAddress(queue.avail_ring() + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        if queue.next_avail() == available {
            return Signals::default();
        }
        match self.deeds.pop().unwrap_or(Deed::Right) {
            Deed::Right => {
                let served = self.device.serve(queue, memory);
                Signals { needs_reset: served.needs_reset, ..Signals::default() }
            }
            Deed::Silence => {
                queue.set_next_avail(available);
                Signals::default()
            }
            Deed::Fail => Signals { needs_reset: true, ..Signals::default() },
            deed => {
                // The driver polls.
                let _ = self.device.serve(queue, memory);
                let slot = 4 + 8 * u64::from(before % queue.size());
                match deed {
                    Deed::WrongId(id) => memory.write_obj(id, used(slot, queue)).unwrap(),
                    Deed::Length(len) => memory.write_obj(len, used(slot + 4, queue)).unwrap(),
                    Deed::Jump(by) => {
                        memory.write_obj(before.wrapping_add(by), used(2, queue)).unwrap();
                        queue.set_next_used(before.wrapping_add(by));
                    }
                    Deed::Right | Deed::Silence | Deed::Fail => {}
                }
                Signals::default()
            }
        }
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => Just(Deed::Right),
        2 => Just(Deed::Silence),
        2 => prop_oneof![1u32..4, Just(0xffff_0000), any::<u32>()].prop_map(Deed::WrongId),
        2 => prop_oneof![0u32..12, Just(u32::MAX)].prop_map(Deed::Length),
        2 => prop_oneof![Just(0u16), 2u16..5, any::<u16>()].prop_map(Deed::Jump),
        1 => Just(Deed::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_rings_are_like_the_driver_gets_there(
        deeds in prop::collection::vec(deed(), 0..40),
        sizes in prop::collection::vec(0u64..=256, 1..5),
    ) {
        let device = Shared::new(|odd| odd.deeds = deeds);
        let engine = engine(8 * GIB);
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let (_loopback, channel) = device.connect();
        let driver = &mut Driver::probe(channel.unwrap(), hotplug, settings()).unwrap();
        for size in sizes {
            device.ask_for(size * 2 * MIB);
            let mut rests = 0;
            loop {
                let mut steps = 0;
                let step = driver.work(hotplug, &mut Unmovable, |_| { steps += 1; steps < 200 });
                prop_assert!(steps < 200, "{step:?}");
                engine.audit().unwrap();
                if step == Next::Reached {
                    break;
                }
                rests += 1;
                // Every deed may cost a silence of several attempts.
                prop_assert!(rests < 500, "{step:?}: {}", driver.status());
            }
            prop_assert_eq!((driver.status().plugged, device.plugged()), (size * 2 * MIB, size * 2 * MIB));
        }
    }
}

/// What an odd deed is called, and that it is over with the next attempt.
#[test]
fn an_odd_deed_has_a_name_and_costs_one_attempt() {
    let deeds = [
        (Deed::WrongId(1), Some(ChannelError::Damaged)),
        (Deed::WrongId(0xffff_0000), Some(ChannelError::Damaged)),
        (Deed::WrongId(77), Some(ChannelError::Damaged)),
        (Deed::Jump(2), Some(ChannelError::Damaged)),
        (Deed::Jump(0x8000), Some(ChannelError::Damaged)),
        (Deed::Fail, Some(ChannelError::NeedsReset)),
        (Deed::Length(9), Some(ChannelError::Short(9))),
        // What is beyond the answer is not looked at.
        (Deed::Length(u32::MAX), None),
    ];
    for (deed, error) in deeds {
        let device = Shared::new(|odd| odd.deeds = vec![deed]);
        let engine = engine(8 * GIB);
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let (_loopback, channel) = device.connect();
        let driver = &mut Driver::probe(channel.unwrap(), hotplug, settings()).unwrap();
        device.ask_for(256 * MIB);
        let step = driver.work(hotplug, &mut Unmovable, |_| true);
        match error {
            Some(error) => {
                assert!(
                    matches!(step, Next::Later(_, Shortfall::Channel(why)) if why == error),
                    "{deed:?}: {step:?}"
                );
                assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached, "{deed:?}");
            }
            None => assert_eq!(step, Next::Reached, "{deed:?}"),
        }
        assert_eq!(device.plugged(), 256 * MIB);
    }
}

#[test]
fn a_request_that_is_lost_is_waited_for_and_then_given_up_with_a_reset() {
    let device = Shared::new(|odd| odd.deeds = vec![Deed::Silence]);
    let engine = engine(8 * GIB);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let (_loopback, channel) = device.connect();
    let driver = &mut Driver::probe(channel.unwrap(), hotplug, settings()).unwrap();
    device.ask_for(256 * MIB);
    let mut silences = 0;
    loop {
        match driver.work(hotplug, &mut Unmovable, |_| true) {
            Next::Reached => break,
            Next::Later(_, Shortfall::Channel(ChannelError::NoAnswer)) => silences += 1,
            other => panic!("{other:?}"),
        }
        assert!(silences < 20);
    }
    assert!(silences >= 4, "a device may be slow: {silences}");
    assert_eq!((driver.channel().restarts(), device.plugged()), (1, 256 * MIB));
}

#[test]
fn a_reset_at_any_moment_costs_nothing_that_is_plugged() {
    let device = Shared::new(|_| ());
    let engine = engine(8 * GIB);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let (loopback, channel) = device.connect();
    let driver = &mut Driver::probe(channel.unwrap(), hotplug, settings()).unwrap();
    for (size, at) in [(512, 0), (128, 1), (1024, 3), (0, 7), (0, 2)] {
        device.ask_for(size * MIB);
        let mut steps = 0;
        let mut rests = 0;
        while driver.work(hotplug, &mut Unmovable, |_| {
            steps += 1;
            if steps == at {
                // The platform's doing.
                loopback.reset();
            }
            true
        }) != Next::Reached
        {
            rests += 1;
            assert!(rests < 10, "{}", driver.status());
        }
        assert_eq!((driver.status().plugged, device.plugged()), (size * MIB, size * MIB));
    }
}

#[test]
fn what_a_device_must_offer_is_asked_for_by_name() {
    let refused = |change: fn(&mut Odd)| Shared::new(change).connect().1.map(|_| ()).unwrap_err();
    assert_eq!(refused(|odd| odd.offered &= !VERSION_1), ChannelError::NotModern);
    assert_eq!(refused(|odd| odd.accepts = false), ChannelError::FeaturesRefused);
    assert_eq!(refused(|odd| odd.queue_size = [0]), ChannelError::QueueSize(0));
    assert_eq!(
        refused(|odd| (odd.queue_size, odd.offered) = ([1], odd.offered & !INDIRECT_DESC)),
        ChannelError::QueueSize(1)
    );
}

#[test]
fn queues_of_any_size_do() {
    for size in [1, 2, 4, 128] {
        let device = Shared::new(|odd| odd.queue_size = [size]);
        let engine = engine(8 * GIB);
        let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
        let (_loopback, channel) = device.connect();
        let driver = &mut Driver::probe(channel.unwrap(), hotplug, settings()).unwrap();
        for size in [1024, 0, 130] {
            device.ask_for(size * MIB);
            assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
            assert_eq!(device.plugged(), size * MIB);
        }
    }
}

#[test]
fn a_config_space_that_never_rests_is_given_up_and_tried_again() {
    let device = Shared::new(|_| ());
    let (_loopback, channel) = device.connect();
    let mut channel = channel.unwrap();
    device.with(|odd| odd.unsteady = 5);
    assert!(channel.config().is_ok(), "a change meanwhile is nothing odd");
    device.with(|odd| odd.unsteady = u32::MAX);
    assert_eq!(channel.config(), Err(ChannelError::ConfigUnsteady));
    let engine = engine(8 * GIB);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    device.with(|odd| odd.unsteady = 0);
    let driver = &mut Driver::probe(channel, hotplug, settings()).unwrap();
    device.with(|odd| odd.unsteady = u32::MAX);
    let step = driver.work(hotplug, &mut Unmovable, |_| true);
    assert!(matches!(step, Next::Later(_, Shortfall::Channel(ChannelError::ConfigUnsteady))), "{step:?}");
    device.with(|odd| odd.unsteady = 0);
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
}

/// A transport that is registers and nothing more, of which there may be two, as PCI's and MMIO's are: dropping it resets the
/// device.
struct Registers<T: Transport>(Arc<Mutex<T>>);

impl<T: Transport> Registers<T> {
    fn all(&self) -> std::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

impl<T: Transport> Drop for Registers<T> {
    fn drop(&mut self) {
        self.all().set_status(DeviceStatus::empty());
    }
}

impl<T: Transport> Transport for Registers<T> {
    fn device_type(&self) -> DeviceType {
        self.all().device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        self.all().read_device_features()
    }
    fn write_driver_features(&mut self, features: u64) {
        self.all().write_driver_features(features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.all().max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.all().notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.all().get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.all().set_status(status);
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver: u64, device: u64) {
        self.all().queue_set(queue, size, descriptors, driver, device);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.all().queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.all().queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> virtio_drivers::transport::InterruptStatus {
        self.all().ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.all().read_config_generation()
    }
    fn read_config_space<V: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<V> {
        self.all().read_config_space(offset)
    }
    fn write_config_space<V: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.all().write_config_space(offset, value)
    }
}

#[test]
fn a_driver_goes_on_after_a_sleep_over_a_new_channel_or_the_old_one() {
    let host = device_of(Settings { persistent_suspend: true, ..device_settings(GIB) });
    let engine = engine(8 * GIB);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let registers = Arc::new(Mutex::new(host.connect().unwrap()));
    let new_channel =
        || VirtioChannel::<LoopbackHal, _>::new(Registers(Arc::clone(&registers)), PATIENCE).unwrap();
    let driver = &mut Driver::probe(new_channel(), hotplug, settings()).unwrap();
    host.set_requested_size(256 * MIB).unwrap();
    assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
    for (round, size) in [300, 100, 512, 0].into_iter().enumerate() {
        // The platform resets the device as it wakes.
        registers.lock().unwrap().set_status(DeviceStatus::empty());
        assert!(host.set_requested_size(size * MIB).is_err(), "nobody is there to follow");
        if round % 2 == 0 {
            driver.resume(new_channel()).unwrap()
        } else {
            driver.restart().unwrap()
        }
        assert!(registers.lock().unwrap().get_status().contains(DeviceStatus::DRIVER_OK));
        host.set_requested_size(size * MIB).unwrap();
        assert_eq!(driver.work(hotplug, &mut Unmovable, |_| true), Next::Reached);
        let plugged = host.with(|device, _| device.config().plugged_size.get());
        assert_eq!((driver.status().plugged, plugged), (size * MIB, size * MIB));
    }
}

/// Whoever sleeps although plugged memory does not survive it: what was in use has no memory behind it any more.
#[test]
fn what_a_sleep_has_cost_is_found_out_and_made_up_for() {
    let host = device_of(device_settings(GIB));
    let engine = engine(8 * GIB);
    let hotplug = &mut hotplug(&engine, FakeOffline::Folded);
    let cache = &mut Cache::default();
    let driver = &mut Driver::probe(common::channel(&host), hotplug, settings()).unwrap();
    common::resize(&host, driver, hotplug, cache, 300 * MIB);
    cache.fill(&engine, 2000, 0);
    host.system_reset(pagefold_virtio_mem_device::SystemReset::Reboot).unwrap();
    driver.restart().unwrap();
    host.set_requested_size(300 * MIB).unwrap();
    assert_eq!(driver.work(hotplug, cache, |_| true), Next::Reached, "{}", driver.status());
    check(&host, driver, hotplug);
    assert_eq!(driver.status().plugged, 300 * MIB);
}
