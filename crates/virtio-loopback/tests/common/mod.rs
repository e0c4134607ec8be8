//! The smallest driver there is: it asks what it is told to ask.
#![allow(dead_code, reason = "each test uses a part of it")]

use pagefold_virtio_loopback::{Loopback, LoopbackHal, LoopbackTransport};
use pagefold_virtio_mem_device::{Device, Memfd, Pages, Settings};
use pagefold_virtio_mem_spec::{ConfigSpace, GUEST_REQUEST_QUEUE, Request, RequestType, Response};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use zerocopy::IntoBytes;

pub const MIB: u64 = 1 << 20;
/// The region's address and size, and its blocks.
pub const ADDR: u64 = 4 << 30;
pub const REGION: u64 = 1024 * MIB;
pub const BLOCK: u64 = 2 * MIB;

pub type MemoryLoopback = Loopback<Device<Memfd>>;

pub fn settings(addr: u64) -> Settings {
    Settings { block_size: Some(BLOCK), ..Settings::new(addr, REGION) }
}

pub fn device(settings: Settings) -> MemoryLoopback {
    let backing = Memfd::new(settings.region_size, Pages::Normal).unwrap();
    Loopback::new(Device::new(settings, backing, ()).unwrap())
}

bitflags::bitflags! {
    /// What the client accepts.
    #[derive(Clone, Copy, Debug)]
    pub struct Accepted: u64 {
        const ACPI_PXM = 1 << 0;
        const UNPLUGGED_INACCESSIBLE = 1 << 1;
        const PERSISTENT_SUSPEND = 1 << 2;
        const INDIRECT = 1 << 28;
        const EVENT_IDX = 1 << 29;
        const VERSION_1 = 1 << 32;
    }
}

pub struct Client {
    // Before the queue: the device is reset before its rings go.
    pub transport: LoopbackTransport<Device<Memfd>>,
    queue: VirtQueue<LoopbackHal, 8>,
}

impl Client {
    pub fn new(device: &MemoryLoopback, accepted: Accepted) -> Self {
        let mut transport = device.connect().unwrap();
        let accepted = transport.begin_init(accepted);
        let queue = VirtQueue::new(
            &mut transport,
            GUEST_REQUEST_QUEUE,
            accepted.contains(Accepted::INDIRECT),
            accepted.contains(Accepted::EVENT_IDX),
        )
        .unwrap();
        transport.finish_init();
        Self { transport, queue }
    }

    pub fn config(&self) -> ConfigSpace {
        let read = || self.transport.read_config_space::<ConfigSpace>(0);
        self.transport.read_consistent(read).unwrap()
    }

    pub fn ask(&mut self, kind: RequestType, addr: u64, blocks: u16) -> Response {
        let request = Request::new(kind, addr, blocks);
        let mut response = Response { kind: 0xffff.into(), ..Response::default() };
        let (input, output) = (request.as_bytes(), response.as_mut_bytes());
        let used = self.queue.add_notify_wait_pop(&[input], &mut [output], &mut self.transport).unwrap();
        assert_eq!(used, 10);
        response
    }
}
