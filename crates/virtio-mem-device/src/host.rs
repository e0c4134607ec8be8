//! What the device asks of its host: memory behind the region, and the guest's way to it. What is asked is done whole or not
//! at all; what the host would neither finish nor take back stays due, and is asked for again before anything else.

use std::fmt;
use std::io;
use std::num::NonZeroU64;

use crate::range::RegionRange;

/// The memory behind a device's region. Offsets and lengths are bytes, multiples of the device block.
///
/// Only the device calls what changes it: a VMM that gave its memory to a [`Device`](crate::Device) has a shared reference
/// to it at most. Nothing else may discard, truncate or map privately what lies behind it, and no two devices may have the
/// same memory; a file that is shared with other processes is sealed against truncation by [`Memfd::new`](crate::Memfd).
pub trait Backing {
    /// Bytes it can hold.
    fn size(&self) -> u64;

    /// The unit in which it can be discarded, in bytes: a power of two.
    fn page_size(&self) -> u64;

    /// The device block that suits it, in bytes: a power of two.
    fn default_block_size(&self) -> u64;

    /// Bytes of memory it holds now. A new device starts on memory that holds nothing: what is in it would be shown to the
    /// guest, or be lost.
    ///
    /// # Errors
    /// Where the host does not say.
    fn resident(&self) -> io::Result<u64>;

    /// Makes a range ready to be plugged, before the guest is told that it has it. It never changes bytes that are there.
    ///
    /// # Errors
    /// Where the host has no memory for it. The driver is told to come again. The range may hold some memory then; the
    /// device discards it, unless it is one that was saved.
    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// As [`Backing::populate`], for a range that was plugged when the device was saved: it holds what was saved in it, or
    /// that arrives later ([`Lazy`](crate::Lazy)).
    ///
    /// # Errors
    /// As there; nothing of the range is discarded then.
    fn adopt(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.populate(offset, len)
    }

    /// Gives the memory of a range back to the host, all of it or none. The range may hold memory that was never populated.
    /// Afterwards it reads as zeros and costs nothing.
    ///
    /// # Errors
    /// Where the host refuses. The blocks stay plugged, with their contents.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// How a VMM lets its guest at plugged memory. Every call does all or nothing; each has an opposite, which undoes it, and
/// which is called again later where it fails.
///
/// The device calls in a fixed order. Plug: [`Backing::populate`], `show`, `map_dma`, and only then is the block plugged
/// and the driver told. Unplug: `unmap_dma`, `hide`, then [`Backing::discard`]: a virtual CPU that could still reach the
/// range would fault discarded pages in again. Only the device calls; a VMM that needs its own end besides keeps a handle
/// of it.
///
/// A range that goes may be a part of one that came, or several: VFIO cannot unmap a part of a mapping, so map block by
/// block there.
///
/// `()` is for a VMM whose memory slot covers the whole region and that has no devices to map for.
pub trait GuestAccess {
    /// Called once, before anything else, with the region of the device it is given to. Nothing of it is shown or mapped
    /// then.
    ///
    /// # Errors
    /// Where it cannot serve that region, or serves another one already; no device is made then.
    fn attach(&mut self, region: &RegionRange) -> io::Result<()> {
        let _ = region;
        Ok(())
    }

    /// Bytes of a memory slot, where the VMM has several for the region: [`GuestAccess::show`] and [`GuestAccess::hide`]
    /// are called for parts of one slot only, so that each can do all or nothing. `None` for ranges of any length.
    fn slot_size(&self) -> Option<NonZeroU64> {
        None
    }

    /// Lets virtual CPUs at the range: memory slots. Only called for parts of the region that are not shown.
    ///
    /// # Errors
    /// Where the host refuses; nothing is shown then.
    fn show(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Takes the range out of reach of virtual CPUs.
    ///
    /// # Errors
    /// Where the host refuses; all is still shown then.
    fn hide(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Maps the range for devices that reach memory directly (VFIO, an IOMMU). It may pin memory.
    ///
    /// # Errors
    /// Where the host refuses; nothing is mapped then.
    fn map_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Takes the range out of reach of devices.
    ///
    /// # Errors
    /// Where the host refuses; all is still mapped then.
    fn unmap_dma(&mut self, range: &RegionRange) -> io::Result<()> {
        let _ = range;
        Ok(())
    }
}

impl GuestAccess for () {}

/// One thing that is asked of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Backing::populate`]
    Populate,
    /// [`Backing::adopt`]
    Adopt,
    /// [`GuestAccess::show`]
    Show,
    /// [`GuestAccess::map_dma`]
    MapDma,
    /// [`GuestAccess::unmap_dma`]
    UnmapDma,
    /// [`GuestAccess::hide`]
    Hide,
    /// [`Backing::discard`]
    Discard,
}

impl Step {
    /// What undoes it. Nothing undoes a discard, so it comes last.
    fn opposite(self) -> Option<Self> {
        match self {
            Step::Populate => Some(Step::Discard),
            Step::Show => Some(Step::Hide),
            Step::MapDma => Some(Step::UnmapDma),
            Step::UnmapDma => Some(Step::MapDma),
            Step::Hide => Some(Step::Show),
            // What was saved stays.
            Step::Discard | Step::Adopt => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Populate => "populating memory",
            Step::Adopt => "taking over memory that was saved",
            Step::Show => "giving the guest access",
            Step::MapDma => "mapping for devices",
            Step::UnmapDma => "unmapping from devices",
            Step::Hide => "taking the guest's access",
            Step::Discard => "discarding memory",
        })
    }
}

/// Something the host would not do.
#[derive(Debug, thiserror::Error)]
#[error("{step} of {len} bytes at {addr:#x}: {source}", len = range.len, addr = range.addr)]
pub struct HostError {
    /// What was asked.
    pub step: Step,
    /// For what.
    pub range: RegionRange,
    /// What the host said.
    pub source: io::Error,
    /// What it said when the steps before were to be undone, if that failed too. That is due from then on, and tried again
    /// before every other change and by [`Device::settle`](crate::Device::settle).
    pub undo: Option<Box<HostError>>,
}

impl HostError {
    /// The same, for the record.
    fn copy(&self) -> Self {
        Self {
            step: self.step,
            range: self.range,
            source: io::Error::new(self.source.kind(), self.source.to_string()),
            undo: self.undo.as_ref().map(|undo| Box::new(undo.copy())),
        }
    }
}

/// Both ends of the host, and what came of asking them.
#[derive(Debug)]
pub(crate) struct Host<B, G> {
    pub(crate) backing: B,
    pub(crate) guest: G,
    /// What is left to undo of a change that the host did not finish, from the end.
    due: Vec<(Step, RegionRange)>,
    failures: u64,
    last_failure: Option<HostError>,
}

impl<B: Backing, G: GuestAccess> Host<B, G> {
    pub(crate) fn new(backing: B, guest: G) -> Self {
        Self { backing, guest, due: Vec::new(), failures: 0, last_failure: None }
    }

    /// Takes all `steps`, or none. Nothing is begun before what is due was done.
    pub(crate) fn take(&mut self, steps: &[(Step, RegionRange)]) -> Result<(), HostError> {
        self.settle()?;
        let slot_size = self.guest.slot_size();
        let steps: Vec<_> = steps.iter().flat_map(|&(step, range)| parts(step, range, slot_size)).collect();
        for (taken, &(step, range)) in steps.iter().enumerate() {
            let Err(source) = self.run(step, &range) else { continue };
            // Populating may have left some memory; of every other step nothing was done.
            let begun = taken + usize::from(step == Step::Populate);
            let undo = |&(step, range): &(Step, RegionRange)| Some((step.opposite()?, range));
            self.due.extend(steps[..begun].iter().filter_map(undo));
            let undo = self.undo().err().map(Box::new);
            return Err(self.failed(HostError { step, range, source, undo }));
        }
        Ok(())
    }

    /// Takes one step that nothing undoes.
    pub(crate) fn take_one(&mut self, step: Step, range: RegionRange) -> Result<(), HostError> {
        self.run(step, &range).map_err(|source| self.failed(HostError { step, range, source, undo: None }))
    }

    /// Does what is due.
    pub(crate) fn settle(&mut self) -> Result<(), HostError> {
        self.undo().map_err(|error| self.failed(error))
    }

    /// Whether anything is due.
    pub(crate) fn is_settled(&self) -> bool {
        self.due.is_empty()
    }

    /// How often the host would not do something, and what it was last.
    pub(crate) fn failures(&self) -> (u64, Option<&HostError>) {
        (self.failures, self.last_failure.as_ref())
    }

    /// In order, and no step before the one that should come first: memory that the guest still reaches would be filled
    /// again as soon as it was discarded.
    fn undo(&mut self) -> Result<(), HostError> {
        while let Some(&(step, range)) = self.due.last() {
            self.run(step, &range).map_err(|source| HostError { step, range, source, undo: None })?;
            self.due.pop();
        }
        Ok(())
    }

    fn failed(&mut self, error: HostError) -> HostError {
        self.failures += 1;
        self.last_failure = Some(error.copy());
        error
    }

    fn run(&mut self, step: Step, range: &RegionRange) -> io::Result<()> {
        match step {
            Step::Populate => self.backing.populate(range.offset, range.len),
            Step::Adopt => self.backing.adopt(range.offset, range.len),
            Step::Discard => self.backing.discard(range.offset, range.len),
            Step::Show => self.guest.show(range),
            Step::Hide => self.guest.hide(range),
            Step::MapDma => self.guest.map_dma(range),
            Step::UnmapDma => self.guest.unmap_dma(range),
        }
    }
}

/// A step, cut at the edges of memory slots where it is about them.
fn parts(
    step: Step,
    range: RegionRange,
    slot_size: Option<NonZeroU64>,
) -> impl Iterator<Item = (Step, RegionRange)> {
    let slot_size = slot_size.filter(|_| matches!(step, Step::Show | Step::Hide));
    let end = range.offset + range.len;
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let from = at;
        at = slot_size.map_or(end, |size| (from / size + 1).saturating_mul(size.get()).min(end));
        let part = RegionRange { addr: range.addr + (from - range.offset), offset: from, len: at - from };
        (from < end).then_some((step, part))
    })
}
