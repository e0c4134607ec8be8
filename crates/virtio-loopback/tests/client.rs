//! A driver and the virtio-mem device, over rings in shared memory.

mod common;

use std::time::Duration;

use common::{ADDR, Accepted, BLOCK, Client, MIB, REGION, device, settings};
use pagefold_virtio_mem_device::{ResizeError, SystemReset};
use pagefold_virtio_mem_spec::RequestType::{Plug, State, Unplug, UnplugAll};
use pagefold_virtio_mem_spec::{PlugState, Response, ResponseType};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};

fn ack() -> Response {
    Response::new(ResponseType::Ack)
}

#[test]
fn plugs_unplugs_and_tells_the_state() {
    for accepted in [Accepted::all(), Accepted::all() - (Accepted::INDIRECT | Accepted::EVENT_IDX)] {
        let host = device(settings(ADDR));
        let mut client = Client::new(&host, accepted);
        assert_eq!(client.transport.device_type(), DeviceType::Memory);
        assert_eq!((client.config().addr.get(), client.config().region_size.get()), (ADDR, REGION));
        assert_eq!(client.ask(Plug, ADDR, 1).kind.get(), ResponseType::Error as u16);

        host.set_requested_size(64 * MIB).unwrap();
        assert_eq!(client.transport.ack_interrupt().bits(), InterruptStatus::all().bits());
        assert_eq!(client.transport.ack_interrupt().bits(), 0);
        assert_eq!(client.config().requested_size.get(), 64 * MIB);
        assert_eq!(client.ask(Plug, ADDR, 32), ack());
        assert_eq!(client.config().plugged_size.get(), 64 * MIB);
        assert_eq!(client.ask(Plug, ADDR + 64 * MIB, 1), Response::new(ResponseType::Nack));
        assert_eq!(client.ask(State, ADDR, 32), Response::state(PlugState::Plugged));
        assert_eq!(client.ask(Unplug, ADDR + BLOCK, 3), ack());
        assert_eq!(client.ask(State, ADDR, 32), Response::state(PlugState::Mixed));
        assert_eq!(client.ask(State, ADDR + BLOCK, 3), Response::state(PlugState::Unplugged));
        assert_eq!(client.ask(UnplugAll, 0, 0), ack());
        assert_eq!(client.config().plugged_size.get(), 0);
        // Many times around the ring.
        for _ in 0..100 {
            assert_eq!(client.ask(Plug, ADDR, 1), ack());
            assert_eq!(client.ask(Unplug, ADDR, 1), ack());
        }
        // Ring indices wrap; every doorbell is heard.
        for _ in 0..70_000 {
            assert_eq!(client.ask(State, ADDR, 1), Response::state(PlugState::Unplugged));
        }
    }
}

#[test]
fn a_worker_serves_as_well() {
    let host = device(settings(ADDR));
    let worker = host.start_worker().unwrap();
    assert!(host.start_worker().is_err());
    let mut client = Client::new(&host, Accepted::all());
    let line = client.transport.interrupt_line();
    host.set_requested_size(128 * MIB).unwrap();
    assert!(line.wait(Duration::from_secs(600)).contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
    for block in 0..64 {
        assert_eq!(client.ask(Plug, ADDR + block * BLOCK, 1), ack());
    }
    drop(worker);
    // And without it again.
    assert_eq!(client.ask(State, ADDR, 64), Response::state(PlugState::Plugged));
    let _worker = host.start_worker().unwrap();
    assert_eq!(client.ask(UnplugAll, 0, 0), ack());
}

#[test]
fn several_devices_at_once() {
    let hosts: Vec<_> = (0..4u16)
        .map(|node| {
            let addr = ADDR + u64::from(node) * REGION;
            device(pagefold_virtio_mem_device::Settings { node: Some(node), ..settings(addr) })
        })
        .collect();
    std::thread::scope(|scope| {
        for (node, host) in hosts.iter().enumerate() {
            scope.spawn(move || {
                let mut client = Client::new(host, Accepted::all());
                host.set_requested_size((node as u64 + 1) * BLOCK).unwrap();
                let config = client.config();
                assert_eq!(config.node_id.get(), node as u16);
                for round in 0..2_000 {
                    let kind = if round % 2 == 0 { Plug } else { Unplug };
                    assert_eq!(client.ask(kind, config.addr.get(), node as u16 + 1), ack());
                }
                assert_eq!(client.ask(Plug, config.addr.get(), node as u16 + 1), ack());
            });
        }
    });
    for (node, host) in hosts.iter().enumerate() {
        assert_eq!(host.with(|device, _| device.config().plugged_size.get()), (node as u64 + 1) * BLOCK);
    }
}

#[test]
fn a_driver_goes_and_the_next_one_finds_what_it_left() {
    let host = device(settings(ADDR));
    let mut client = Client::new(&host, Accepted::all());
    host.set_requested_size(64 * MIB).unwrap();
    assert_eq!(client.ask(Plug, ADDR, 5), ack());
    assert!(host.connect().is_err());
    drop(client);
    // Nobody is there to follow.
    assert!(matches!(host.set_requested_size(32 * MIB), Err(ResizeError::NoDriver)));

    let mut client = Client::new(&host, Accepted::all());
    assert_eq!(client.config().plugged_size.get(), 5 * BLOCK);
    assert_eq!(client.ask(State, ADDR, 5), Response::state(PlugState::Plugged));

    // A reboot takes everything, and the queue too.
    host.system_reset(SystemReset::Reboot).unwrap();
    assert_eq!(client.transport.get_status(), DeviceStatus::empty());
    assert!(!client.transport.queue_used(0));
    assert_eq!(client.config().plugged_size.get(), 0);
}

#[test]
fn a_driver_that_becomes_ready_twice_must_reset_the_device() {
    let host = device(settings(ADDR));
    let mut client = Client::new(&host, Accepted::all());
    let ready = client.transport.get_status();
    client.transport.set_status(ready - DeviceStatus::DRIVER_OK);
    client.transport.set_status(ready);
    assert!(client.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    drop(client);
    let mut client = Client::new(&host, Accepted::all());
    host.set_requested_size(64 * MIB).unwrap();
    assert_eq!(client.ask(Plug, ADDR, 1), ack());
}

#[test]
fn a_driver_that_declines_what_it_must_accept_is_refused() {
    let host = device(settings(ADDR));
    let mut transport = host.connect().unwrap();
    transport.begin_init(Accepted::VERSION_1);
    assert!(!transport.get_status().contains(DeviceStatus::FEATURES_OK));
    transport.finish_init();
    assert!(matches!(host.set_requested_size(64 * MIB), Err(ResizeError::NoDriver)));
}

#[test]
fn a_queue_that_is_not_memory_is_refused_and_a_reset_heals() {
    let host = device(settings(ADDR));
    let mut transport = host.connect().unwrap();
    transport.begin_init(Accepted::all());
    for (size, addr) in [(8, 0x1000), (8, !0xfff), (3, 1 << 51), (1 << 20, 1 << 51), (8, 7)] {
        transport.queue_set(0, size, addr, addr, addr);
        transport.finish_init();
        transport.notify(0);
        transport.notify(7);
        assert!(transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET), "{size} {addr:#x}");
        transport.set_status(DeviceStatus::empty());
        assert_eq!(transport.get_status(), DeviceStatus::empty());
        transport.begin_init(Accepted::all());
    }
    drop(transport);
    let mut client = Client::new(&host, Accepted::all());
    host.set_requested_size(64 * MIB).unwrap();
    assert_eq!(client.ask(Plug, ADDR, 1), ack());
}

#[test]
fn config_space_has_an_end_and_is_read_only() {
    let host = device(settings(ADDR));
    let mut client = Client::new(&host, Accepted::all());
    let before = client.config();
    assert!(client.transport.read_config_space::<u64>(48).is_ok());
    assert!(client.transport.read_config_space::<u64>(52).is_err());
    assert!(client.transport.read_config_space::<u64>(usize::MAX).is_err());
    assert!(client.transport.write_config_space(48, u64::MAX).is_ok());
    assert!(client.transport.write_config_space(56, 0u8).is_err());
    assert_eq!(client.config(), before);
}
