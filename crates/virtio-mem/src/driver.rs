//! The driver: from the host's wish to requests, step by step.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use pagefold_engine::hotplug::{
    BlockError, BlockId, Busy, FakeError, Group, Hotplug, Listener, Migrate, OnlineTo, Veto,
};
use pagefold_engine::{AddError, Engine, OutOfMemory, Pfn, Platform, Zone};
use pagefold_virtio_mem_spec::Features;

use crate::adopt::{Leftovers, Settling, Survey};
use crate::backoff::Backoff;
use crate::channel::{Channel, ChannelError};
use crate::config::{ConfigError, Geometry, Limits, Mode, Region, check};
use crate::progress::{Progress, Shortfall, Status};
use crate::refusals::{Asking, Questions, Refusals};
use crate::requests::STEP_REQUESTS;
use crate::sync::RELAXED;
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
    /// As many questions were asked as a step may ask.
    Spent,
    Nack,
    DeviceBusy,
    DeviceError,
    Malformed,
    Channel(ChannelError),
    Config(ConfigError),
    /// The device has so many bytes plugged by its own count, and we know of others.
    Miscounted(u64),
    InUse(Busy),
    Held(pagefold_engine::hotplug::HeldPage),
    /// Somebody else who watches over memory says no.
    Refused(&'static str),
    NoMemory,
    /// What is in use has nowhere to go.
    NoRoom,
    NoSpace,
    OfflineLimit,
    /// Owners were asked as often as a step may; most of what they were asked for has moved.
    Paused,
}

impl Trouble {
    /// Something is in use, and no more is known.
    pub(crate) const IN_USE: Trouble = Trouble::InUse(Busy { pages: 0, unmovable: 0, near: Pfn(0) });

    /// Something was refused before and still stands, so nobody was asked.
    pub(crate) const PINNED: Trouble = Trouble::InUse(Busy { pages: 1, unmovable: 1, near: Pfn(0) });

    /// One part of memory stays, and another part may go all the same.
    pub(crate) fn is_stuck(&self) -> bool {
        matches!(self, Trouble::InUse(_) | Trouble::Held(_) | Trouble::Refused(_))
    }
}

impl From<FakeError> for Trouble {
    fn from(error: FakeError) -> Self {
        match error {
            FakeError::Busy(busy) => Trouble::InUse(busy),
            FakeError::NoRoom(_) => Trouble::NoRoom,
            FakeError::Held(page) => Trouble::Held(page),
            FakeError::NotFakeOffline(_) | FakeError::AlreadyFakeOffline(_) => {
                Trouble::Refused("a part of a memory block is not in the state it was left in")
            }
            FakeError::OutOfMemory | FakeError::BadRange => Trouble::NoMemory,
        }
    }
}

impl From<BlockError> for Trouble {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Busy(busy) => Trouble::InUse(busy),
            BlockError::NoRoom(_) => Trouble::NoRoom,
            BlockError::Held(page) => Trouble::Held(page),
            BlockError::Veto(Veto::Refused(reason)) => Trouble::Refused(reason),
            BlockError::BadPart(_) => {
                Trouble::Refused("another listener says what cannot be of a memory block")
            }
            BlockError::State(_) | BlockError::NoBlock => {
                Trouble::Refused("a memory block is not in the state it was left in")
            }
            BlockError::OutOfMemory => Trouble::NoMemory,
        }
    }
}

impl From<AddError> for Trouble {
    fn from(error: AddError) -> Self {
        match error {
            AddError::OutOfMemory => Trouble::NoMemory,
            AddError::Overlap => Trouble::Refused("somebody else has added memory in the device's region"),
            AddError::Misaligned | AddError::OutOfRange => {
                Trouble::Refused("a memory block of the device does not fit the machine")
            }
        }
    }
}

/// Runs of sub-blocks that one step plugs or unplugs at most, and so a bound of its requests.
pub(crate) const STEP_RUNS: u64 = 64;

/// Questions to owners in one step: each may cost a copy. More than the folios of a sub-block of 2 MiB in as many passes as
/// there are by default, so that one sub-block is never too much for a step.
pub(crate) const STEP_QUESTIONS: u64 = 4096;

/// Steps in a row that came to nothing before the driver waits instead of trying again at once. (After a NACK, Linux asks
/// for ever.)
const NACKS: u32 = 3;
const CHANGES: u32 = 8;
const QUESTIONS: u32 = 256;

/// Steps of one [`Driver::work`]: many times what a device that keeps its word can make necessary.
const WORK_STEPS: u64 = 4096;
const WORK_STEPS_A_UNIT: u64 = 256;

/// What a driver works with: memory hotplug, and the code that moves folios.
pub(crate) struct Machine<'h, 'e, P: Platform> {
    pub(crate) hotplug: &'h mut Hotplug<'e, P>,
    pub(crate) migrate: &'h mut dyn Migrate<'e, P>,
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
    /// The last step did something that the config space may have changed by.
    pub(crate) reads_again: bool,
    /// What is not known of what is plugged.
    pub(crate) survey: Option<Survey>,
    /// Where settling the doubtful unit stands.
    pub(crate) settling: Option<Settling>,
    /// The device was asked about everything since the two ends did not agree, and before the driver waited.
    has_surveyed: bool,
    /// Where the current pass of unplugging stands.
    pub(crate) pass: Option<Pass>,
    pub(crate) left: [Progress; 2],
    pub(crate) refusals: Refusals,
    /// Memory blocks that are to be online and could not be brought there.
    pub(crate) owed: Vec<(BlockId, OnlineTo)>,
    pub(crate) requests_left: u32,
    pub(crate) questions: Questions,
    /// Steps in a row that came to nothing.
    stalls: u32,
    /// The engine that the memory belongs to, by its address.
    engine: usize,
    backoff: Backoff,
    shortfall: Option<Shortfall>,
}

/// A pass over all units, kind by kind, high to low. One unit a step at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) kind: usize,
    /// Units from here on have been looked at.
    pub(crate) end: u64,
    /// The unit that is being looked at, if it takes several steps.
    pub(crate) within: Option<Within>,
    /// Why something stayed plugged that was looked at.
    pub(crate) stuck: Option<Trouble>,
}

/// How far a pass is in one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Within {
    pub(crate) unit: u64,
    /// Sub-blocks from here on have been looked at.
    pub(crate) end: u64,
    /// All of it at once was tried.
    pub(crate) tried_whole: bool,
    /// Steps that ended while owners were still being asked.
    pub(crate) pauses: u64,
}

impl<'e, C: Channel> Driver<'e, C> {
    /// Starts to drive a device. Nothing is plugged or unplugged before the first step.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn probe<P: Platform>(
        mut channel: C,
        hotplug: &mut Hotplug<'e, P>,
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
            let node = config.node_id.get();
            u8::try_from(node).map_err(|_| ConfigError::Node(node))?
        } else {
            settings.node
        };
        let tracking = Arc::new(Tracking::new(geometry)?);
        let refusals = Refusals::new(geometry)?;
        let listener: Arc<dyn Listener + 'e> = Arc::new(Watch { tracking: Arc::clone(&tracking) });
        let group = hotplug.group()?;
        hotplug.listen(Arc::clone(&listener))?;
        let mut units = 0..geometry.units;
        let is_known = units
            .any(|unit| geometry.memory_blocks(unit).any(|block| hotplug.block(BlockId(block)).is_some()));
        let mut driver = Self {
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
            reads_again: false,
            survey: None,
            settling: None,
            has_surveyed: false,
            pass: None,
            left: [Progress::default(); 2],
            refusals,
            owed: Vec::new(),
            requests_left: STEP_REQUESTS,
            questions: Questions::default(),
            stalls: 0,
            engine: address_of(hotplug.engine()),
            backoff: Backoff::new(settings.seed),
            shortfall: None,
        };
        let survey = match (limits.plugged, is_known, settings.leftovers) {
            (0, false, _) => None,
            (_, false, Leftovers::UnplugAll) => Some(Survey::UnplugAll),
            // Also where the memory is in use: an earlier driver added it.
            (_, true, _) | (_, false, Leftovers::Adopt) => Some(driver.all_units()),
        };
        if let Some(survey) = survey {
            driver.begin_survey(survey);
        }
        Ok(driver)
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

    /// The channel. It is the driver's alone to ask by: what somebody else plugs or unplugs the driver would not know.
    pub fn channel(&self) -> &C {
        &self.channel
    }

    /// Owners may move now what they refused before, or have given back what they could not move, in a way that no
    /// reference tells. All of them are asked again, by the step that is due now.
    pub fn ask_again(&mut self) {
        self.refusals.clear();
        self.backoff.reset();
        self.tracking.woken.store(true, RELAXED);
    }

    /// Whether a block's state has changed since the last step, so that one may do more.
    pub fn is_woken(&self) -> bool {
        self.tracking.woken.load(RELAXED)
    }

    /// Steps until there is nothing more to do for now, or `go_on` says no. It returns [`Step::Again`] also when a host
    /// that keeps changing its mind has made it do many times the work there is.
    pub fn work<P: Platform>(
        &mut self,
        hotplug: &mut Hotplug<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
        mut go_on: impl FnMut(Status) -> bool,
    ) -> Step {
        for _ in 0..WORK_STEPS + WORK_STEPS_A_UNIT * self.geometry.units {
            let step = self.step(hotplug, migrate);
            if step != Step::Again || !go_on(self.status()) {
                return step;
            }
        }
        Step::Again
    }

    /// One step. Whatever the device says, or does not say, it makes a bounded number of requests: as many as there are
    /// sub-blocks in a memory block, and a few hundred questions where the two ends may not agree. It asks owners a few thousand times at most, and those who will never move theirs once. (In big-block mode: as often
    /// as a big block has pages, times [`HotplugConfig::passes`](pagefold_engine::HotplugConfig), since such a block
    /// goes in one piece or not at all.)
    ///
    /// Must not be called inside a section. `hotplug` is that of the machine the driver was probed for.
    pub fn step<P: Platform>(
        &mut self,
        hotplug: &mut Hotplug<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
    ) -> Step {
        if !self.is_of(hotplug.engine()) {
            return Step::Asleep(Shortfall::OtherMachine);
        }
        self.tracking.woken.store(false, RELAXED);
        self.requests_left = STEP_REQUESTS;
        self.questions = Questions::new(STEP_QUESTIONS);
        self.reads_again = false;
        let machine = &mut Machine { hotplug, migrate };
        let fresh = self.refresh_if_told();
        let is_fresh = fresh == Ok(true);
        let done = fresh.and_then(|_| self.try_step(machine, is_fresh));
        // Only in a row of steps that went well is the config space taken as unchanged. Before a rest that time does not
        // end it is read once more, in case a change went by unnoticed.
        self.is_stale = self.reads_again || done != Ok(true);
        let rests = matches!(done, Ok(false) | Err(Trouble::NoSpace | Trouble::OfflineLimit));
        if rests && !is_fresh {
            return Step::Again;
        }
        let step = self.judge(done);
        self.shortfall = match step {
            Step::Later(_, why) | Step::Asleep(why) => Some(why),
            Step::Reached => None,
            Step::Again => self.shortfall,
        };
        // Where what is in use found no room, the next attempt goes on behind it: others may need none, or less at a time.
        if !matches!(step, Step::Again | Step::Later(_, Shortfall::NoRoom)) {
            self.pass = None;
        }
        if step != Step::Again {
            // After a rest the two ends are compared anew.
            self.has_surveyed = false;
        }
        step
    }

    /// What is to be done about what a step came to.
    fn judge(&mut self, done: Result<bool, Trouble>) -> Step {
        let again = |driver: &mut Self, times: u32, why| {
            driver.stalls += 1;
            (driver.stalls < times, why)
        };
        let (tries_again, why) = match done {
            Ok(true) => (true, Shortfall::NoMemory),
            Ok(false) => {
                self.stalls = 0;
                self.backoff.reset();
                return Step::Reached;
            }
            Err(Trouble::Paused) => again(self, QUESTIONS, Shortfall::NoRoom),
            Err(Trouble::ConfigChanged) => again(self, CHANGES, Shortfall::Unsteady),
            Err(Trouble::Nack) => again(self, NACKS, Shortfall::DeviceRefused),
            Err(Trouble::Spent) => again(self, QUESTIONS, Shortfall::Malformed),
            Err(Trouble::NoSpace) => return Step::Asleep(Shortfall::NoSpace),
            Err(Trouble::OfflineLimit) => return Step::Asleep(Shortfall::OfflineLimit),
            Err(Trouble::DeviceBusy) => (false, Shortfall::DeviceBusy),
            Err(Trouble::DeviceError) => (false, Shortfall::DeviceError),
            Err(Trouble::Malformed) => (false, Shortfall::Malformed),
            Err(Trouble::Channel(error)) => (false, Shortfall::Channel(error)),
            Err(Trouble::Config(error)) => (false, Shortfall::Config(error)),
            Err(Trouble::Miscounted(device)) => {
                (false, Shortfall::Miscounted { device, driver: self.tracking.plugged_bytes() })
            }
            Err(Trouble::InUse(_)) => {
                let [normal, movable] = self.left;
                (false, Shortfall::InUse { normal, movable })
            }
            Err(Trouble::Held(page)) => (false, Shortfall::Held(page)),
            Err(Trouble::Refused(reason)) => (false, Shortfall::Refused(reason)),
            Err(Trouble::NoMemory) => (false, Shortfall::NoMemory),
            Err(Trouble::NoRoom) => (false, Shortfall::NoRoom),
        };
        if done.is_ok() || !tries_again {
            self.stalls = 0;
        }
        if tries_again { Step::Again } else { Step::Later(self.backoff.wait(), why) }
    }

    /// Whether something was done, and more may be to do.
    fn try_step<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
        is_fresh: bool,
    ) -> Result<bool, Trouble> {
        if let Some(unit) = self.tracking.doubtful() {
            self.settle(machine, unit)?;
            return Ok(true);
        }
        if let Some(survey) = self.survey {
            self.go_on_surveying(machine, survey)?;
            return Ok(true);
        }
        let is_miscounted = is_fresh && self.limits.plugged != self.tracking.plugged_bytes();
        if is_miscounted && !self.has_surveyed {
            self.has_surveyed = true;
            self.begin_survey(self.all_units());
            return Ok(true);
        }
        if self.clean_up(machine)? {
            return Ok(true);
        }
        let owed = self.bring_online(machine);
        if owed == Ok(true) {
            return Ok(true);
        }
        let (requested, plugged) = (self.limits.requested, self.tracking.plugged_bytes());
        let sub_block = self.geometry.sub_block();
        if requested >= plugged.saturating_add(sub_block) {
            // Without memory to use what is plugged, more is of no use.
            owed?;
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
                match self.geometry.mode {
                    Mode::SubBlock { .. } => self.unplug_sub_blocks(machine, subs)?,
                    Mode::BigBlock { .. } => self.unplug_big_block(machine)?,
                }
                return Ok(true);
            }
        }
        self.pass = None;
        // A block may have stayed behind, empty.
        if self.remove_empty(machine)? {
            return Ok(true);
        }
        owed?;
        if is_miscounted { Err(Trouble::Miscounted(self.limits.plugged)) } else { Ok(false) }
    }

    /// Brings a memory block online that should be. Whether there was one. Without memory for that it is tried again, before
    /// anything more is plugged.
    pub(crate) fn bring_online<P: Platform>(
        &mut self,
        machine: &mut Machine<'_, 'e, P>,
    ) -> Result<bool, Trouble> {
        let Some(&(block, to)) = self.owed.last() else { return Ok(false) };
        if let Err(error @ BlockError::OutOfMemory) = machine.hotplug.online(block, to) {
            return Err(error.into());
        }
        // It is online; or it is gone, or somebody else has a say in it: then it is offline as others are.
        self.owed.pop();
        Ok(true)
    }

    /// Reads the configuration again if the device has said that it changed, or if it has to be read in any case. Whether
    /// it was.
    fn refresh_if_told(&mut self) -> Result<bool, Trouble> {
        // The flag first: a change that comes after it sets it again.
        if !self.channel.config_changed() && !self.is_stale {
            return Ok(false);
        }
        self.read_config()?;
        Ok(true)
    }

    fn read_config(&mut self) -> Result<(), Trouble> {
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
            self.refusals.clear();
        }
        self.limits = limits;
        Ok(())
    }

    /// Nothing, or [`Trouble::ConfigChanged`] if the host has changed its mind. An interrupt alone does not say so: a device
    /// may send as many as it likes.
    pub(crate) fn heed(&mut self) -> Result<(), Trouble> {
        if !self.channel.config_changed() {
            return Ok(());
        }
        let before = self.limits.requested;
        self.read_config()?;
        if self.limits.requested == before { Ok(()) } else { Err(Trouble::ConfigChanged) }
    }

    /// Whether `engine` is the one whose memory this driver looks after.
    pub(crate) fn is_of<P: Platform>(&self, engine: &Engine<P>) -> bool {
        self.engine == address_of(engine)
    }

    /// Asks owners, and notes who refuses.
    pub(crate) fn asking<'m, P: Platform>(
        questions: &'m mut Questions,
        refusals: &'m mut Refusals,
        owners: &'m mut dyn Migrate<'e, P>,
    ) -> Asking<'m, 'e, P> {
        Asking { owners, refusals, questions }
    }

    // ---- for both modes ----------------------------------------------------------------------------------------

    /// The pass of unplugging that is under way, or a new one.
    pub(crate) fn take_pass(&mut self) -> Pass {
        self.pass.take().unwrap_or_else(|| {
            self.left = Default::default();
            Pass { kind: 0, end: self.tracking.next(), within: None, stuck: None }
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

/// What tells engines apart: a borrowed engine stays where it is.
fn address_of<P: Platform>(engine: &Engine<P>) -> usize {
    core::ptr::from_ref(engine).addr()
}

impl<C: Channel> fmt::Debug for Driver<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("geometry", &self.geometry)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
