//! A device that says anything: whatever it answers, whatever its config space holds, and whether it answers at all, is
//! made of arbitrary bytes. Behind it is a device with blocks that it does or does not plug. It may become honest.

use std::cell::RefCell;
use std::rc::Rc;

use pagefold_engine::hotplug::{FakeOffline, Hotplug, HotplugConfig, Migrate, Migration, OnlinePolicy};
use pagefold_engine::{BlockState, Config, Engine, Folio, Kind, Order, Pfn, Zone};
use pagefold_linux::{Linux, Membarrier};
use pagefold_virtio_mem::{
    Channel, ChannelError, ConfigError, Driver, DriverSettings, Inherited, Next, Removed, Shortfall,
};
use pagefold_virtio_mem_spec::{
    ConfigSpace, Features, PlugState, Request, RequestType, Response, ResponseType,
};

type HostilePlatform = Linux<Membarrier, [u64; 7]>;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const ADDR: u64 = 1 << 30;
const REGION: u64 = 512 * MIB;
/// Pages of boot memory.
const BOOT: u64 = 256 * MIB / 4096;

/// Requests of one step at most, see `Driver::step`.
const REQUESTS: u32 = 800;
/// Questions to owners in one step: none says "busy" here, so each is asked once by an attempt.
const QUESTIONS: u64 = 128 * MIB / 4096;
/// Steps until the driver rests, whatever is said to it, when what it is asked for stays the same.
const STEPS: u32 = 600;
/// Waits of the driver after which it has what an honest device can give it.
const WAITS: u32 = 60;

/// The bytes it says, one after the other. It is honest when they run out.
struct Script {
    bytes: Vec<u8>,
    at: usize,
    is_honest: bool,
}

impl Script {
    fn next(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        self.is_honest |= byte.is_none();
        byte.unwrap_or(0)
    }
}

struct Device {
    script: Script,
    /// A bit for each block.
    blocks: Vec<bool>,
    requested: u64,
    told: bool,
    requests: u32,
}

impl Device {
    fn plugged(&self) -> u64 {
        self.blocks.iter().filter(|plugged| **plugged).count() as u64 * BLOCK
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace {
            block_size: BLOCK.into(),
            addr: ADDR.into(),
            region_size: REGION.into(),
            usable_region_size: REGION.into(),
            requested_size: self.requested.into(),
            plugged_size: self.plugged().into(),
            ..ConfigSpace::default()
        }
    }

    /// What the specification wants.
    fn do_it(&mut self, request: &Request) -> Response {
        let kind = RequestType::try_from(request.kind.get());
        let (offset, count) = (request.addr.get().wrapping_sub(ADDR), u64::from(request.nb_blocks.get()));
        if kind == Ok(RequestType::UnplugAll) {
            self.blocks.fill(false);
            return Response::new(ResponseType::Ack);
        }
        let range = (offset / BLOCK) as usize..(offset / BLOCK).saturating_add(count) as usize;
        let plugged = self.plugged();
        let blocks = self.blocks.get_mut(range).filter(|blocks| !blocks.is_empty());
        let (Some(blocks), Ok(kind)) = (blocks.filter(|_| offset.is_multiple_of(BLOCK)), kind) else {
            return Response::new(ResponseType::Error);
        };
        let set = blocks.iter().filter(|plugged| **plugged).count();
        match kind {
            RequestType::State if set == blocks.len() => return Response::state(PlugState::Plugged),
            RequestType::State if set == 0 => return Response::state(PlugState::Unplugged),
            RequestType::State => return Response::state(PlugState::Mixed),
            RequestType::Plug if plugged + count * BLOCK > self.requested => {
                return Response::new(ResponseType::Nack);
            }
            RequestType::Plug if set > 0 => return Response::new(ResponseType::Error),
            RequestType::Unplug if set < blocks.len() => return Response::new(ResponseType::Error),
            RequestType::Plug | RequestType::Unplug | RequestType::UnplugAll => {}
        }
        blocks.fill(kind == RequestType::Plug);
        Response::new(ResponseType::Ack)
    }
}

#[derive(Clone)]
struct Hostile(Rc<RefCell<Device>>);

impl Channel for Hostile {
    fn features(&self) -> Features {
        Features::UNPLUGGED_INACCESSIBLE
    }

    fn config(&mut self) -> Result<ConfigSpace, ChannelError> {
        let device = &mut *self.0.borrow_mut();
        let mut config = device.config();
        let field = match device.script.next() {
            0 => &mut config.block_size,
            1 => &mut config.addr,
            2 => &mut config.region_size,
            3 | 4 => &mut config.usable_region_size,
            5 | 6 => &mut config.requested_size,
            7 | 8 => &mut config.plugged_size,
            9 => return Err(ChannelError::NoAnswer),
            10 => return Err(ChannelError::ConfigUnsteady),
            _ => return Ok(config),
        };
        let (value, shift) = (device.script.next(), device.script.next() % 64);
        *field = u64::from(value).rotate_left(shift.into()).into();
        Ok(if device.script.is_honest { device.config() } else { config })
    }

    fn config_changed(&mut self) -> bool {
        let device = &mut *self.0.borrow_mut();
        let lies = device.script.next() % 16 == 1 && !device.script.is_honest;
        std::mem::take(&mut device.told) || lies
    }

    fn request(&mut self, request: Request) -> Result<Response, ChannelError> {
        let device = &mut *self.0.borrow_mut();
        device.requests += 1;
        let (what, kind, state) = (device.script.next(), device.script.next(), device.script.next());
        if device.script.is_honest {
            return Ok(device.do_it(&request));
        }
        let says = Response {
            kind: u16::from(kind % 6).into(),
            state: u16::from(state % 4).into(),
            ..Response::default()
        };
        match what % 16 {
            // Says something, and has done nothing; or has done it, and says something else.
            0 | 1 => Ok(says),
            2 | 3 => {
                device.do_it(&request);
                Ok(says)
            }
            4 => Err(ChannelError::NoAnswer),
            5 => {
                device.do_it(&request);
                Err(ChannelError::NoAnswer)
            }
            6 => {
                device.do_it(&request);
                Err(ChannelError::Short(kind.into()))
            }
            // A block comes or goes by itself.
            7 => {
                let at = usize::from(kind) % device.blocks.len();
                device.blocks[at] = !device.blocks[at];
                Ok(device.do_it(&request))
            }
            _ => Ok(device.do_it(&request)),
        }
    }
}

/// Keeps folios with something in them that nobody else may touch, and moves them when asked.
#[derive(Default)]
struct Owner<'e> {
    folios: Vec<Folio<'e, HostilePlatform>>,
    /// How often it was asked since that was last looked at.
    asked: u64,
}

impl<'e> Owner<'e> {
    fn stamp(number: usize) -> [u64; 7] {
        core::array::from_fn(|word| (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word as u64)
    }

    fn fill(&mut self, engine: &'e Engine<HostilePlatform>, count: usize, order: u32) {
        for _ in 0..count {
            let Ok(mut folio) = engine.alloc_movable(Order::new(order).expect("an order"), Kind::File) else {
                return;
            };
            *folio.owner_mut() = Self::stamp(self.folios.len());
            self.folios.push(folio.share());
        }
    }

    /// Nobody has touched a folio that is in use.
    fn check(&self) {
        for (number, folio) in self.folios.iter().enumerate() {
            assert_eq!(folio.owner(), &Self::stamp(number), "folio {number} at {}", folio.pfn());
            assert_eq!(folio.refs(), 1, "folio {number} at {}", folio.pfn());
        }
    }
}

impl<'e> Migrate<'e, HostilePlatform> for Owner<'e> {
    fn migrate(&mut self, folio: Folio<'e, HostilePlatform>) -> Migration {
        self.asked += 1;
        let Some(number) = self.folios.iter().position(|mine| mine.pfn() == folio.pfn()) else {
            return Migration::Unmovable;
        };
        // Some are pinned.
        if number % 61 == 60 {
            return Migration::Unmovable;
        }
        match folio.engine().alloc_movable(folio.order(), Kind::File) {
            Ok(mut copy) => {
                *copy.owner_mut() = *folio.owner();
                self.folios[number] = copy.share();
                Migration::Moved
            }
            Err(_) => Migration::NoMemory,
        }
    }
}

/// Lets a driver live with that device: for as long as there are bytes it lies, and then it is honest. Whatever it says,
/// every step is bounded, the driver comes to rest, the engine stays sound and no folio in use is touched; and once the
/// device is honest the two ends agree, the host gets what it wants, and nothing that is plugged is lost.
pub fn survive(bytes: &[u8]) {
    let (mode, rest) = bytes.split_first().map_or((0, bytes), |(mode, rest)| (*mode, rest));
    let fake_offline = if mode & 1 == 0 { FakeOffline::Folded } else { FakeOffline::Classic { rcu: true } };
    let force_big = mode & 6 == 6;
    let inherited = if mode & 8 == 0 { Inherited::Adopt } else { Inherited::UnplugAll };
    let settings = DriverSettings { force_big, inherited, ..DriverSettings::default() };
    let device = Hostile(Rc::new(RefCell::new(Device {
        script: Script { bytes: rest.to_vec(), at: 0, is_honest: false },
        blocks: (0..REGION / BLOCK).map(|block| mode & 16 != 0 && block % 5 == 0).collect(),
        requested: u64::from(mode >> 5) * 64 * MIB,
        told: false,
        requests: 0,
    })));
    let host = HostilePlatform::new(Membarrier::register().expect("membarrier")).expect("a platform");
    let engine = Engine::<_>::new(host, Config::new((4u64 << 30) >> 12)).expect("an engine");
    let policy = OnlinePolicy::Zone(Zone::Movable);
    let config = HotplugConfig { policy, fake_offline, ..HotplugConfig::default() };
    let mut hotplug: Hotplug<'_, _> = engine.hotplug(config).expect("hotplug");
    hotplug.boot(0..BOOT, 0).expect("boot memory");
    let mut owner = Owner::default();
    // A device that cannot be taken in hand is tried again until it can be.
    let mut driver = loop {
        if let Ok(driver) = Driver::probe(device.clone(), &mut hotplug, settings) {
            break driver;
        }
    };
    let mut wishes = [96, 3, 200, 0, 256, 64].into_iter().cycle();
    // The device lies.
    while !device.0.borrow().script.is_honest {
        rest_of(&mut driver, &mut hotplug, &mut owner, &device);
        let wish = wishes.next().unwrap_or(0);
        (device.0.borrow_mut().requested, device.0.borrow_mut().told) = (wish * BLOCK, true);
        owner.fill(&engine, 40, (wish % 3) as u32);
        driver.ask_again();
    }
    // It is honest. Nothing is pinned any more.
    owner.folios.clear();
    for wish in [256, 100, 0] {
        (device.0.borrow_mut().requested, device.0.borrow_mut().told) = (wish * BLOCK, true);
        driver.ask_again();
        let mut waits = 0;
        loop {
            let step = rest_of(&mut driver, &mut hotplug, &mut owner, &device);
            // In big-block mode: as many whole ones as fit.
            if step == Next::Reached {
                break;
            }
            if let Next::Later(_, Shortfall::Config(ConfigError::Changed(_))) = step {
                // It lied when it was taken in hand, so the driver began with what was not true.
                if let Removed::InUse(remains) = driver.remove_driver(&mut hotplug) {
                    remains.hand_over(&mut hotplug);
                }
                driver = Driver::probe(device.clone(), &mut hotplug, settings).expect("an honest device");
            }
            waits += 1;
            assert!(waits < WAITS, "{step:?}: {}", driver.status());
            assert!(!matches!(step, Next::Asleep(Shortfall::OtherMachine)), "{step:?}");
        }
        let unit = driver.geometry().sub_block();
        let plugged = device.0.borrow().plugged();
        assert_eq!(plugged, driver.status().plugged, "the two ends disagree");
        assert!(plugged.abs_diff(wish * BLOCK) < unit, "{plugged:#x} instead of {wish} blocks");
        // What is plugged is in use, and what is in use is plugged.
        assert_eq!(engine.free_pages(), BOOT + plugged / 4096);
        for block in hotplug.blocks().filter(|block| block.state == BlockState::Online) {
            for area in hotplug.pages(block.id).step_by(512) {
                let is_out = hotplug.is_fake_offline(area..area + 1).expect("a walker");
                let number = ((area << 12) - ADDR) / BLOCK;
                assert_eq!(device.0.borrow().blocks[number as usize], !is_out, "{}", Pfn(area));
            }
        }
    }
    assert_eq!((device.0.borrow().plugged(), hotplug.blocks().count()), (0, 0));
    assert_eq!(engine.free_pages(), BOOT);
}

/// Steps until the driver rests.
fn rest_of<'e>(
    driver: &mut Driver<'e, Hostile>,
    hotplug: &mut Hotplug<'e, HostilePlatform>,
    owner: &mut Owner<'e>,
    device: &Hostile,
) -> Next {
    for _ in 0..STEPS {
        device.0.borrow_mut().requests = 0;
        owner.asked = 0;
        let step = driver.step(hotplug, owner);
        owner.check();
        let requests = device.0.borrow().requests;
        assert!(requests <= REQUESTS, "{requests} requests in one step");
        assert!(owner.asked <= QUESTIONS, "{} questions to owners in one step", owner.asked);
        assert!(driver.status().plugged <= REGION, "{}", driver.status());
        if step != Next::Again {
            hotplug.engine().audit().expect("a sound machine");
            return step;
        }
    }
    hotplug.engine().audit().expect("a sound machine");
    // Only a wish that changes all the time may keep it going.
    assert!(!device.0.borrow().script.is_honest, "an honest device has kept it going: {}", driver.status());
    Next::Again
}
