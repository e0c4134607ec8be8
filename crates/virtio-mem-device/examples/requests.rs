//! What a request costs in the device itself, on memory that no guest has touched: `cargo run --profile measure
//! --example requests`.

use std::time::Instant;

use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings, VERSION_1};
use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};

const GIB: u64 = 1 << 30;
const ROUNDS: u32 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings =
        Settings { block_size: Some(2 << 20), requested_size: 4 * GIB, ..Settings::new(4 * GIB, 4 * GIB) };
    let mut device = Device::new(settings, Memfd::new(4 * GIB, Pages::Normal)?, ())?;
    device.activate(VERSION_1 | 2)?;
    for blocks in [1, 64] {
        for _ in 0..ROUNDS {
            for kind in [RequestType::Plug, RequestType::State, RequestType::Unplug] {
                let response = device.handle(&Request::new(kind, 4 * GIB, blocks));
                assert_eq!(response.kind, Response::new(ResponseType::Ack).kind);
            }
        }
    }
    let stats = device.stats();
    for (name, of) in [("PLUG", stats.plug), ("STATE", stats.state), ("UNPLUG", stats.unplug)] {
        let each = of.latency.total.as_nanos() / u128::from(of.count());
        println!(
            "{name:<7} {each} ns on average, {} at most 3 us of {}",
            of.latency.counts[0] + of.latency.counts[1],
            of.count()
        );
    }
    // With the clock's own part left out.
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let _ = device.handle(&Request::new(RequestType::State, 4 * GIB, 64));
    }
    println!("STATE   {} ns with counting", start.elapsed().as_nanos() / u128::from(ROUNDS));
    Ok(())
}
