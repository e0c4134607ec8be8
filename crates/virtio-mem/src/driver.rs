//! The driver: one step at a time from what is plugged to what the host asked for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use pagefold_engine::hotplug::{Group, Hotplug, Listener, Migrate};
use pagefold_engine::{Engine, Platform};
use pagefold_virtio_mem_spec::Features;

use crate::channel::Channel;
use crate::config::{ConfigError, check};
use crate::context::{Adder, Context};
use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::link::{Link, STEP_REQUESTS};
use crate::owners::{Owners, Refusals};
use crate::pace::Pace;
use crate::probe::{DriverSettings, Inherited, ProbeError};
use crate::status::{Next, Shortfall, Status};
use crate::stop::Stop;
use crate::survey::{self, Survey};
use crate::units::Units;

/// Steps of one [`Driver::work`]: many times what a device that keeps to the specification can make necessary.
const WORK_STEPS: u64 = 4096;
const WORK_STEPS_A_UNIT: u64 = 256;

/// A virtio-mem driver.
///
/// It has no thread, no clock and no lock: the kernel calls [`step`](Self::step) when [`Next`] says so, from a thread that
/// may wait. What says nothing of its context may be called from any.
pub struct Driver<'e, C: Channel> {
    pub(crate) link: Link<C>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) units: Units,
    pub(crate) listener: Arc<dyn Listener + 'e>,
    adder: Adder,
    owners: Owners,
    /// What is left to find out of what is plugged.
    survey: Option<Survey>,
    /// Memory of an earlier driver lies where the device could not be asked about it: it is asked when more is usable.
    has_unreached: bool,
    /// The driver has made a survey since it waited, because the two ends did not count the same.
    has_surveyed: bool,
    pace: Pace,
    shortfall: Option<Shortfall>,
    /// The address of the engine that the memory belongs to, which tells it from others: a borrowed engine does not move.
    engine: usize,
}

impl<'e, C: Channel> Driver<'e, C> {
    /// Begins to drive a device, and registers a listener at `hotplug`. Nothing is plugged or unplugged before the first
    /// step. `Config::pages` of the engine must cover the device's region, or as much of it as is to be used.
    ///
    /// Context: takes heap memory.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn probe<P: Platform>(
        mut channel: C,
        hotplug: &mut Hotplug<'e, P>,
        settings: DriverSettings,
    ) -> Result<Self, ProbeError> {
        let config = channel.config()?;
        let (region, limits) = check(&config)?;
        let (pages, block_pages) = (hotplug.engine().pages(), hotplug.config().block_pages);
        let geometry = Geometry::new(region, pages, block_pages, settings.force_big, settings.big_block)?;
        let node = if channel.features().contains(Features::ACPI_PXM) {
            let node = config.node_id.get();
            u8::try_from(node).map_err(|_| ConfigError::Node(node))?
        } else {
            settings.node
        };
        let gate = Arc::new(Gate::default());
        let units = Units::new(geometry, Arc::clone(&gate), settings.unplug_online)?;
        let owners = Owners::new(Refusals::new(geometry)?);
        let listener = units.listener();
        let adder = Adder { node, group: hotplug.group()?, online: settings.online, owed: Vec::new() };
        hotplug.listen(Arc::clone(&listener))?;
        let survey = match (limits.plugged, geometry.has_added(hotplug), settings.inherited) {
            (0, false, _) => None,
            (_, false, Inherited::UnplugAll) => Some(Survey::UnplugAll),
            // An earlier driver added memory, or what is plugged is to be kept.
            (_, true, _) | (_, false, Inherited::Adopt) => Some(Survey::of_all(&geometry)),
        };
        if survey.is_some() {
            gate.close();
        }
        Ok(Self {
            link: Link::new(channel, region, geometry, limits),
            gate,
            units,
            listener,
            adder,
            owners,
            survey,
            has_unreached: false,
            has_surveyed: false,
            pace: Pace::new(settings.seed),
            shortfall: None,
            engine: address_of(hotplug.engine()),
        })
    }

    /// Units and mode.
    pub fn geometry(&self) -> Geometry {
        self.link.geometry
    }

    /// The group of its memory blocks.
    pub fn group(&self) -> Group {
        self.adder.group
    }

    /// The NUMA node of its memory.
    pub fn node(&self) -> u8 {
        self.adder.node
    }

    /// Page numbers of the device's region, plugged or not.
    pub fn pages(&self) -> Range<u64> {
        self.link.geometry.region_pages()
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        Status {
            requested: self.link.limits.requested,
            plugged: self.units.plugged_bytes(),
            usable: self.link.limits.usable,
            shortfall: self.shortfall,
        }
    }

    /// The channel, to look at. Requests are the driver's alone: it would not know of others.
    pub fn channel(&self) -> &C {
        &self.link.channel
    }

    /// Forgets which folios owners have refused to move, so that the owners are asked again, and makes a step due now. Call
    /// it when an owner can move what it refused before for a reason that no reference shows.
    ///
    /// Context: frees heap memory.
    pub fn ask_again(&mut self) {
        self.owners.refusals.clear();
        self.pace.reset();
        self.gate.wake();
    }

    /// Whether a memory block has gone online or offline since the last step, so that a step may do more.
    pub fn is_woken(&self) -> bool {
        self.gate.is_woken()
    }

    /// Steps until there is nothing more to do for now, or `go_on` returns false. Returns [`Next::Again`] also after many
    /// times the steps that the device's size makes necessary, which only a host that keeps changing the requested size can
    /// cause.
    ///
    /// Context: as of [`step`](Self::step).
    pub fn work<P: Platform>(
        &mut self,
        hotplug: &mut Hotplug<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
        mut go_on: impl FnMut(Status) -> bool,
    ) -> Next {
        for _ in 0..WORK_STEPS + WORK_STEPS_A_UNIT * self.link.geometry.units {
            let next = self.step(hotplug, migrate);
            if next != Next::Again || !go_on(self.status()) {
                return next;
            }
        }
        Next::Again
    }

    /// Does a bounded part of the work, whatever the device says or does not say: plugs one memory block (big block) at most,
    /// or unplugs what can be had of 64 GiB at most. A step makes some hundred requests at most, and some hundred questions for
    /// state where the two ends may not agree. It asks owners 4,096 times at most; in big-block mode, where a block is
    /// unplugged as a whole, as often as it has pages, times
    /// [`HotplugConfig::passes`](pagefold_engine::hotplug::HotplugConfig).
    ///
    /// `hotplug` is the one that the driver was probed with.
    ///
    /// Context: waits for answers of the device and for grace periods, interrupts other CPUs, takes frames and changes page
    /// tables, takes heap memory. So never an interrupt handler, nor a read-side section.
    pub fn step<P: Platform>(
        &mut self,
        hotplug: &mut Hotplug<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
    ) -> Next {
        if !self.is_of(hotplug.engine()) {
            return Next::Asleep(Shortfall::OtherMachine);
        }
        self.gate.begin_step();
        self.owners.begin_step();
        (self.link.requests_left, self.link.reads_again) = (STEP_REQUESTS, false);
        let before = self.link.limits;
        let fresh = self.link.refresh();
        if self.link.limits.requested != before.requested {
            self.follow_new_wish();
        }
        if self.has_unreached && self.link.limits.usable > before.usable {
            self.begin_survey();
        }
        let is_fresh = fresh == Ok(true);
        let done = fresh.and_then(|_| self.try_step(hotplug, migrate, is_fresh));
        if done == Err(Stop::NewWish) {
            self.follow_new_wish();
        }
        // Only in a row of steps that went well is the config space taken as unchanged. Before a rest without an end it is
        // read once more, in case an interrupt was lost.
        self.link.is_stale = self.link.reads_again || done != Ok(true);
        let rests =
            matches!(done, Ok(false) | Err(Stop::Short(Shortfall::NoSpace | Shortfall::OfflineLimit)));
        if rests && !is_fresh {
            return Next::Again;
        }
        let next = self.pace.next(done, self.owners.in_use());
        self.shortfall = match next {
            Next::Later(_, why) | Next::Asleep(why) => Some(why),
            Next::Reached => None,
            Next::Again => self.shortfall,
        };
        // Without room for what is in use the next attempt goes on behind it: the rest may need none, or less at a time.
        if !matches!(next, Next::Again | Next::Later(_, Shortfall::NoRoom)) {
            self.units.end_pass();
        }
        if next != Next::Again {
            // After a rest the two ends are compared again.
            self.has_surveyed = false;
        }
        next
    }

    /// Does the most urgent thing there is to do. Whether there was one.
    fn try_step<P: Platform>(
        &mut self,
        hotplug: &mut Hotplug<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
        is_fresh: bool,
    ) -> Result<bool, Stop> {
        let Self { link, gate, adder, owners, units, survey, has_unreached, has_surveyed, .. } = self;
        let cx = &mut Context { link, gate, adder, owners, hotplug, migrate };
        // First what is not known of the device: one unit, or all.
        if let Some(unit) = cx.gate.doubtful() {
            if units.settle(cx, unit)? {
                cx.gate.settled();
            }
            return Ok(true);
        }
        if let Some(now) = *survey {
            *survey = now.go_on(cx, units)?;
            if survey.is_none() {
                *has_unreached = survey::has_unreached(cx, units);
                // The plugged size has to be read again before anything is concluded from it.
                cx.link.reads_again = true;
                cx.gate.open();
            }
            return Ok(true);
        }
        let (requested, plugged) = (cx.link.limits.requested, units.plugged_bytes());
        let is_miscounted = is_fresh && cx.link.limits.plugged != plugged;
        if is_miscounted && !*has_surveyed {
            *has_surveyed = true;
            self.begin_survey();
            return Ok(true);
        }
        // Then what failed half-way.
        if units.clean_up(cx)? {
            return Ok(true);
        }
        let owed = cx.adder.bring_online(cx.hotplug);
        if owed == Ok(true) {
            return Ok(true);
        }
        // Then the requested size, in whole sub-blocks: unplugging never goes below it.
        let sub_block = cx.link.geometry.sub_block();
        let (short, over) = (requested.saturating_sub(plugged), plugged.saturating_sub(requested));
        if short >= sub_block {
            // Without memory to bring blocks online no more are plugged.
            owed?;
            units.plug(cx, short / sub_block)?;
            return Ok(true);
        }
        if over >= sub_block {
            units.unplug(cx, over / sub_block)?;
            return Ok(true);
        }
        units.end_pass();
        if units.remove_empty(cx)? {
            return Ok(true);
        }
        owed?;
        if is_miscounted {
            let device = cx.link.limits.plugged;
            return Err(Shortfall::Miscounted { device, driver: plugged }.into());
        }
        Ok(false)
    }

    /// The device is to be asked about all units. Until it has been, nothing goes online or offline.
    fn begin_survey(&mut self) {
        self.gate.close();
        self.survey = Some(Survey::of_all(&self.link.geometry));
    }

    /// The host has changed the requested size: nothing that earlier attempts found stands in the way any more.
    fn follow_new_wish(&mut self) {
        self.pace.reset();
        self.units.end_pass();
        self.owners.refusals.clear();
    }

    /// Whether `engine` is the one whose memory this driver looks after.
    pub(crate) fn is_of<P: Platform>(&self, engine: &Engine<P>) -> bool {
        self.engine == address_of(engine)
    }
}

fn address_of<P: Platform>(engine: &Engine<P>) -> usize {
    core::ptr::from_ref(engine).addr()
}

impl<C: Channel> fmt::Debug for Driver<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("geometry", &self.geometry())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
