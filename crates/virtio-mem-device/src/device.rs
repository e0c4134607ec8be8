//! The device: decisions of the core, carried out on the host, whole or not at all.

use pagefold_virtio_mem_spec::{Config, Features, Request, Response, ResponseType};

use crate::core::{Core, Decision, RegionRange};
use crate::host::{Backing, GuestAccess, HostError, Step, take};
use crate::settings::{RequestedSizeError, Settings, SettingsError, Unplugged, check_requested};

/// `VIRTIO_F_VERSION_1`: a memory device is never a legacy device.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC` and `VIRTIO_F_EVENT_IDX`: what the queue can do.
const QUEUE_FEATURES: u64 = 1 << 28 | 1 << 29;

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
    #[error("the device is frozen while it is saved or migrated: try again afterwards")]
    Frozen,
    /// The larger usable region could not be made accessible.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Why the driver's features are not taken; `FEATURES_OK` must not be set.
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
}

/// Why the whole machine resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemReset {
    /// Cold or warm boot: everything is unplugged.
    Reboot,
    /// Waking up from suspend to RAM: nothing changes.
    Wakeup,
}

/// Why a system reset left blocks plugged. The next driver copes with leftovers.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The device is being migrated or saved.
    #[error("the device is frozen while it is saved or migrated: plugged blocks stay")]
    Frozen,
    /// The host refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// An earlier failure could not be undone.
    #[error("an earlier failure is not repaired: plugged blocks stay")]
    Faulty,
}

/// A virtio-mem device on memory `B`, in a VMM that gives and takes its guest's access by `G`.
///
/// The VMM moves its life along: [`Device::set_driver_features`] at `FEATURES_OK`, [`Device::driver_ready`] at
/// `DRIVER_OK`, [`Device::serve`](crate::Device::serve) at a doorbell, [`Device::device_reset`] when the status becomes 0,
/// [`Device::system_reset`] when the machine resets.
#[derive(Debug)]
pub struct Device<B, G = ()> {
    pub(crate) core: Core,
    pub(crate) host: (B, G),
    unplugged: Unplugged,
    offered: Features,
    resize_without_driver: bool,
    pub(crate) negotiated: u64,
    pub(crate) driver_ready: bool,
    /// The queue is beyond repair until the driver resets the device.
    pub(crate) needs_reset: bool,
    faulty: bool,
    failures: u64,
    last_failure: Option<HostError>,
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// A device with nothing plugged. What the backing holds from before is given back when it is first plugged and
    /// unplugged; hand over an empty one.
    ///
    /// # Errors
    /// [`SettingsError`]: what is wrong with the settings, or the host's answer where unplugged memory is to be readable.
    pub fn new(settings: Settings, backing: B, guest: G) -> Result<Self, SettingsError> {
        let block_size = settings.check(&backing)?;
        let mut offered = Features::empty();
        offered.set(Features::ACPI_PXM, settings.node.is_some());
        offered.set(Features::UNPLUGGED_INACCESSIBLE, settings.unplugged != Unplugged::Readable);
        offered.set(Features::PERSISTENT_SUSPEND, settings.persistent_suspend);
        let mut device = Self {
            core: Core::new(&settings, block_size),
            host: (backing, guest),
            unplugged: settings.unplugged,
            offered,
            resize_without_driver: settings.resize_without_driver,
            negotiated: 0,
            driver_ready: false,
            needs_reset: false,
            faulty: false,
            failures: 0,
            last_failure: None,
        };
        let usable = device.core.usable_size;
        device.show_usable(0, usable).map_err(|error| SettingsError::Host(error.to_string()))?;
        Ok(device)
    }

    /// The config space now.
    pub fn config(&self) -> Config {
        self.core.config()
    }

    /// Counts changes of the config space, for the transport's config generation.
    pub fn config_generation(&self) -> u32 {
        self.core.generation
    }

    /// The feature bits to offer: the device's own, `VERSION_1`, and the queue's.
    pub fn features(&self) -> u64 {
        self.offered.bits() | VERSION_1 | QUEUE_FEATURES
    }

    /// The feature bits that were negotiated; 0 before.
    pub fn negotiated_features(&self) -> u64 {
        self.negotiated
    }

    /// Takes what the driver accepted.
    ///
    /// # Errors
    /// [`FeaturesError`]; the transport then leaves `FEATURES_OK` unset.
    pub fn set_driver_features(&mut self, accepted: u64) -> Result<(), FeaturesError> {
        let inaccessible = Features::UNPLUGGED_INACCESSIBLE.bits();
        if accepted & !self.features() != 0 {
            Err(FeaturesError::NotOffered(accepted & !self.features()))
        } else if accepted & VERSION_1 == 0 {
            Err(FeaturesError::Legacy)
        } else if self.hides() && accepted & inaccessible == 0 {
            Err(FeaturesError::WouldTouchUnplugged)
        } else {
            self.negotiated = accepted;
            Ok(())
        }
    }

    /// The driver has set `DRIVER_OK`. Requests are served from here on, also those that wait in the queue already.
    pub fn driver_ready(&mut self) {
        self.driver_ready = self.negotiated & VERSION_1 != 0;
    }

    /// The driver resets the device (status 0), or goes. Blocks and their contents stay as they are.
    pub fn device_reset(&mut self) {
        self.negotiated = 0;
        self.driver_ready = false;
        self.needs_reset = false;
    }

    /// The machine resets. A reboot unplugs everything and makes the usable region what the requested size needs.
    ///
    /// # Errors
    /// [`ResetError`]: the blocks stay plugged as they were; the driver is reset all the same.
    pub fn system_reset(&mut self, reset: SystemReset) -> Result<(), ResetError> {
        if reset == SystemReset::Wakeup {
            return Ok(());
        }
        self.device_reset();
        if self.core.frozen {
            return Err(ResetError::Frozen);
        }
        if self.faulty {
            return Err(ResetError::Faulty);
        }
        self.unplug_all().map_err(ResetError::Host)
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
        if !self.driver_ready && !self.resize_without_driver {
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
        Ok(Notify::ConfigChanged)
    }

    /// Answers one request. What the host would not do is undone and answered BUSY: the driver comes again.
    pub fn handle(&mut self, request: &Request) -> Response {
        let decision = self.core.decide(request);
        if let Decision::Answer(response) = decision {
            return response;
        }
        let done = !self.faulty
            && match decision {
                Decision::Plug(range) => self.plug(range),
                Decision::Unplug(range) => self.unplug(range),
                _ => self.unplug_all(),
            }
            .is_ok();
        Response::new(if done { ResponseType::Ack } else { ResponseType::Busy })
    }

    fn plug(&mut self, range: RegionRange) -> Result<(), HostError> {
        if self.hides() {
            self.take(&[(Step::Populate, range), (Step::Show, range), (Step::MapDma, range)])?;
        } else {
            self.take(&[(Step::Populate, range), (Step::MapDma, range)])?;
        }
        self.core.plugged(&range);
        Ok(())
    }

    fn unplug(&mut self, range: RegionRange) -> Result<(), HostError> {
        if self.hides() {
            self.take(&[(Step::UnmapDma, range), (Step::Hide, range), (Step::Discard, range)])?;
        } else {
            self.take(&[(Step::UnmapDma, range), (Step::Discard, range)])?;
        }
        self.core.unplugged(&range);
        Ok(())
    }

    /// Unplugs everything and fits the usable region to the requested size.
    fn unplug_all(&mut self) -> Result<(), HostError> {
        let runs: Vec<_> = self.core.plugged_ranges().collect();
        if let (Some(first), Some(last)) = (runs.first(), runs.last()) {
            let mut steps: Vec<_> = runs.iter().map(|run| (Step::UnmapDma, *run)).collect();
            if self.hides() {
                steps.extend(runs.iter().map(|run| (Step::Hide, *run)));
            }
            // All or nothing: what is discarded cannot be undone, so it is one step, over the gaps too.
            let len = last.offset + last.len - first.offset;
            steps.push((Step::Discard, RegionRange { len, ..*first }));
            self.take(&steps)?;
            for run in &runs {
                self.core.unplugged(run);
            }
        }
        self.fit_usable();
        Ok(())
    }

    /// Makes the usable region what the requested size needs; it only gets smaller here. Where the host would not take the
    /// guest's access to the rest, the region stays usable: it may.
    fn fit_usable(&mut self) {
        let (usable, wanted) = (self.core.usable_size, self.core.usable_for(self.core.requested_size));
        if wanted >= usable {
            return;
        }
        if self.hides() || self.take(&[(Step::Hide, self.part(wanted, usable))]).is_ok() {
            self.core.usable_size = wanted;
            self.core.changed();
        }
    }

    /// Where the driver may read unplugged memory, the guest has access to all of the usable region.
    fn show_usable(&mut self, from: u64, to: u64) -> Result<(), HostError> {
        if self.hides() || from >= to { Ok(()) } else { self.take(&[(Step::Show, self.part(from, to))]) }
    }

    pub(crate) fn part(&self, from: u64, to: u64) -> RegionRange {
        RegionRange { addr: self.core.addr + from, offset: from, len: to - from }
    }

    pub(crate) fn take(&mut self, steps: &[(Step, RegionRange)]) -> Result<(), HostError> {
        take(steps, &mut self.host).map_err(|error| {
            self.failures += 1;
            self.faulty |= error.undo.is_some();
            let copy = HostError {
                source: std::io::Error::new(error.source.kind(), error.source.to_string()),
                undo: None,
                ..error
            };
            self.last_failure = Some(error);
            copy
        })
    }

    /// Whether unplugged memory is out of the guest's reach.
    pub(crate) fn hides(&self) -> bool {
        self.unplugged == Unplugged::Inaccessible
    }

    /// Stops every change of block state until [`Device::thaw`]: for saving and migrating. Requests that would change one
    /// are answered BUSY.
    pub fn freeze(&mut self) {
        self.core.frozen = true;
    }

    /// Lets block state change again.
    pub fn thaw(&mut self) {
        self.core.frozen = false;
    }

    /// What is plugged, in order. Whoever saves or migrates the guest reads this memory and no other: reading unplugged
    /// memory would allocate it.
    pub fn plugged_ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        self.core.plugged_ranges()
    }

    /// How often the host would not do something, and what it was last.
    pub fn host_failures(&self) -> (u64, Option<&HostError>) {
        (self.failures, self.last_failure.as_ref())
    }

    /// Whether a failure could not be undone. Every change is answered BUSY until the VMM has made the host agree with
    /// [`Device::plugged_ranges`] and says so with [`Device::repaired`].
    pub fn is_faulty(&self) -> bool {
        self.faulty
    }

    /// The host agrees with the device again.
    pub fn repaired(&mut self) {
        self.faulty = false;
    }

    /// The memory behind the region.
    pub fn backing(&self) -> &B {
        &self.host.0
    }

    /// The memory behind the region. Populating and discarding are the device's business.
    pub fn backing_mut(&mut self) -> &mut B {
        &mut self.host.0
    }

    /// The guest's way to it.
    pub fn guest_access(&self) -> &G {
        &self.host.1
    }

    /// The guest's way to it.
    pub fn guest_access_mut(&mut self) -> &mut G {
        &mut self.host.1
    }
}
