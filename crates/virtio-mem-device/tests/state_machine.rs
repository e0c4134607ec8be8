//! Random requests, good and hostile, with resizes, resets, migrations and a host that fails, against a plain model: a
//! vector of what is plugged and what was written there.

mod common;

use common::*;
use pagefold_virtio_mem_device::{
    Device, Memfd, Notify, ResetError, ResizeError, Settings, Snapshot, SystemReset, Unplugged,
};
use pagefold_virtio_mem_spec::{BlockState, Request, RequestType, Response, ResponseType};
use proptest::prelude::*;
use rustix::io::dup;
use std::fs::File;
use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

#[derive(Clone, Debug)]
enum Action {
    /// A request: type, first block, blocks, bytes beside the block's start.
    Ask(u16, u64, u16, u64),
    Resize(u64),
    /// A plugged block is written to, if one is that many further.
    Write(u64, u64),
    Freeze(bool),
    /// The next call to the host but so many fails; then so many undo calls fail too.
    Fail(usize, bool),
    DeviceReset,
    SystemReset(bool),
    /// Saved, and restored into a new device on the same memory.
    Migrate,
}

fn action() -> impl Strategy<Value = Action> {
    let block = 0..BLOCKS + 8;
    let count = prop_oneof![6 => 1..40u16, 2 => 40..600u16, 1 => Just(0u16), 1 => any::<u16>()];
    let skew = prop_oneof![12 => Just(0u64), 1 => 1..BLOCK, 1 => any::<u64>()];
    let kind =
        prop_oneof![8 => Just(0u16), 6 => Just(1u16), 1 => Just(2u16), 3 => Just(3u16), 1 => any::<u16>()];
    prop_oneof![
        24 => (kind, block, count, skew).prop_map(|(kind, first, count, skew)| Action::Ask(kind, first, count, skew)),
        4 => prop_oneof![8 => (0..=BLOCKS).prop_map(|blocks| blocks * BLOCK), 1 => any::<u64>()].prop_map(Action::Resize),
        8 => (0..BLOCKS, 1..u64::MAX).prop_map(|(at, value)| Action::Write(at, value)),
        1 => any::<bool>().prop_map(Action::Freeze),
        4 => (0..6usize, prop::bool::weighted(0.2)).prop_map(|(after, twice)| Action::Fail(after, twice)),
        1 => Just(Action::DeviceReset),
        1 => any::<bool>().prop_map(Action::SystemReset),
        1 => Just(Action::Migrate),
    ]
}

/// What must be.
struct Model {
    plugged: Vec<bool>,
    /// What was written to a block since it was plugged.
    written: Vec<Option<u64>>,
    requested: u64,
    usable: u64,
    frozen: bool,
    unplugged: Unplugged,
}

impl Model {
    fn plugged_size(&self) -> u64 {
        self.plugged.iter().filter(|plugged| **plugged).count() as u64 * BLOCK
    }

    fn usable_for(requested: u64) -> u64 {
        if requested == 0 { 0 } else { (requested + 2 * GUEST_BLOCK).min(REGION) }
    }

    /// The answer to a request where the host does not fail, and the blocks it would change.
    fn answer(&self, kind: u16, addr: u64, count: u16) -> (Response, Vec<usize>) {
        let nothing = |kind| (Response::new(kind), Vec::new());
        if kind > 3 {
            return nothing(ResponseType::Error);
        }
        if kind == 2 {
            let all = (0..self.plugged.len()).filter(|&block| self.plugged[block]).collect();
            return if self.frozen {
                nothing(ResponseType::Busy)
            } else {
                (Response::new(ResponseType::Ack), all)
            };
        }
        // In 128 bits nothing overflows.
        let (start, size) = (i128::from(addr) - i128::from(ADDR), i128::from(count) * i128::from(BLOCK));
        if count == 0 || start < 0 || start % i128::from(BLOCK) != 0 || start + size > i128::from(self.usable)
        {
            return nothing(ResponseType::Error);
        }
        let first = (start / i128::from(BLOCK)) as usize;
        let blocks: Vec<_> = (first..first + usize::from(count)).collect();
        let on = blocks.iter().filter(|&&block| self.plugged[block]).count();
        match kind {
            0 if self.plugged_size() + size as u64 > self.requested => nothing(ResponseType::Nack),
            0 if on > 0 => nothing(ResponseType::Error),
            1 if on < blocks.len() => nothing(ResponseType::Error),
            0 | 1 if self.frozen => nothing(ResponseType::Busy),
            0 | 1 => (Response::new(ResponseType::Ack), blocks),
            _ if on == blocks.len() => (Response::state(BlockState::Plugged), Vec::new()),
            _ if on == 0 => (Response::state(BlockState::Unplugged), Vec::new()),
            _ => (Response::state(BlockState::Mixed), Vec::new()),
        }
    }

    fn turn(&mut self, blocks: &[usize], plugged: bool) {
        for &block in blocks {
            self.plugged[block] = plugged;
            self.written[block] = None;
        }
    }
}

struct Run {
    device: TestDevice,
    host: Host,
    region: GuestRegionMmap,
    model: Model,
}

impl Run {
    fn new(unplugged: Unplugged) -> Self {
        let (mut device, host) = device(Settings { unplugged, ..settings() });
        drive(&mut device);
        let region = device.backing().memfd.guest_region(ADDR).unwrap();
        let model = Model {
            plugged: vec![false; BLOCKS as usize],
            written: vec![None; BLOCKS as usize],
            requested: 0,
            usable: 0,
            frozen: false,
            unplugged,
        };
        Self { device, host, region, model }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Ask(kind, first, count, skew) => self.ask(kind, first, count, skew),
            Action::Resize(size) => self.resize(size),
            Action::Write(at, value) => {
                let from = self.model.plugged.iter().skip(at as usize).position(|plugged| *plugged);
                if let Some(block) = from.map(|further| at + further as u64) {
                    for at in [block * BLOCK, (block + 1) * BLOCK - 8] {
                        self.region.write_obj(value, MemoryRegionAddress(at)).unwrap();
                    }
                    self.model.written[block as usize] = Some(value);
                }
            }
            Action::Freeze(on) => {
                if on {
                    self.device.freeze()
                } else {
                    self.device.thaw()
                }
                self.model.frozen = on;
            }
            Action::Fail(after, twice) => {
                let mut calls = 0;
                self.host.fail(move |_| {
                    calls += 1;
                    calls == after + 1 || twice && calls == after + 2
                });
            }
            Action::DeviceReset => {
                self.device.device_reset();
                assert!(matches!(
                    self.device.set_requested_size(REGION),
                    Err(ResizeError::NoDriver | ResizeError::Frozen)
                ));
                drive(&mut self.device);
            }
            Action::SystemReset(reboot) => self.system_reset(reboot),
            Action::Migrate => self.migrate(),
        }
        self.check();
    }

    fn ask(&mut self, kind: u16, first: u64, count: u16, skew: u64) {
        let addr = (ADDR + first * BLOCK).wrapping_add(skew);
        let mut request = Request::new(RequestType::Plug, addr, count);
        request.kind = kind.into();
        let (expected, blocks) = self.model.answer(kind, addr, count);
        let failures = self.device.host_failures().0;
        let answer = self.device.handle(&request);
        let failed = self.device.host_failures().0 > failures;
        if failed && answer != expected {
            assert_eq!(
                expected,
                Response::new(ResponseType::Ack),
                "the host was asked before the request was judged"
            );
            assert_eq!(answer, Response::new(ResponseType::Busy));
            return self.repair();
        }
        assert_eq!(answer, expected, "{kind} {addr:#x} {count}");
        if answer == Response::new(ResponseType::Ack) {
            self.model.turn(&blocks, kind == 0);
            if kind == 2 {
                self.shrunk(failed);
            }
        }
    }

    /// Everything was unplugged: the usable region is fitted, except where the host would not take access away.
    fn shrunk(&mut self, failed: bool) {
        if !failed {
            self.model.usable = self.model.usable.min(Model::usable_for(self.model.requested));
        }
    }

    fn resize(&mut self, size: u64) {
        let sound = size.is_multiple_of(BLOCK) && size <= REGION;
        match self.device.set_requested_size(size) {
            Ok(notify) => {
                assert!(sound && !self.model.frozen);
                assert_eq!(notify == Notify::ConfigChanged, size != self.model.requested);
                self.model.usable = self.model.usable.max(Model::usable_for(size));
                self.model.requested = size;
            }
            Err(ResizeError::Size(_)) => assert!(!sound),
            Err(ResizeError::Frozen) => assert!(self.model.frozen),
            Err(ResizeError::Host(error)) => assert_eq!(error.undo.map(|_| ()), None),
            Err(ResizeError::NoDriver) => panic!("there is a driver"),
        }
    }

    fn system_reset(&mut self, reboot: bool) {
        let reset = if reboot { SystemReset::Reboot } else { SystemReset::Wakeup };
        let failures = self.device.host_failures().0;
        match self.device.system_reset(reset) {
            Ok(()) if reboot => {
                let all: Vec<_> = (0..BLOCKS as usize).collect();
                self.model.turn(&all, false);
                self.shrunk(self.device.host_failures().0 > failures);
            }
            Ok(()) => {}
            Err(ResetError::Frozen) => assert!(reboot && self.model.frozen),
            Err(ResetError::Host(_)) => self.repair(),
            Err(ResetError::Faulty) => panic!("it was repaired"),
        }
        drive(&mut self.device);
    }

    /// What a VMM does after a failure that could not be undone.
    fn repair(&mut self) {
        if self.device.is_faulty() {
            let busy = self.device.handle(&Request::new(RequestType::UnplugAll, 0, 0));
            assert_eq!(busy, Response::new(ResponseType::Busy));
            let shows = self.model.unplugged == Unplugged::Inaccessible;
            let record = &mut *self.host.0.lock().unwrap();
            record.fails = None;
            record.mapped = self.model.plugged.clone();
            if shows {
                record.shown = self.model.plugged.clone();
            }
            drop(std::mem::take(&mut record.asked));
            self.device.repaired();
        }
    }

    fn migrate(&mut self) {
        self.host.work();
        self.device.freeze();
        let saved = serde_json::to_string(&self.device.snapshot()).unwrap();
        let saved: Snapshot = serde_json::from_str(&saved).unwrap();
        let file = File::from(dup(self.device.backing().memfd.file()).unwrap());
        let memfd = Memfd::with_contents(file, REGION).unwrap();
        let host = Host::default();
        let settings = Settings { unplugged: self.model.unplugged, ..settings() };
        let mut device = Device::new(settings, Memory { memfd, host: host.clone() }, host.clone()).unwrap();
        device.restore(&saved).unwrap();
        assert_eq!(device.snapshot(), saved);
        (self.device, self.host, self.model.frozen) = (device, host, false);
    }

    fn check(&mut self) {
        let (model, config) = (&self.model, self.device.config());
        let runs: Vec<_> =
            self.device.plugged_ranges().map(|range| range.offset..range.offset + range.len).collect();
        let plugged: Vec<_> =
            (0..BLOCKS).map(|block| runs.iter().any(|run| run.contains(&(block * BLOCK)))).collect();
        assert_eq!(plugged, model.plugged);
        assert_eq!(config.plugged_size.get(), model.plugged_size());
        assert_eq!(config.requested_size.get(), model.requested);
        assert_eq!(config.usable_region_size.get(), model.usable);
        assert!(model.usable >= model.requested);

        let on = |on: &dyn Fn(u64) -> bool| (0..BLOCKS).filter(|block| on(*block)).collect::<Vec<_>>();
        let reached = on(&|block| plugged[block as usize]);
        assert_eq!(self.host.mapped(), reached);
        match model.unplugged {
            Unplugged::Inaccessible => assert_eq!(self.host.shown(), reached),
            _ => assert_eq!(self.host.shown(), on(&|block| block * BLOCK < model.usable)),
        }

        // What was written is there; nothing else is, not even memory.
        for block in 0..BLOCKS {
            if let Some(value) = model.written[block as usize] {
                for at in [block * BLOCK, (block + 1) * BLOCK - 8] {
                    assert_eq!(self.region.read_obj::<u64>(MemoryRegionAddress(at)).unwrap(), value);
                }
            }
        }
        for (from, to) in data(&self.device.backing().memfd) {
            for block in from / BLOCK..to.div_ceil(BLOCK) {
                assert!(model.written[block as usize].is_some(), "block {block} holds memory");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_device_does_what_the_model_does(
        unplugged in prop_oneof![3 => Just(Unplugged::Inaccessible), 1 => Just(Unplugged::Readable)],
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut run = Run::new(unplugged);
        run.act(&Action::Resize(REGION));
        for action in &actions {
            run.act(action);
        }
    }
}

/// The model meets what it is made for: all answers, failures and their repair, in one fixed program.
#[test]
fn a_program_that_meets_everything() {
    for unplugged in [Unplugged::Inaccessible, Unplugged::Readable] {
        let mut run = Run::new(unplugged);
        for action in [
            Action::Resize(64 * BLOCK),
            Action::Ask(0, 0, 30, 0),
            Action::Write(3, 77),
            Action::Fail(1, true),
            Action::Ask(0, 40, 5, 0),
            Action::Ask(0, 40, 5, 0),
            Action::Fail(1, false),
            Action::Ask(1, 0, 9, 0),
            Action::Migrate,
            Action::Ask(1, 0, 3, 0),
            Action::Fail(4, true),
            Action::Ask(2, 0, 0, 0),
            Action::Freeze(true),
            Action::SystemReset(true),
            Action::Freeze(false),
            Action::SystemReset(false),
            Action::DeviceReset,
            Action::SystemReset(true),
        ] {
            run.act(&action);
        }
        assert_eq!(run.model.plugged_size(), 0);
        assert!(run.device.backing().memfd.resident().unwrap() == 0);
    }
}
