//! Why a step of memory hotplug failed, and what to do then.

use core::fmt;

use crate::errors::{error_texts, from_out_of_memory};
use crate::geometry::Pfn;
use crate::page::State;
use crate::zone::BlockState;

/// Why there is no [`Hotplug`](super::Hotplug).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotplugError {
    /// The engine has, or had, one already. It is the lock of memory hotplug, and keeps its counts.
    Taken,
    /// The block size is not a power of two of at least a section, or larger than the machine.
    BlockSize,
}

error_texts!(HotplugError {
    Taken => "memory hotplug of this engine was already created",
    BlockSize => "a memory block must be a power of two of at least 128 MiB, inside the machine",
});

/// Why a memory block, or a part of one, did not change its state. Nothing was changed but for what owners have moved, and who
/// was told was told that it is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// No block of that number was added.
    UnknownBlock,
    /// The block is not in the state that this step begins with.
    State(BlockState),
    /// Not whole areas of 2 MiB of one online memory block; or of several in one zone, where a step takes several.
    BadRange,
    /// The page is not fake-offline, so it cannot become online again.
    NotFakeOffline(Pfn),
    /// The page is fake-offline already.
    AlreadyFakeOffline(Pfn),
    /// A listener refused.
    Veto(Veto),
    /// A listener contradicts itself: correct the listener.
    BadPart(BadPart),
    /// Some of its memory stays in use.
    Busy(Busy),
    /// Some of its memory stays in use, since there is no memory to move it to: free some and retry.
    NoRoom(Busy),
    /// A walker holds on to a page that is fake-offline (with [`FakeOffline::Classic`](super::FakeOffline::Classic) only): retry when it lets go.
    Held(HeldPage),
    /// No memory for the step: free some and retry.
    OutOfMemory,
}

from_out_of_memory!(BlockError);

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockError::UnknownBlock => f.write_str("no such memory block"),
            BlockError::State(state) => write!(f, "the memory block is {state:?}"),
            BlockError::BadRange => f.write_str("not whole areas of 2 MiB in one online memory block"),
            BlockError::NotFakeOffline(pfn) => write!(f, "{pfn} is not fake-offline"),
            BlockError::AlreadyFakeOffline(pfn) => write!(f, "{pfn} is fake-offline already"),
            BlockError::Veto(veto) => write!(f, "refused: {veto}"),
            BlockError::BadPart(bad) => write!(f, "what memory is behind the block: {bad}"),
            BlockError::Busy(busy) => write!(f, "{busy}"),
            BlockError::NoRoom(busy) => {
                write!(f, "no free memory to move used pages to: free some and retry; {busy}")
            }
            BlockError::Held(page) => write!(f, "{page}"),
            BlockError::OutOfMemory => f.write_str("no memory for this step: free some and retry"),
        }
    }
}
impl core::error::Error for BlockError {}

/// What stayed in use, after all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Pages in use.
    pub pages: u64,
    /// Folios among them whose owners will not move them.
    pub unmovable: u64,
    /// One of the pages.
    pub near: Pfn,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages stay in use, one near {}", self.pages, self.near)?;
        if self.unmovable > 0 { write!(f, "; {} folios are pinned", self.unmovable) } else { Ok(()) }
    }
}

/// A fake-offline page with a reference too many, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPage {
    /// The page.
    pub pfn: Pfn,
    /// Its descriptor.
    pub state: State,
}

impl fmt::Display for HeldPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is fake-offline, but somebody holds on to it: {:?}", self.pfn, self.state)
    }
}

/// Why a listener refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Veto {
    /// For a reason of its own.
    Refused(&'static str),
}

impl fmt::Display for Veto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Veto::Refused(reason) => f.write_str(reason),
        }
    }
}

/// What a listener said of the memory behind a block, and it cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPart {
    /// The part is empty, reaches beyond the block, or does not begin and end at multiples of 2 MiB.
    NotAreas {
        /// Its first page.
        start: u64,
        /// The page after its last.
        end: u64,
    },
    /// The part does not come after the parts before it: they must ascend, and no page be named twice.
    NotAscending {
        /// Its first page.
        start: u64,
        /// The page after its last.
        end: u64,
    },
    /// Parts were named of a block that is none of the listener's business.
    NotIts,
}

impl fmt::Display for BadPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPart::NotAreas { start, end } => {
                write!(f, "{}..{end:#x} is not whole areas of 2 MiB of the block", Pfn(*start))
            }
            BadPart::NotAscending { start, end } => {
                write!(f, "{}..{end:#x} does not come after the parts before it", Pfn(*start))
            }
            BadPart::NotIts => {
                f.write_str("there are parts, but the block is none of the listener's business")
            }
        }
    }
}
impl core::error::Error for BadPart {}
