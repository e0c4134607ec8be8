//! The driver: from the host's wish to requests, step by step.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;
use core::time::Duration;

use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{
    AddError, BlockError, BlockId, Busy, FakeError, Group, Hotplug, Listener, Migrate, OnlineTo, Veto,
};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::rcu::OutOfMemory;
use pagefold_engine::{Pfn, Platform, Zone};
use pagefold_virtio_mem_spec::{BlockState, Features, Request, RequestType};

use crate::backoff::Backoff;
use crate::channel::{Answer, Channel, ChannelError, interpret};
use crate::config::{ConfigError, Geometry, Limits, Mode, Region, check};
use crate::ends::Leftovers;
use crate::progress::{Progress, Shortfall, Status};
use crate::sync::{AtomicBool, RELAXED};
use crate::tracking::Tracking;
use crate::watch::Watch;

/// How a driver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where added blocks go online at once; `None` leaves that to others.
    pub online: Option<OnlineTo>,
    /// Whether to unplug memory that is online (Linux: `unplug_online`).
    pub unplug_online: bool,
    /// Use big-block mode in any case (Linux: `force_bbm`).
    pub force_big: bool,
    /// Bytes of a big block, if larger than it has to be (Linux: `bbm_block_size`); a power of two.
    pub big_block: Option<u64>,
    /// The node of the memory where the device says none.
    pub node: u8,
    /// What to do with blocks that are plugged already.
    pub leftovers: Leftovers,
    /// For the waits' chance.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            online: Some(OnlineTo::Policy),
            unplug_online: true,
            force_big: false,
            big_block: None,
            node: 0,
            leftovers: Leftovers::UnplugAll,
            seed: 0x70_66,
        }
    }
}

/// Why there is no driver. The device was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The device cannot be talked to.
    Channel(ChannelError),
    /// Its configuration makes no sense, or does not fit the machine.
    Config(ConfigError),
    /// No memory for the driver's tables.
    OutOfMemory,
}

impl From<ChannelError> for ProbeError {
    fn from(error: ChannelError) -> Self {
        ProbeError::Channel(error)
    }
}
impl From<ConfigError> for ProbeError {
    fn from(error: ConfigError) -> Self {
        ProbeError::Config(error)
    }
}
impl From<OutOfMemory> for ProbeError {
    fn from(_: OutOfMemory) -> Self {
        ProbeError::OutOfMemory
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProbeError::Channel(error) => write!(f, "{error}"),
            ProbeError::Config(error) => write!(f, "{error}"),
            ProbeError::OutOfMemory => f.write_str("no memory for the driver's tables: free some and retry"),
        }
    }
}
impl core::error::Error for ProbeError {}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// As much is plugged as the host wants, as far as whole sub-blocks can tell. Step again when the device's config
    /// changes.
    Reached,
    /// Something was done, and there is more: step again.
    Again,
    /// Step again after that time, or when the device's config or a block's state changes.
    Later(Duration, Shortfall),
    /// Step again when the device's config or a block's state changes. Time alone does not help.
    Asleep(Shortfall),
}

/// What stops a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The host's wish has changed.
    ConfigChanged,
    Nack,
    DeviceBusy,
    DeviceError,
    Malformed,
    Channel(ChannelError),
    Config(ConfigError),
    InUse(Busy),
    Held(pagefold_engine::hotplug::HeldPage),
    NoMemory,
    /// What is in use has nowhere to go.
    NoRoom,
    NoSpace,
    OfflineLimit,
}

impl Trouble {
    /// Something is in use, and no more is known.
    pub(crate) const IN_USE: Trouble = Trouble::InUse(Busy { pages: 0, unmovable: 0, near: Pfn(0) });
}

impl From<FakeError> for Trouble {
    fn from(error: FakeError) -> Self {
        match error {
            FakeError::Busy(busy) => Trouble::InUse(busy),
            FakeError::NoRoom(_) => Trouble::NoRoom,
            FakeError::Held(page) => Trouble::Held(page),
            FakeError::NoFrames | FakeError::BadRange => Trouble::NoMemory,
        }
    }
}

impl From<BlockError> for Trouble {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Busy(busy) => Trouble::InUse(busy),
            BlockError::NoRoom(_) => Trouble::NoRoom,
            BlockError::Veto(Veto::Held(page)) => Trouble::Held(page),
            BlockError::Veto(Veto::Refused(_)) | BlockError::State(_) | BlockError::NoBlock => {
                Trouble::IN_USE
            }
            BlockError::NoFrames => Trouble::NoMemory,
        }
    }
}

impl From<AddError> for Trouble {
    fn from(_: AddError) -> Self {
        Trouble::NoMemory
    }
}

/// NACKs in a row before the driver waits instead of asking again. Linux asks for ever.
const NACKS: u32 = 3;

/// What a driver works with: memory hotplug, and whoever moves folios.
pub(crate) struct Machine<'h, 'e, P: Platform, R: Protocol> {
    pub(crate) hotplug: &'h mut Hotplug<'e, P, R>,
    pub(crate) migrate: &'h mut dyn Migrate<'e, P, R>,
}

/// A virtio-mem driver.
pub struct Driver<'e, C: Channel> {
    pub(crate) channel: C,
    pub(crate) region: Region,
    pub(crate) geometry: Geometry,
    pub(crate) settings: Settings,
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) listener: Arc<dyn Listener + 'e>,
    pub(crate) group: Group,
    pub(crate) node: u8,
    pub(crate) limits: Limits,
    /// The config space has to be read before anything rests on `limits`.
    pub(crate) is_stale: bool,
    /// Memory was plugged before the driver came, and nothing has been done about it yet.
    pub(crate) leftovers: Option<Leftovers>,
    /// Where the current pass of unplugging stands.
    pub(crate) pass: Option<Pass>,
    pub(crate) left: [Progress; 2],
    backoff: Backoff,
    nacks: u32,
    shortfall: Option<Shortfall>,
}

/// A pass over all units, kind by kind, high to low.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) kind: usize,
    /// Units from here on have been looked at.
    pub(crate) end: u64,
}

impl<'e, C: Channel> Driver<'e, C> {
    /// Takes a device in hand. Nothing is plugged or unplugged before the first step.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn probe<P: Platform, R: Protocol>(
        mut channel: C,
        hotplug: &mut Hotplug<'e, P, R>,
        settings: Settings,
    ) -> Result<Self, ProbeError> {
        let config = channel.config()?;
        let (region, limits) = check(&config)?;
        let block_pages = hotplug.config().block_pages;
        let geometry = Geometry::new(
            region,
            hotplug.engine().pages(),
            block_pages,
            settings.force_big,
            settings.big_block,
        )?;
        let node = if channel.features().contains(Features::ACPI_PXM) {
            u8::try_from(config.node_id.get()).unwrap_or(settings.node)
        } else {
            settings.node
        };
        let tracking = Arc::new(Tracking::new(geometry)?);
        let listener: Arc<dyn Listener + 'e> = Arc::new(Watch {
            engine: hotplug.engine(),
            tracking: Arc::clone(&tracking),
            fake_offline: hotplug.config().fake_offline,
            dropped: AtomicBool::new(false),
        });
        let group = hotplug.group()?;
        hotplug.listen(Arc::clone(&listener))?;
        let mut units = 0..geometry.units;
        let is_known = units
            .any(|unit| geometry.memory_blocks(unit).any(|block| hotplug.block(BlockId(block)).is_some()));
        let leftovers = match (limits.plugged, is_known) {
            // The memory is in use: an earlier driver added it.
            (_, true) => Some(Leftovers::Adopt),
            (0, false) => None,
            _ => Some(settings.leftovers),
        };
        tracking.closed.store(leftovers.is_some(), RELAXED);
        Ok(Self {
            channel,
            region,
            geometry,
            settings,
            tracking,
            listener,
            group,
            node,
            limits,
            is_stale: true,
            leftovers,
            pass: None,
            left: [Progress::default(); 2],
            backoff: Backoff::new(settings.seed),
            nacks: 0,
            shortfall: None,
        })
    }

    /// Units and mode.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The group of its memory blocks.
    pub fn group(&self) -> Group {
        self.group
    }

    /// The NUMA node of its memory.
    pub fn node(&self) -> u8 {
        self.node
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        Status {
            requested: self.limits.requested,
            plugged: self.tracking.plugged_bytes(),
            usable: self.limits.usable,
            shortfall: self.shortfall,
        }
    }

    /// The channel, for whoever takes interrupts.
    pub fn channel(&mut self) -> &mut C {
        &mut self.channel
    }

    /// Whether a block's state has changed since the last step, so that one may do more.
    pub fn is_woken(&self) -> bool {
        self.tracking.woken.load(RELAXED)
    }

    /// Steps until there is nothing more to do for now, or `go_on` says no.
    pub fn work<P: Platform, R: Protocol>(
        &mut self,
        hotplug: &mut Hotplug<'e, P, R>,
        migrate: &mut dyn Migrate<'e, P, R>,
        mut go_on: impl FnMut(Status) -> bool,
    ) -> Step {
        loop {
            let step = self.step(hotplug, migrate);
            if step != Step::Again || !go_on(self.status()) {
                return step;
            }
        }
    }

    /// One step: one memory block's worth of plugging or unplugging at most. Must not be called inside a section.
    pub fn step<P: Platform, R: Protocol>(
        &mut self,
        hotplug: &mut Hotplug<'e, P, R>,
        migrate: &mut dyn Migrate<'e, P, R>,
    ) -> Step {
        self.tracking.woken.store(false, RELAXED);
        let machine = &mut Machine { hotplug, migrate };
        let fresh = self.refresh_if_told();
        let is_fresh = fresh == Ok(true);
        let done = fresh.and_then(|_| self.try_step(machine));
        if done.is_ok() {
            self.nacks = 0;
        }
        // Only in a row of steps that went well is the config space taken as unchanged. Before a rest that time does not
        // end it is read once more, in case a change went by unnoticed.
        self.is_stale = done != Ok(true);
        let rests = matches!(done, Ok(false) | Err(Trouble::NoSpace | Trouble::OfflineLimit));
        if rests && !is_fresh {
            return Step::Again;
        }
        let wait = |driver: &mut Self, why| Step::Later(driver.backoff.wait(), why);
        let step = match done {
            Ok(true) => Step::Again,
            Ok(false) => {
                self.backoff.reset();
                Step::Reached
            }
            Err(Trouble::ConfigChanged) => Step::Again,
            Err(Trouble::Nack) => {
                self.nacks += 1;
                if self.nacks < NACKS { Step::Again } else { wait(self, Shortfall::DeviceRefused) }
            }
            Err(Trouble::DeviceBusy) => wait(self, Shortfall::DeviceBusy),
            Err(Trouble::DeviceError) => wait(self, Shortfall::DeviceError),
            Err(Trouble::Malformed) => wait(self, Shortfall::Malformed),
            Err(Trouble::Channel(error)) => wait(self, Shortfall::Channel(error)),
            Err(Trouble::Config(error)) => wait(self, Shortfall::Config(error)),
            Err(Trouble::InUse(_)) => {
                let [normal, movable] = self.left;
                wait(self, Shortfall::InUse { normal, movable })
            }
            Err(Trouble::Held(page)) => wait(self, Shortfall::Held(page)),
            Err(Trouble::NoMemory) => wait(self, Shortfall::NoMemory),
            Err(Trouble::NoRoom) => wait(self, Shortfall::NoRoom),
            Err(Trouble::NoSpace) => Step::Asleep(Shortfall::NoSpace),
            Err(Trouble::OfflineLimit) => Step::Asleep(Shortfall::OfflineLimit),
        };
        self.shortfall = match step {
            Step::Later(_, why) | Step::Asleep(why) => Some(why),
            Step::Reached => None,
            Step::Again => self.shortfall,
        };
        if !matches!(step, Step::Again) {
            self.pass = None;
        }
        step
    }

    /// Whether something was done, and more may be to do.
    fn try_step<P: Platform, R: Protocol>(
        &mut self,
        machine: &mut Machine<'_, 'e, P, R>,
    ) -> Result<bool, Trouble> {
        if self.leftovers.is_some() {
            self.take_over(machine)?;
            return Ok(true);
        }
        if let Some(unit) = self.tracking.doubtful() {
            self.settle(machine, unit)?;
            self.tracking.set_doubtful(None);
            return Ok(true);
        }
        if self.clean_up()? {
            return Ok(true);
        }
        let (requested, plugged) = (self.limits.requested, self.tracking.plugged_bytes());
        let sub_block = self.geometry.sub_block();
        if requested >= plugged + sub_block {
            let subs = (requested - plugged) / sub_block;
            match self.geometry.mode {
                Mode::SubBlock { .. } => self.plug_sub_blocks(machine, subs)?,
                Mode::BigBlock { .. } => self.plug_big_block(machine)?,
            }
            return Ok(true);
        }
        if plugged > requested {
            // What the host wants rounded up to whole sub-blocks stays: unplugging never goes below it.
            let subs = (plugged - requested) / sub_block;
            if subs > 0 {
                return match self.geometry.mode {
                    Mode::SubBlock { .. } => self.unplug_sub_blocks(machine, subs),
                    Mode::BigBlock { .. } => self.unplug_big_block(machine),
                };
            }
        }
        self.pass = None;
        // A block may have stayed behind, empty.
        self.remove_empty(machine)
    }

    /// Reads the configuration again if the device has said that it changed, or if it has to be read in any case. Whether
    /// it was.
    fn refresh_if_told(&mut self) -> Result<bool, Trouble> {
        // The flag first: a change that comes after it sets it again.
        if !self.channel.config_changed() && !self.is_stale {
            return Ok(false);
        }
        let config = self.channel.config().map_err(Trouble::Channel)?;
        let (region, limits) = check(&config).map_err(Trouble::Config)?;
        for (field, now, before) in [
            ("block size", region.block_size, self.region.block_size),
            ("address", region.addr, self.region.addr),
            ("region size", region.size, self.region.size),
        ] {
            if now != before {
                return Err(Trouble::Config(ConfigError::Changed(field)));
            }
        }
        if limits.requested != self.limits.requested {
            self.backoff.reset();
            self.pass = None;
        }
        self.limits = limits;
        Ok(true)
    }

    /// Nothing, or [`Trouble::ConfigChanged`] if the host has changed its mind.
    pub(crate) fn heed(&mut self) -> Result<(), Trouble> {
        if self.channel.config_changed() { Err(Trouble::ConfigChanged) } else { Ok(()) }
    }

    // ---- requests ----------------------------------------------------------------------------------------------

    fn ask_once(&mut self, kind: RequestType, addr: u64, blocks: u16) -> Result<Answer, Trouble> {
        let response = self.channel.request(Request::new(kind, addr, blocks)).map_err(Trouble::Channel)?;
        Ok(interpret(kind, &response))
    }

    /// A plain request, of any number of device blocks. If one of its parts fails, those before it are undone.
    fn ask(&mut self, kind: RequestType, bytes: Range<u64>) -> Result<(), Trouble> {
        let block = self.geometry.device_block;
        let most = block * u64::from(u16::MAX);
        let mut addr = bytes.start;
        while addr < bytes.end {
            let end = bytes.end.min(addr.saturating_add(most));
            // At most u16::MAX by the line above.
            let blocks = ((end - addr) / block) as u16;
            let failed = match self.ask_once(kind, addr, blocks) {
                Ok(Answer::Ack) => None,
                Ok(Answer::Nack) => Some(Trouble::Nack),
                Ok(Answer::Busy) => Some(Trouble::DeviceBusy),
                Ok(Answer::Error) => Some(Trouble::DeviceError),
                Ok(Answer::State(_) | Answer::Malformed) => Some(Trouble::Malformed),
                Err(trouble) => Some(trouble),
            };
            if let Some(trouble) = failed {
                let undo = match kind {
                    RequestType::Plug => RequestType::Unplug,
                    _ => RequestType::Plug,
                };
                let is_clear = matches!(trouble, Trouble::Nack | Trouble::DeviceBusy);
                let is_undone = addr == bytes.start || self.ask(undo, bytes.start..addr).is_ok();
                if !is_clear || !is_undone {
                    self.tracking.set_doubtful(self.geometry.unit_of(bytes.start >> PAGE_SHIFT));
                }
                return Err(trouble);
            }
            addr = end;
        }
        Ok(())
    }

    /// Plugs sub-blocks, and notes it.
    pub(crate) fn plug(&mut self, unit: u64, subs: Range<u64>) -> Result<(), Trouble> {
        let bytes = self.geometry.address(unit, subs.start)..self.geometry.address(unit, subs.end);
        self.ask(RequestType::Plug, bytes)?;
        self.tracking.set_plugged(unit, subs, true);
        Ok(())
    }

    /// Unplugs sub-blocks, and notes it.
    pub(crate) fn unplug(&mut self, unit: u64, subs: Range<u64>) -> Result<(), Trouble> {
        let bytes = self.geometry.address(unit, subs.start)..self.geometry.address(unit, subs.end);
        self.ask(RequestType::Unplug, bytes)?;
        self.tracking.set_plugged(unit, subs, false);
        Ok(())
    }

    /// Unplugs bytes that no unit counts.
    pub(crate) fn give_back(&mut self, bytes: Range<u64>) -> Result<(), Trouble> {
        self.ask(RequestType::Unplug, bytes)
    }

    /// Plugs bytes that no unit counts.
    pub(crate) fn take(&mut self, bytes: Range<u64>) -> Result<(), Trouble> {
        self.ask(RequestType::Plug, bytes)
    }

    /// Unplugs everything.
    pub(crate) fn unplug_all(&mut self) -> Result<(), Trouble> {
        match self.ask_once(RequestType::UnplugAll, 0, 0)? {
            Answer::Ack => Ok(()),
            Answer::Busy => Err(Trouble::DeviceBusy),
            Answer::Error => Err(Trouble::DeviceError),
            Answer::Nack | Answer::State(_) | Answer::Malformed => Err(Trouble::Malformed),
        }
    }

    /// What the device says of `bytes`.
    pub(crate) fn ask_state(&mut self, bytes: Range<u64>) -> Result<BlockState, Trouble> {
        let block = self.geometry.device_block;
        let most = block * u64::from(u16::MAX);
        let mut found = None;
        let mut addr = bytes.start;
        while addr < bytes.end {
            let end = bytes.end.min(addr.saturating_add(most));
            let state = match self.ask_once(RequestType::State, addr, ((end - addr) / block) as u16)? {
                Answer::State(state) => state,
                Answer::Error => return Err(Trouble::DeviceError),
                _ => return Err(Trouble::Malformed),
            };
            if state == BlockState::Mixed || found.is_some_and(|found| found != state) {
                return Ok(BlockState::Mixed);
            }
            found = Some(state);
            addr = end;
        }
        Ok(found.unwrap_or(BlockState::Unplugged))
    }

    // ---- for both modes ----------------------------------------------------------------------------------------

    /// The pass of unplugging that is under way, or a new one.
    pub(crate) fn take_pass(&mut self) -> Pass {
        self.pass.take().unwrap_or_else(|| {
            self.left = Default::default();
            Pass { kind: 0, end: self.tracking.next() }
        })
    }

    /// Notes a sub-block that could not be unplugged.
    pub(crate) fn note_left(&mut self, zone: Zone, trouble: Trouble) {
        let [normal, movable] = &mut self.left;
        let left = match zone {
            Zone::Normal => normal,
            Zone::Movable => movable,
        };
        match trouble {
            Trouble::InUse(busy) if busy.unmovable > 0 => left.pinned += 1,
            _ => left.busy += 1,
        }
    }

    /// Bytes that may be added and not online: as Linux, 1 GiB, two memory blocks or two big blocks.
    pub(crate) fn offline_limit(&self) -> u64 {
        (1u64 << 30).max(2 * self.geometry.memory_block).max(2 * self.geometry.unit())
    }
}

impl<C: Channel> fmt::Debug for Driver<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("geometry", &self.geometry)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
