//! Owners of folios, and what they are asked when memory is taken back.

use crate::folio::Folio;
use crate::platform::Platform;

/// What an owner says of a folio it was asked to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// Moved: its references on the old folio are gone, or going.
    Moved,
    /// Not just now (locked, on its way elsewhere). Its owner is asked again by the next attempt; in the same one only where
    /// all of a block has to go, and after something in it has changed.
    Busy,
    /// There is no memory for the copy. Others would not find any either, so no other owner is asked in the same attempt
    /// (Linux: `-ENOMEM` of `alloc_contig_range`).
    NoMemory,
    /// Never, or not for a long time: pinned, or not its folio at all. It is not asked again in the same attempt; and where
    /// parts of memory are [withdrawn](super::Hotplug::withdraw), nobody is in the same piece: that would be in vain.
    Unmovable,
}

/// Owners of folios that can move what they keep somewhere else.
///
/// Whatever an owner answers, memory is safe: what is left in the range is looked up afterwards, and a folio that was said to
/// have moved and is still there is in use.
pub trait Migrate<'e, P: Platform> {
    /// Moves what `folio` holds to another folio and gives up the owner's references on it. `folio` itself is one more
    /// reference, taken to find out what is there; it ends with this call. Nothing is allocated in the range that is to
    /// be emptied. Must not wait for a grace period.
    fn migrate(&mut self, folio: Folio<'e, P>) -> Migration;
}

/// Nothing can be moved: for machines whose owners cannot do it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmovable;

impl<'e, P: Platform> Migrate<'e, P> for Unmovable {
    fn migrate(&mut self, _: Folio<'e, P>) -> Migration {
        Migration::Unmovable
    }
}
