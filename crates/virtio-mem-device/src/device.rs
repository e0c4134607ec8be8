//! The device: decisions of the core, carried out on the host, whole or not at all.

use std::time::Instant;

use pagefold_virtio_mem_spec::{ConfigSpace, Features, Request, Response, ResponseType};
use zerocopy::IntoBytes;

use crate::core::{Core, Decision};
use crate::host::{Backing, GuestAccess, Host, HostError, Step};
use crate::range::RegionRange;
use crate::settings::{RequestedSizeError, Settings, SettingsError, Unplugged, check_requested};
use crate::stats::Stats;

/// `VIRTIO_F_VERSION_1`: a memory device is never a legacy device.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
pub(crate) const EVENT_IDX: u64 = 1 << 29;

/// `VIRTIO_F_INDIRECT_DESC` and [`EVENT_IDX`]: what the queue can do.
const QUEUE_FEATURES: u64 = 1 << 28 | EVENT_IDX;

/// Which interrupt the VMM must raise now.
#[must_use = "the driver learns of a change by an interrupt only"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notify {
    /// None.
    #[default]
    Nothing,
    /// A configuration change.
    ConfigChanged,
}

/// Why the requested size stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The size does not fit the device.
    #[error(transparent)]
    Size(#[from] RequestedSizeError),
    /// No driver would follow it.
    #[error("no driver is ready to follow a new size: boot a guest with a virtio-mem driver first")]
    NoDriver,
    /// The device is being migrated or saved.
    #[error("the device is frozen while it is saved or migrated: try again once it is thawed")]
    Frozen,
    /// The larger usable region could not be made accessible.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Why the device does not work with a driver. Before `DRIVER_OK`, do not set `FEATURES_OK`; at `DRIVER_OK`, set
/// `DEVICE_NEEDS_RESET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeaturesError {
    /// It accepts what was not offered.
    #[error("the driver accepts feature bits {0:#x}, which were not offered")]
    NotOffered(u64),
    /// A legacy driver.
    #[error("the driver declines VERSION_1; a memory device has no legacy interface")]
    Legacy,
    /// It would touch unplugged memory.
    #[error(
        "the driver declines UNPLUGGED_INACCESSIBLE, and this device takes unplugged memory out of reach"
    )]
    WouldTouchUnplugged,
    /// It has one.
    #[error("a driver is active already: reset the device before the next one comes")]
    Active,
}

/// Why the whole machine resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemReset {
    /// Cold or warm boot: everything is unplugged.
    Reboot,
    /// Waking up from suspend to RAM: nothing changes.
    Wakeup,
}

/// Where the device stands with its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DriverState {
    /// None is there.
    Away,
    /// None is there, and the machine was reset: what is plugged is to be unplugged before the next one comes.
    ResetDue,
    /// One has set `DRIVER_OK` with these features.
    Ready { features: u64 },
    /// The same, and its queue is beyond repair until it resets the device.
    Broken { features: u64 },
}

/// A virtio-mem device on memory `B`, in a VMM that gives and takes its guest's access by `G`.
///
/// The VMM moves its life along: [`Device::check_features`] at `FEATURES_OK`, [`Device::activate`] at `DRIVER_OK`,
/// [`Device::serve`](crate::Device::serve) at a doorbell, [`Device::device_reset`] when the status becomes 0,
/// [`Device::system_reset`] when the machine resets. In any other order nothing is lost: without a driver nothing is served,
/// and every call that does not fit is refused with the reason.
///
/// All that changes a device takes `&mut self`, so two threads need a lock around it (`Mutex<Device<..>>`). Keep the lock
/// while you read memory that [`Device::plugged_ranges`] names: a request that is served meanwhile may take it away.
#[derive(Debug)]
pub struct Device<B, G = ()> {
    pub(crate) core: Core,
    pub(crate) host: Host<B, G>,
    unplugged: Unplugged,
    offered: Features,
    resize_without_driver: bool,
    pub(crate) driver: DriverState,
    pub(crate) stats: Stats,
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// A device with nothing plugged, on memory that holds nothing. One that was saved is built by [`Device::restore`].
    ///
    /// # Errors
    /// [`SettingsError`]: what is wrong with the settings, memory that is not empty, or the host's answer where unplugged
    /// memory is to be readable. Nothing of the memory has changed.
    pub fn new(settings: Settings, backing: B, guest: G) -> Result<Self, SettingsError> {
        let mut device = Self::build(&settings, backing, guest)?;
        match device.host.backing.resident() {
            Ok(0) => {}
            Ok(bytes) => return Err(SettingsError::Filled(bytes)),
            Err(error) => return Err(SettingsError::Host(error.to_string())),
        }
        let usable = device.core.usable_size;
        device.show_usable(0, usable).map_err(|error| SettingsError::Host(error.to_string()))?;
        Ok(device)
    }

    /// A device of which the host knows nothing yet.
    pub(crate) fn build(settings: &Settings, backing: B, mut guest: G) -> Result<Self, SettingsError> {
        let block_size = settings.check(&backing)?;
        let mut offered = Features::empty();
        offered.set(Features::ACPI_PXM, settings.node.is_some());
        offered.set(Features::UNPLUGGED_INACCESSIBLE, settings.unplugged != Unplugged::Readable);
        offered.set(Features::PERSISTENT_SUSPEND, settings.persistent_suspend);
        let region = RegionRange { addr: settings.addr, offset: 0, len: settings.region_size };
        guest.attach(&region).map_err(|error| SettingsError::Host(error.to_string()))?;
        Ok(Self {
            core: Core::new(settings, block_size),
            host: Host::new(backing, guest),
            unplugged: settings.unplugged,
            offered,
            resize_without_driver: settings.resize_without_driver,
            driver: DriverState::Away,
            stats: Stats::default(),
        })
    }

    /// The config space now.
    pub fn config(&self) -> ConfigSpace {
        self.core.config()
    }

    /// The config space from byte `offset` on, as a driver reads it through the transport. Bytes beyond its end are 0.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.core.config();
        let rest = usize::try_from(offset).ok().and_then(|offset| config.as_bytes().get(offset..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
        data[len..].fill(0);
    }

    /// Counts changes of the config space, for the transport's config generation. It goes on where it was when the device
    /// is restored. A transport whose field is smaller takes the low bits.
    pub fn config_generation(&self) -> u32 {
        self.core.generation
    }

    /// The feature bits to offer: the device's own, `VERSION_1`, and the queue's.
    pub fn features(&self) -> u64 {
        self.offered.bits() | VERSION_1 | QUEUE_FEATURES
    }

    /// The feature bits of the active driver; `None` where there is none.
    pub fn negotiated_features(&self) -> Option<u64> {
        match self.driver {
            DriverState::Ready { features } | DriverState::Broken { features } => Some(features),
            DriverState::Away | DriverState::ResetDue => None,
        }
    }

    /// Whether the device works with a driver that accepts these features: for the transport's `FEATURES_OK`. Bits that a
    /// transport offers by itself are its own to look at; leave them out. A VMM that forgets to ask is told by
    /// [`Device::activate`].
    ///
    /// # Errors
    /// [`FeaturesError`]; the transport then leaves `FEATURES_OK` unset.
    pub fn check_features(&self, accepted: u64) -> Result<(), FeaturesError> {
        let inaccessible = Features::UNPLUGGED_INACCESSIBLE.bits();
        if accepted & !self.features() != 0 {
            Err(FeaturesError::NotOffered(accepted & !self.features()))
        } else if accepted & VERSION_1 == 0 {
            Err(FeaturesError::Legacy)
        } else if self.hides() && accepted & inaccessible == 0 {
            Err(FeaturesError::WouldTouchUnplugged)
        } else {
            Ok(())
        }
    }

    /// The driver has set `DRIVER_OK`, and accepts these features (as [`Device::check_features`] takes them). Requests are
    /// served from here on, also those that wait in the queue already: [`Device::serve`](crate::Device::serve) next. The
    /// features are the queue's too; `serve` sets it up for them.
    ///
    /// The driver may have seen from the config space what is plugged. So a reset that is due is so no longer: what it
    /// would have unplugged stays for the driver to keep or to unplug.
    ///
    /// # Errors
    /// [`FeaturesError`]; nothing has changed.
    pub fn activate(&mut self, accepted: u64) -> Result<(), FeaturesError> {
        if self.negotiated_features().is_some() {
            return Err(FeaturesError::Active);
        }
        self.check_features(accepted)?;
        self.driver = DriverState::Ready { features: accepted };
        Ok(())
    }

    /// The driver resets the device (status 0), or goes. Blocks and their contents stay as they are. The queue is the
    /// VMM's to reset.
    pub fn device_reset(&mut self) {
        if self.driver != DriverState::ResetDue {
            self.driver = DriverState::Away;
        }
    }

    /// The machine resets. A reboot unplugs everything and makes the usable region what the requested size needs. It takes
    /// the driver with it; the queue is the VMM's to reset.
    ///
    /// On a frozen device a reboot is due until [`Device::thaw`] does it, and a snapshot of it has nothing plugged. Only a
    /// driver that comes before finds the blocks still plugged, and then they stay.
    ///
    /// # Errors
    /// What the host would not do. Blocks are plugged as they were; the reset stays due, for [`Device::settle`], until a
    /// driver comes.
    pub fn system_reset(&mut self, reset: SystemReset) -> Result<(), HostError> {
        if reset == SystemReset::Wakeup {
            return Ok(());
        }
        self.driver = DriverState::ResetDue;
        self.settle()
    }

    /// Does what is due: what the host would not undo when it refused a change, and a reset of the machine. Every change
    /// begins with that; a VMM whose host has recovered need not wait for one. Does nothing where nothing is due.
    ///
    /// # Errors
    /// Where the host still refuses. It stays due.
    pub fn settle(&mut self) -> Result<(), HostError> {
        self.host.settle()?;
        if self.driver == DriverState::ResetDue && !self.core.frozen {
            self.unplug_all()?;
            self.driver = DriverState::Away;
        }
        Ok(())
    }

    /// Whether the host is as [`Device::plugged_ranges`] says. It is not where it has refused a change and then to undo the
    /// half of it that was done: until [`Device::settle`] gets that done, every change is answered BUSY.
    pub fn is_settled(&self) -> bool {
        self.host.is_settled()
    }

    /// The host wants `size` bytes plugged.
    ///
    /// # Errors
    /// [`ResizeError`]: nothing has changed.
    pub fn set_requested_size(&mut self, size: u64) -> Result<Notify, ResizeError> {
        check_requested(size, self.core.block_size, self.core.region_size)?;
        if self.core.frozen {
            return Err(ResizeError::Frozen);
        }
        if !matches!(self.driver, DriverState::Ready { .. }) && !self.resize_without_driver {
            return Err(ResizeError::NoDriver);
        }
        if size == self.core.requested_size {
            return Ok(Notify::Nothing);
        }
        let (usable, wanted) = (self.core.usable_size, self.core.usable_for(size));
        if wanted > usable {
            self.show_usable(usable, wanted).map_err(ResizeError::Host)?;
            // Before the requested size, which may never be above it.
            self.core.usable_size = wanted;
        }
        self.core.requested_size = size;
        self.core.changed();
        self.stats.resizes += 1;
        Ok(Notify::ConfigChanged)
    }

    /// Answers one request, for a VMM that reads the queue itself; [`Device::serve`](crate::Device::serve) does both. What
    /// the host would not do is undone and answered BUSY: the driver comes again. Without an active driver there is no
    /// request: ERROR.
    pub fn handle(&mut self, request: &Request) -> Response {
        let (since, plugged) = (Instant::now(), self.core.plugged_size);
        let response = self.answer(request);
        let unplugged = plugged.saturating_sub(self.core.plugged_size);
        self.stats.add(request, &response, self.core.block_size, unplugged, since);
        response
    }

    fn answer(&mut self, request: &Request) -> Response {
        if !matches!(self.driver, DriverState::Ready { .. }) {
            return Response::new(ResponseType::Error);
        }
        let done = match self.core.decide(request) {
            Decision::Answer(response) => return response,
            Decision::Plug(range) => self.plug(range),
            Decision::Unplug(range) => self.unplug(range),
            Decision::UnplugAll => self.unplug_all(),
        };
        // Why not, the host's record tells the VMM.
        Response::new(if done.is_ok() { ResponseType::Ack } else { ResponseType::Busy })
    }

    fn plug(&mut self, range: RegionRange) -> Result<(), HostError> {
        if self.hides() {
            self.host.take(&[(Step::Populate, range), (Step::Show, range), (Step::MapDma, range)])?;
        } else {
            self.host.take(&[(Step::Populate, range), (Step::MapDma, range)])?;
        }
        self.core.plugged(&range);
        Ok(())
    }

    fn unplug(&mut self, range: RegionRange) -> Result<(), HostError> {
        if self.hides() {
            self.host.take(&[(Step::UnmapDma, range), (Step::Hide, range), (Step::Discard, range)])?;
        } else {
            self.host.take(&[(Step::UnmapDma, range), (Step::Discard, range)])?;
        }
        self.core.unplugged(&range);
        Ok(())
    }

    /// Unplugs everything and fits the usable region to the requested size.
    fn unplug_all(&mut self) -> Result<(), HostError> {
        self.host.settle()?;
        let runs: Vec<_> = self.core.plugged_ranges().collect();
        if let (Some(first), Some(last)) = (runs.first(), runs.last()) {
            let mut steps: Vec<_> = runs.iter().map(|run| (Step::UnmapDma, *run)).collect();
            if self.hides() {
                steps.extend(runs.iter().map(|run| (Step::Hide, *run)));
            }
            // All or nothing: what is discarded cannot be undone, so it is one step, over the gaps too.
            let len = last.offset + last.len - first.offset;
            steps.push((Step::Discard, RegionRange { len, ..*first }));
            self.host.take(&steps)?;
            for run in &runs {
                self.core.unplugged(run);
            }
        }
        self.fit_usable();
        Ok(())
    }

    /// Makes the usable region what the requested size needs; it only gets smaller here. Where the host would not take the
    /// guest's access to the rest, it says so in its record, and the region stays usable: it may.
    fn fit_usable(&mut self) {
        let (usable, wanted) = (self.core.usable_size, self.core.usable_for(self.core.requested_size));
        if wanted >= usable {
            return;
        }
        if self.hides() || self.host.take(&[(Step::Hide, self.part(wanted, usable))]).is_ok() {
            self.core.usable_size = wanted;
            self.core.changed();
        }
    }

    /// Where the driver may read unplugged memory, the guest has access to all of the usable region.
    fn show_usable(&mut self, from: u64, to: u64) -> Result<(), HostError> {
        if self.hides() || from >= to { Ok(()) } else { self.host.take(&[(Step::Show, self.part(from, to))]) }
    }

    pub(crate) fn part(&self, from: u64, to: u64) -> RegionRange {
        RegionRange { addr: self.core.addr + from, offset: from, len: to - from }
    }

    /// Whether unplugged memory is out of the guest's reach.
    pub(crate) fn hides(&self) -> bool {
        self.unplugged == Unplugged::Inaccessible
    }

    /// Whether block state may not change now: [`Device::freeze`] or [`Device::snapshot`], and no [`Device::thaw`] since.
    pub fn is_frozen(&self) -> bool {
        self.core.frozen
    }

    /// Stops every change of block state until [`Device::thaw`]: for saving and migrating. Requests that would change one
    /// are answered BUSY. It is not counted: one `thaw` ends it, however often it was frozen.
    pub fn freeze(&mut self) {
        self.core.frozen = true;
    }

    /// Lets block state change again, and does what has become due.
    ///
    /// # Errors
    /// As [`Device::settle`]. The device is no longer frozen all the same.
    pub fn thaw(&mut self) -> Result<(), HostError> {
        self.core.frozen = false;
        self.settle()
    }

    /// What is plugged, in order. To save, migrate or dump the guest, and from other devices and processes, read this
    /// memory of the region and no other: reading unplugged memory would allocate it. It stays true until the device next
    /// serves a request or the machine resets; [`Device::freeze`] keeps it longer.
    pub fn plugged_ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        self.core.plugged_ranges()
    }

    /// What is not plugged, in order, to the end of the region: the ranges between [`Device::plugged_ranges`]. A VMM that
    /// makes holes behind the guest's back (a balloon, a dump) finds them here.
    pub fn unplugged_ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        self.core.unplugged_ranges()
    }

    /// What this device has done so far: requests, answers, and how long they took.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// How often the host would not do something, and what it was last.
    pub fn host_failures(&self) -> (u64, Option<&HostError>) {
        self.host.failures()
    }

    /// The memory behind the region. Populating and discarding are the device's business, so it is lent to look at only.
    pub fn backing(&self) -> &B {
        &self.host.backing
    }

    /// The guest's way to it, to look at.
    pub fn guest_access(&self) -> &G {
        &self.host.guest
    }
}
