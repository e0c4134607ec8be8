//! A device on real memory, and a host that keeps a record and fails when told to.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use pagefold_virtio_mem_device::{
    Backing, Device, FeaturesError, GuestAccess, Memfd, Notify, Pages, RegionRange, Settings, Step, VERSION_1,
};
use pagefold_virtio_mem_spec::{Features, PlugState, Request, RequestType, Response, ResponseType};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const ADDR: u64 = 4 * GIB;
pub const REGION: u64 = GIB;
pub const BLOCK: u64 = 2 * MIB;
pub const GUEST_BLOCK: u64 = 128 * MIB;
pub const BLOCKS: u64 = REGION / BLOCK;

type Fails = Box<dyn FnMut(Step) -> bool + Send>;

/// What was asked of the host, what came of it, and what it will refuse.
#[derive(Default)]
pub struct Record {
    /// Every step that was asked for, refused ones included.
    pub asked: Vec<(Step, RegionRange)>,
    /// Blocks that virtual CPUs and devices reach.
    pub shown: Vec<bool>,
    pub mapped: Vec<bool>,
    pub fails: Option<Fails>,
}

#[derive(Clone, Default)]
pub struct Host(pub Arc<Mutex<Record>>);

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    /// Refuses the next `step`.
    pub fn fail_once(&self, step: Step) {
        let mut armed = true;
        self.fail(move |asked| asked == step && std::mem::take(&mut armed));
    }

    pub fn fail(&self, fails: impl FnMut(Step) -> bool + Send + 'static) {
        self.0.lock().unwrap().fails = Some(Box::new(fails));
    }

    pub fn work(&self) {
        self.0.lock().unwrap().fails = None;
    }

    /// The steps asked for since the last time.
    pub fn steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.0.lock().unwrap().asked).into_iter().map(|(step, _)| step).collect()
    }

    /// Blocks that virtual CPUs reach.
    pub fn shown(&self) -> Vec<u64> {
        blocks(&self.0.lock().unwrap().shown)
    }

    /// Blocks that devices reach.
    pub fn mapped(&self) -> Vec<u64> {
        blocks(&self.0.lock().unwrap().mapped)
    }

    fn ask(&self, step: Step, range: RegionRange) -> io::Result<()> {
        let record = &mut *self.0.lock().unwrap();
        record.asked.push((step, range));
        if record.fails.as_mut().is_some_and(|fails| fails(step)) {
            return Err(io::Error::other("the host was told to refuse"));
        }
        let (bits, on) = match step {
            Step::Show => (&mut record.shown, true),
            Step::Hide => (&mut record.shown, false),
            Step::MapDma => (&mut record.mapped, true),
            Step::UnmapDma => (&mut record.mapped, false),
            Step::Populate | Step::Adopt | Step::Discard => return Ok(()),
        };
        let blocks = (range.offset / BLOCK) as usize..((range.offset + range.len) / BLOCK) as usize;
        bits.resize(bits.len().max(blocks.end), false);
        for block in &mut bits[blocks] {
            assert_ne!(*block, on, "{step:?} of a block where that is done");
            *block = on;
        }
        Ok(())
    }
}

fn blocks(bits: &[bool]) -> Vec<u64> {
    (0..bits.len()).filter(|&block| bits[block]).map(|block| block as u64).collect()
}

impl GuestAccess for Host {
    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        self.ask(Step::Show, *range)
    }
    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        self.ask(Step::Hide, *range)
    }
    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.ask(Step::MapDma, *range)
    }
    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        self.ask(Step::UnmapDma, *range)
    }
}

/// A real memfd of a host that keeps a record.
#[derive(Debug)]
pub struct Memory {
    pub memfd: Memfd,
    pub host: Host,
}

impl Memory {
    fn range(offset: u64, len: u64) -> RegionRange {
        RegionRange { addr: ADDR + offset, offset, len }
    }
}

impl Backing for Memory {
    fn size(&self) -> u64 {
        self.memfd.size()
    }
    fn page_size(&self) -> u64 {
        self.memfd.page_size()
    }
    fn default_block_size(&self) -> u64 {
        self.memfd.default_block_size()
    }
    fn resident(&self) -> io::Result<u64> {
        self.memfd.resident()
    }
    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let asked = self.host.ask(Step::Populate, Self::range(offset, len));
        if asked.is_err() {
            // As hugetlbfs does: what was there for it stays.
            fallocate(self.memfd.file(), FallocateFlags::empty(), offset, BLOCK.min(len))?;
        }
        asked.and_then(|()| self.memfd.populate(offset, len))
    }
    fn adopt(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.host.ask(Step::Adopt, Self::range(offset, len))?;
        self.memfd.adopt(offset, len)
    }
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.host.ask(Step::Discard, Self::range(offset, len))?;
        self.memfd.discard(offset, len)
    }
}

pub type TestDevice = Device<Memory, Host>;

pub fn settings() -> Settings {
    Settings { block_size: Some(BLOCK), ..Settings::new(ADDR, REGION) }
}

pub fn device(settings: Settings) -> (TestDevice, Host) {
    let host = Host::default();
    let memfd = Memfd::new(settings.region_size, Pages::Normal).unwrap();
    (Device::new(settings, Memory { memfd, host: host.clone() }, host.clone()).unwrap(), host)
}

/// A device with a driver, and so many bytes requested.
pub fn driven(settings: Settings, requested: u64) -> (TestDevice, Host) {
    let (mut device, host) = device(settings);
    drive(&mut device);
    resize(&mut device, requested);
    host.steps();
    (device, host)
}

/// The host wants so many bytes, and the driver is told if that is new.
pub fn resize<B: Backing, G: GuestAccess>(device: &mut Device<B, G>, size: u64) {
    let before = device.config();
    let notify = device.set_requested_size(size).unwrap();
    assert_eq!(notify == Notify::ConfigChanged, device.config() != before);
}

pub fn drive<B: Backing, G: GuestAccess>(device: &mut Device<B, G>) {
    let all = Features::all().bits() & device.features();
    activate(device, VERSION_1 | all).unwrap();
}

/// What a transport does at `FEATURES_OK` and `DRIVER_OK`.
pub fn activate<B: Backing, G: GuestAccess>(
    device: &mut Device<B, G>,
    accepted: u64,
) -> Result<(), FeaturesError> {
    device.check_features(accepted)?;
    device.activate(accepted)
}

/// Asks about `blocks` of the region.
pub fn ask<B: Backing, G: GuestAccess>(
    device: &mut Device<B, G>,
    kind: RequestType,
    blocks: Range<u64>,
) -> Response {
    device.handle(&Request::new(kind, ADDR + blocks.start * BLOCK, (blocks.end - blocks.start) as u16))
}

pub fn says(kind: ResponseType) -> Response {
    Response::new(kind)
}

pub fn is(state: PlugState) -> Response {
    Response::state(state)
}

pub fn plugged<B: Backing, G: GuestAccess>(device: &Device<B, G>) -> u64 {
    device.config().plugged_size.get()
}

pub fn usable<B: Backing, G: GuestAccess>(device: &Device<B, G>) -> u64 {
    device.config().usable_region_size.get()
}

/// Where the file holds data, as the kernel says: bytes from, to.
pub fn data(memfd: &Memfd) -> Vec<(u64, u64)> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(memfd.file(), SeekFrom::Data(at)) {
        at = seek(memfd.file(), SeekFrom::Hole(start)).unwrap();
        ranges.push((start, at));
    }
    ranges
}
