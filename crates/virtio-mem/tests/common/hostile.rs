//! A device that says anything: its config space and its answers are made of arbitrary bytes.

use pagefold_engine::hotplug::{Hotplug, HotplugConfig, OnlinePolicy, Unmovable};
use pagefold_engine::{Config as Machine, Engine, Zone};
use pagefold_host::{Host, Membarrier};
use pagefold_virtio_mem::{Channel, ChannelError, Driver, Settings};
use pagefold_virtio_mem_spec::{Config, Features, Request, Response};

/// The bytes it says, one after the other; zeros when they run out.
pub struct Hostile<'b> {
    bytes: &'b [u8],
    features: Features,
    config: Config,
}

impl<'b> Hostile<'b> {
    fn new(mut bytes: &'b [u8]) -> Self {
        let features = Features::from_bits_truncate(u64::from(take(&mut bytes)));
        // One that gets as far as the requests, before it begins to change.
        let config = Config {
            block_size: (2u64 << 20).into(),
            addr: (1u64 << 30).into(),
            region_size: (1u64 << 30).into(),
            usable_region_size: (1u64 << 30).into(),
            requested_size: (u64::from(take(&mut bytes)) << 21).into(),
            plugged_size: (u64::from(take(&mut bytes) & 3) << 21).into(),
            ..Config::default()
        };
        Self { bytes, features, config }
    }
}

fn take(bytes: &mut &[u8]) -> u8 {
    let Some((first, rest)) = bytes.split_first() else { return 0 };
    *bytes = rest;
    *first
}

impl Channel for Hostile<'_> {
    fn features(&self) -> Features {
        self.features
    }
    fn config(&mut self) -> Result<Config, ChannelError> {
        let field = match take(&mut self.bytes) {
            0 => &mut self.config.block_size,
            1 => &mut self.config.addr,
            2 => &mut self.config.region_size,
            3 => &mut self.config.usable_region_size,
            4 => &mut self.config.requested_size,
            5 => &mut self.config.plugged_size,
            6 => return Err(ChannelError::NoAnswer),
            _ => return Ok(self.config),
        };
        let (value, shift) = (take(&mut self.bytes), take(&mut self.bytes) % 64);
        *field = u64::from(value).rotate_left(shift.into()).into();
        Ok(self.config)
    }
    fn config_changed(&mut self) -> bool {
        take(&mut self.bytes) & 7 == 1
    }
    fn request(&mut self, _: Request) -> Result<Response, ChannelError> {
        let kind = match take(&mut self.bytes) {
            kind @ 0..8 => u16::from(kind),
            200.. => 0xffff,
            100.. => return Err(ChannelError::Short(take(&mut self.bytes).into())),
            _ => 0,
        };
        let state = u16::from(take(&mut self.bytes) % 5);
        Ok(Response { kind: kind.into(), state: state.into(), ..Response::default() })
    }
}

/// Lets a driver live with that device for a while. Whatever the device says, the driver does not panic, does not step
/// for ever, and the engine stays sound.
pub fn survive(bytes: &[u8]) {
    let host = Host::<_, [u64; 7]>::new(Membarrier::register().expect("membarrier")).expect("a platform");
    let engine = Engine::<_>::new(host, Machine::new((4u64 << 30) >> 12)).expect("an engine");
    let policy = OnlinePolicy::Zone(Zone::Movable);
    let mut hotplug: Hotplug<'_, _> =
        engine.hotplug(HotplugConfig { policy, ..HotplugConfig::default() }).expect("hotplug");
    hotplug.boot(0..32_768, 0).expect("boot memory");
    let Ok(mut driver) = Driver::probe(Hostile::new(bytes), &mut hotplug, Settings::default()) else {
        return;
    };
    for _ in 0..64 {
        let _ = driver.step(&mut hotplug, &mut Unmovable);
        engine.audit().expect("a sound machine");
    }
    let status = driver.status();
    assert!(status.plugged <= 1 << 30, "{status}");
}
