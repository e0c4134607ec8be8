//! Random requests, good and hostile, and all that a VMM can call in any order, with a host that fails, against a plain model:
//! a vector of what is plugged and what was written there.

mod common;

use common::*;
use pagefold_virtio_mem_device::{
    Device, FeaturesError, HostError, Memfd, Notify, ResizeError, RestoreError, Settings, Snapshot,
    SystemReset, Unplugged, VERSION_1,
};
use pagefold_virtio_mem_spec::{ConfigSpace, PlugState, Request, RequestType, Response, ResponseType};
use proptest::prelude::*;
use rustix::io::dup;
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestRegionMmap, MemoryRegionAddress};

#[derive(Clone, Debug)]
enum Action {
    /// A request: type, first block, blocks, bytes beside the block's start.
    Ask(u16, u64, u16, u64),
    Resize(u64),
    /// A plugged block is written to, if one is that many further.
    Write(u64, u64),
    Freeze,
    Thaw,
    /// Of the next calls to the host, those whose bit is set fail.
    Fail(u64),
    /// Does what is due.
    Settle,
    Activate,
    DeviceReset,
    SystemReset(bool),
    /// Taken and dropped: the device stays.
    Snapshot,
    /// Saved, and restored into a new device on the same memory, whose host fails at first as bits say.
    Migrate(u64),
    DiscardUnplugged,
}

fn action() -> impl Strategy<Value = Action> {
    let block = 0..BLOCKS + 8;
    let count = prop_oneof![6 => 1..40u16, 2 => 40..600u16, 1 => Just(0u16), 1 => any::<u16>()];
    let skew = prop_oneof![12 => Just(0u64), 1 => 1..BLOCK, 1 => any::<u64>()];
    let kind =
        prop_oneof![8 => Just(0u16), 6 => Just(1u16), 1 => Just(2u16), 3 => Just(3u16), 1 => any::<u16>()];
    let fails = || prop_oneof![3 => (0..6u32).prop_map(|call| 1 << call), 2 => 0..64u64, 1 => Just(!0)];
    prop_oneof![
        24 => (kind, block, count, skew).prop_map(|(kind, first, count, skew)| Action::Ask(kind, first, count, skew)),
        4 => prop_oneof![8 => (0..=BLOCKS).prop_map(|blocks| blocks * BLOCK), 1 => any::<u64>()].prop_map(Action::Resize),
        8 => (0..BLOCKS, 1..u64::MAX).prop_map(|(at, value)| Action::Write(at, value)),
        1 => Just(Action::Freeze),
        2 => Just(Action::Thaw),
        4 => fails().prop_map(Action::Fail),
        1 => Just(Action::Settle),
        3 => Just(Action::Activate),
        1 => Just(Action::DeviceReset),
        1 => any::<bool>().prop_map(Action::SystemReset),
        1 => Just(Action::Snapshot),
        2 => prop_oneof![Just(0), fails()].prop_map(Action::Migrate),
        1 => Just(Action::DiscardUnplugged),
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
    driver: bool,
    /// The machine was reset, and no driver has come since.
    reset_due: bool,
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
        if !self.driver || kind > 3 {
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
            _ if on == blocks.len() => (Response::state(PlugState::Plugged), Vec::new()),
            _ if on == 0 => (Response::state(PlugState::Unplugged), Vec::new()),
            _ => (Response::state(PlugState::Mixed), Vec::new()),
        }
    }

    fn turn(&mut self, blocks: &[usize], plugged: bool) {
        for &block in blocks {
            self.plugged[block] = plugged;
            self.written[block] = None;
        }
    }

    /// Everything was unplugged: the usable region is fitted, except where the host would not take access away.
    fn unplug_all(&mut self, failed: bool) {
        self.plugged.fill(false);
        self.written.fill(None);
        if !failed {
            self.usable = self.usable.min(Self::usable_for(self.requested));
        }
    }

    /// What is due was done.
    fn settled(&mut self, failed: bool) {
        if self.reset_due && !self.frozen {
            self.unplug_all(failed);
            self.reset_due = false;
        }
    }
}

struct Run {
    device: TestDevice,
    host: Host,
    region: GuestRegionMmap,
    model: Model,
    /// The config space and its generation, when last looked at.
    seen: (ConfigSpace, u32),
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
            driver: true,
            reset_due: false,
            unplugged,
        };
        let seen = (device.config(), device.config_generation());
        Self { device, host, region, model, seen }
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
            Action::Freeze => {
                self.device.freeze();
                self.model.frozen = true;
            }
            Action::Thaw => {
                self.model.frozen = false;
                self.settle(Device::thaw);
            }
            Action::Fail(calls) => self.fail(calls),
            Action::Settle => self.settle(Device::settle),
            Action::Activate => {
                let accepted = VERSION_1 | 2 & self.device.features();
                let answer = activate(&mut self.device, accepted);
                let busy = self.model.driver;
                assert_eq!(answer, if busy { Err(FeaturesError::Active) } else { Ok(()) });
                (self.model.driver, self.model.reset_due) = (true, self.model.reset_due && busy);
            }
            Action::DeviceReset => {
                self.device.device_reset();
                self.model.driver = false;
            }
            Action::SystemReset(reboot) => {
                if reboot {
                    (self.model.driver, self.model.reset_due) = (false, true);
                    self.settle(|device| device.system_reset(SystemReset::Reboot));
                } else {
                    self.device.system_reset(SystemReset::Wakeup).unwrap();
                }
            }
            Action::Snapshot => {
                let saved = self.device.snapshot();
                self.model.frozen = true;
                assert_eq!(self.device.snapshot(), saved);
            }
            Action::Migrate(fails) => self.migrate(fails),
            Action::DiscardUnplugged => {
                let before = self.failures();
                let done = self.device.discard_unplugged();
                assert_eq!(done.is_err(), self.failures() > before);
            }
        }
        self.check();
    }

    fn fail(&self, calls: u64) {
        let mut calls = calls;
        self.host.fail(move |_| {
            let fails = calls & 1 == 1;
            calls >>= 1;
            fails
        });
    }

    fn failures(&self) -> u64 {
        self.device.host_failures().0
    }

    fn ask(&mut self, kind: u16, first: u64, count: u16, skew: u64) {
        let addr = (ADDR + first * BLOCK).wrapping_add(skew);
        let mut request = Request::new(RequestType::Plug, addr, count);
        request.kind = kind.into();
        let (expected, blocks) = self.model.answer(kind, addr, count);
        let failures = self.failures();
        let answer = self.device.handle(&request);
        let failed = self.failures() > failures;
        if failed && answer != expected {
            let judged = Response::new(ResponseType::Ack);
            assert_eq!(expected, judged, "the host was asked before the request was judged");
            assert_eq!(answer, Response::new(ResponseType::Busy));
            return;
        }
        assert_eq!(answer, expected, "{kind} {addr:#x} {count}");
        if answer == Response::new(ResponseType::Ack) {
            assert!(!failed || kind == 2);
            match kind {
                2 => self.model.unplug_all(failed),
                _ => self.model.turn(&blocks, kind == 0),
            }
        }
    }

    fn resize(&mut self, size: u64) {
        let sound = size.is_multiple_of(BLOCK) && size <= REGION;
        let failures = self.failures();
        match self.device.set_requested_size(size) {
            Ok(notify) => {
                assert!(sound && !self.model.frozen && self.model.driver);
                assert_eq!(notify == Notify::ConfigChanged, size != self.model.requested);
                self.model.usable = self.model.usable.max(Model::usable_for(size));
                self.model.requested = size;
            }
            Err(ResizeError::Size(_)) => assert!(!sound),
            Err(ResizeError::Frozen) => assert!(self.model.frozen),
            Err(ResizeError::Host(_)) => assert!(self.failures() > failures),
            Err(ResizeError::NoDriver) => assert!(!self.model.driver),
        }
    }

    /// Calls something that does what is due.
    fn settle(&mut self, act: impl FnOnce(&mut TestDevice) -> Result<(), HostError>) {
        let failures = self.failures();
        let done = act(&mut self.device);
        let failed = self.failures() > failures;
        match done {
            Ok(()) => self.model.settled(failed),
            Err(_) => assert!(failed),
        }
    }

    fn migrate(&mut self, fails: u64) {
        let saved = serde_json::to_string(&self.device.snapshot()).unwrap();
        let saved: Snapshot = serde_json::from_str(&saved).unwrap();
        let host = Host::default();
        let settings = Settings { unplugged: self.model.unplugged, ..settings() };
        let restore = || {
            let file = File::from(dup(self.device.backing().memfd.file()).unwrap());
            let memory = Memory { memfd: Memfd::from_file(file, REGION).unwrap(), host: host.clone() };
            Device::restore(settings.clone(), memory, host.clone(), &saved)
        };
        let mut calls = fails;
        host.fail(move |_| {
            let fails = calls & 1 == 1;
            calls >>= 1;
            fails
        });
        let restored = restore();
        host.work();
        let mut device = match restored {
            Ok(device) => device,
            // Nothing that was saved is lost: the next try finds it. What the host knows of the first is the VMM's.
            Err(RestoreError::Host(_)) => {
                *host.0.lock().unwrap() = Record::default();
                restore().unwrap()
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(device.snapshot(), saved);
        device.thaw().unwrap();
        let generation = self.seen.1.wrapping_add(u32::from(self.model.reset_due));
        assert_eq!(device.config_generation(), generation);
        self.model.frozen = false;
        self.model.settled(false);
        (self.device, self.host) = (device, host);
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
        assert_eq!(self.device.negotiated_features().is_some(), model.driver);

        let seen = std::mem::replace(&mut self.seen, (config, self.device.config_generation()));
        assert!(seen.0 == config || seen.1 != self.seen.1, "another config space of the same generation");

        // What was written is there.
        for block in 0..BLOCKS {
            if let Some(value) = model.written[block as usize] {
                for at in [block * BLOCK, (block + 1) * BLOCK - 8] {
                    assert_eq!(self.region.read_obj::<u64>(MemoryRegionAddress(at)).unwrap(), value);
                }
            }
        }
        if !self.device.is_settled() {
            return;
        }
        // Unplugged blocks hold no memory, plugged ones nothing but what was written; and the host agrees.
        let file = self.device.backing().memfd.file();
        for (from, to) in data(&self.device.backing().memfd) {
            for block in from / BLOCK..to.div_ceil(BLOCK) {
                assert!(plugged[block as usize], "block {block} holds memory");
                let (mut bytes, at) = ([0; 8], from.max(block * BLOCK));
                file.read_exact_at(&mut bytes, at).unwrap();
                assert!(model.written[block as usize].is_some() || bytes == [0; 8], "block {block}");
            }
        }
        let on = |on: &dyn Fn(u64) -> bool| (0..BLOCKS).filter(|block| on(*block)).collect::<Vec<_>>();
        let reached = on(&|block| plugged[block as usize]);
        assert_eq!(self.host.mapped(), reached);
        match model.unplugged {
            Unplugged::Inaccessible => assert_eq!(self.host.shown(), reached),
            _ => assert_eq!(self.host.shown(), on(&|block| block * BLOCK < model.usable)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

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
            // Refused, and so is the first undo; then the undo is done, and the request.
            Action::Fail(0b110),
            Action::Ask(0, 40, 5, 0),
            Action::Ask(0, 40, 5, 0),
            Action::Fail(0b10),
            Action::Ask(1, 0, 9, 0),
            Action::Migrate(0b10),
            Action::Ask(1, 0, 3, 0),
            Action::Fail(!0),
            Action::Ask(2, 0, 0, 0),
            Action::SystemReset(true),
            Action::Settle,
            Action::Fail(0),
            Action::Settle,
            // A reset while frozen: done by the thaw, by a restore, or not at all because a driver came.
            Action::Activate,
            Action::Ask(0, 2, 7, 0),
            Action::Write(2, 78),
            Action::Freeze,
            Action::SystemReset(true),
            Action::DeviceReset,
            Action::Activate,
            Action::Thaw,
            Action::Ask(3, 2, 7, 0),
            Action::Snapshot,
            Action::Ask(1, 2, 1, 0),
            Action::SystemReset(true),
            Action::Migrate(0),
            Action::Activate,
            Action::Ask(0, 2, 7, 0),
            Action::Freeze,
            Action::SystemReset(true),
            Action::Thaw,
            Action::SystemReset(false),
            Action::DeviceReset,
            Action::Ask(0, 2, 7, 0),
            Action::Resize(BLOCK),
            Action::DiscardUnplugged,
        ] {
            run.act(&action);
        }
        assert_eq!(run.model.plugged_size(), 0);
        assert!(run.device.backing().memfd.resident().unwrap() == 0);
    }
}
