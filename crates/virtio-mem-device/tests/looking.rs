//! What a VMM reads of a device: config space, ranges, whether it is frozen, and what it has done.

use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings, VERSION_1};
use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;
const ADDR: u64 = 1 << 32;
const BLOCK: u64 = 2 * MIB;

fn driven() -> Device<Memfd> {
    let settings =
        Settings { block_size: Some(BLOCK), requested_size: 64 * MIB, ..Settings::new(ADDR, 256 * MIB) };
    let mut device = Device::new(settings, Memfd::new(256 * MIB, Pages::Normal).unwrap(), ()).unwrap();
    device.activate(VERSION_1 | 2).unwrap();
    device
}

fn ask(device: &mut Device<Memfd>, kind: RequestType, block: u64, blocks: u16) -> Response {
    device.handle(&Request::new(kind, ADDR + block * BLOCK, blocks))
}

#[test]
fn the_config_space_is_read_at_any_offset_and_ends_in_zeros() {
    let device = driven();
    let whole = device.config();
    for offset in 0..60u64 {
        for len in 0..64 {
            let mut data = vec![0xff; len];
            device.read_config(offset, &mut data);
            let wanted: Vec<u8> =
                whole.as_bytes().iter().copied().chain([0; 128]).skip(offset as usize).take(len).collect();
            assert_eq!(data, wanted, "{len} bytes at {offset}");
        }
    }
    let mut data = [0xff; 8];
    device.read_config(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn plugged_and_unplugged_ranges_make_up_the_region() {
    let mut device = driven();
    for (block, blocks) in [(0, 2), (5, 1), (30, 2)] {
        assert_eq!(ask(&mut device, RequestType::Plug, block, blocks), Response::new(ResponseType::Ack));
    }
    let plugged: Vec<_> = device.plugged_ranges().map(|range| (range.offset, range.len)).collect();
    assert_eq!(plugged, [(0, 2 * BLOCK), (5 * BLOCK, BLOCK), (30 * BLOCK, 2 * BLOCK)]);
    let mut all: Vec<_> = device
        .plugged_ranges()
        .chain(device.unplugged_ranges())
        .map(|range| (range.offset, range.len))
        .collect();
    all.sort_unstable();
    let end = all.iter().fold(0, |at, &(offset, len)| {
        assert_eq!(offset, at);
        at + len
    });
    assert_eq!(end, 256 * MIB);
}

#[test]
fn a_device_says_whether_it_is_frozen() {
    let mut device = driven();
    assert!(!device.is_frozen());
    let _ = device.snapshot();
    assert!(device.is_frozen());
    device.thaw().unwrap();
    assert!(!device.is_frozen());
}

#[test]
fn a_device_counts_what_it_did_and_how_long_that_took() {
    let mut device = driven();
    ask(&mut device, RequestType::Plug, 0, 16);
    ask(&mut device, RequestType::Plug, 0, 1);
    ask(&mut device, RequestType::Plug, 16, 17);
    ask(&mut device, RequestType::Unplug, 4, 2);
    ask(&mut device, RequestType::State, 0, 8);
    device.freeze();
    ask(&mut device, RequestType::Plug, 16, 1);
    device.thaw().unwrap();
    ask(&mut device, RequestType::UnplugAll, 0, 0);
    let mut unknown = Request::new(RequestType::Plug, ADDR, 1);
    unknown.kind = 77.into();
    device.handle(&unknown);
    assert!(device.set_requested_size(0).is_ok());
    let stats = device.stats();
    let plug = stats.plug;
    assert_eq!((plug.acked, plug.errors, plug.nacked, plug.busy, plug.count()), (1, 1, 1, 1, 4));
    assert_eq!((plug.bytes, stats.unplug.bytes, stats.state.bytes), (16 * BLOCK, 2 * BLOCK, 8 * BLOCK));
    assert_eq!((stats.unplug_all.acked, stats.unplug_all.bytes, stats.unplugged_by_all), (1, 0, 14 * BLOCK));
    assert_eq!((stats.invalid, stats.resizes), (1, 1));
    assert_eq!(plug.latency.counts.iter().sum::<u64>(), 4);
    assert!(plug.latency.longest <= plug.latency.total);
}
