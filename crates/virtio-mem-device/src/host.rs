//! What the device asks of its host: memory behind the region, and the guest's way to it.

use std::fmt;
use std::io;

use crate::core::RegionRange;

/// The memory behind a device's region. Offsets and lengths are bytes, multiples of the device block.
///
/// Both calls do all or nothing.
pub trait Backing {
    /// Bytes it can hold.
    fn size(&self) -> u64;

    /// The unit in which it can be discarded, in bytes: a power of two.
    fn page_size(&self) -> u64;

    /// The device block that suits it, in bytes: a power of two.
    fn default_block_size(&self) -> u64;

    /// Makes a range ready to be plugged, before the guest is told that it has it.
    ///
    /// # Errors
    /// Where the host has no memory for it. The driver is told to come again. Memory that the range held may be gone.
    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the memory of a range back to the host. The range may hold memory that was never populated.
    ///
    /// # Errors
    /// Where the host refuses. The blocks stay plugged, with their contents.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// How a VMM lets its guest at plugged memory. Every call does all or nothing; each has an opposite, which undoes it.
///
/// The device calls in a fixed order. Plug: [`Backing::populate`], `show`, `map_dma`, and only then is the block plugged
/// and the driver told. Unplug: `unmap_dma`, `hide`, then [`Backing::discard`]: a virtual CPU that could still reach the
/// range would fault discarded pages in again.
///
/// `()` is for a VMM whose memory slot covers the whole region and that has no devices to map for.
pub trait GuestAccess {
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
    fn opposite(self) -> Self {
        match self {
            Step::Populate => Step::Discard,
            Step::Show => Step::Hide,
            Step::MapDma => Step::UnmapDma,
            Step::UnmapDma => Step::MapDma,
            Step::Hide => Step::Show,
            Step::Discard => Step::Populate,
        }
    }

    fn run(self, range: &RegionRange, host: &mut (impl Backing, impl GuestAccess)) -> io::Result<()> {
        let (backing, guest) = host;
        match self {
            Step::Populate => backing.populate(range.offset, range.len),
            Step::Discard => backing.discard(range.offset, range.len),
            Step::Show => guest.show(range),
            Step::Hide => guest.hide(range),
            Step::MapDma => guest.map_dma(range),
            Step::UnmapDma => guest.unmap_dma(range),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Populate => "populating memory",
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
    /// What it said when the steps before were to be undone, if that failed too. The device then works no more until the
    /// VMM has put things right ([`crate::Device::repaired`]).
    pub undo: Option<Box<HostError>>,
}

/// Takes all `steps`, or none.
pub(crate) fn take(
    steps: &[(Step, RegionRange)],
    host: &mut (impl Backing, impl GuestAccess),
) -> Result<(), HostError> {
    for (taken, (step, range)) in steps.iter().enumerate() {
        let Err(source) = step.run(range, host) else { continue };
        let mut undo = None;
        for (step, range) in steps[..taken].iter().rev() {
            let step = step.opposite();
            // The rest is undone even if this is not: less is left to repair.
            if let Err(source) = step.run(range, host) {
                undo.get_or_insert(Box::new(HostError { step, range: *range, source, undo: None }));
            }
        }
        return Err(HostError { step: *step, range: *range, source, undo });
    }
    Ok(())
}
