//! Taking memory back that is in use: nothing new is allocated in it, what is free is collected, and the owners of the
//! rest are asked to move it.

use alloc::vec::Vec;
use core::ops::Range;

use super::error::{Busy, WithdrawError};
use crate::descriptors::seam::OfflinePages;
use crate::engine::Engine;
use crate::folio::Folio;
use crate::frames::isolate::{IsolateError, Isolation};
use crate::geometry::{Order, PAGES_PER_ROW, Pfn};
use crate::isolate::Isolated;
use crate::platform::Platform;
use crate::protocol::Protocol;
use crate::protocol::class::{ClassEntry, Miss};
use crate::walk::Walker;

/// What an owner says of a folio it was asked to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// Moved: its references on the old folio are gone, or going.
    Moved,
    /// Not just now (locked, on its way elsewhere): ask again after a grace period.
    Busy,
    /// There is no memory for the copy. Others would not find any either, so the attempt ends at once and no other owner is
    /// asked (Linux: `-ENOMEM` of `alloc_contig_range`).
    NoMemory,
    /// Never, or not for a long time: pinned, or not its folio at all. It is not asked again in the same attempt, which
    /// ends as soon as everybody else was asked once.
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

/// A range that has been emptied. Dropping it puts it back into circulation.
pub(crate) struct Withdrawal<'e, P: Platform> {
    pub(crate) isolated: Isolated<'e, P>,
    /// Pages of it that the allocator had.
    pub(crate) pages: u64,
}

/// What is left in a range.
#[derive(Default)]
struct Left {
    pages: u64,
    /// Pages the driver has given up (classic fake-offline): without an owner, and not the allocator's either.
    given_up: u64,
    unmovable: u64,
    /// An owner found no memory for a copy.
    no_room: bool,
    near: Option<Pfn>,
}

/// Folios whose owners will not move them: a bit a page of the range, set for the page by which they were found.
struct Refused {
    start: u64,
    bits: Vec<u64>,
}

impl Refused {
    /// None refused. `None` without memory for the bits.
    fn new(pages: &Range<u64>) -> Option<Self> {
        let words = usize::try_from((pages.end - pages.start).div_ceil(64)).ok()?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).ok()?;
        bits.resize(words, 0);
        Some(Self { start: pages.start, bits })
    }

    fn place(&self, pfn: Pfn) -> Option<(usize, u64)> {
        let bit = pfn.0.checked_sub(self.start)?;
        Some((usize::try_from(bit / 64).ok()?, 1 << (bit % 64)))
    }

    fn note(&mut self, pfn: Pfn) {
        if let Some((word, bit)) = self.place(pfn)
            && let Some(word) = self.bits.get_mut(word)
        {
            *word |= bit;
        }
    }

    fn has(&self, pfn: Pfn) -> bool {
        self.place(pfn).is_some_and(|(word, bit)| self.bits.get(word).is_some_and(|word| word & bit != 0))
    }
}

impl<P: Platform> Engine<P> {
    /// Takes `pages` (whole areas of one zone) away from the allocator and folds their descriptors to `Offline`. Returns
    /// how many pages the allocator had. On an error the range is in circulation again, but for what owners have moved.
    pub(crate) fn withdraw<'e>(
        &'e self,
        pages: &Range<u64>,
        migrate: &mut dyn Migrate<'e, P>,
        passes: usize,
    ) -> Result<u64, WithdrawError> {
        let map_pages = self.map.map_pages_of(pages);
        // What can fail comes first.
        self.map.classes.prepare_uniform(map_pages.clone())?;
        let Withdrawal { isolated, pages: withdrawn } = self.clear_out(pages, migrate, passes)?;
        if self.map.publish_offline(map_pages.clone(), ClassEntry::OFFLINE) {
            if P::Rules::WAITS {
                self.rcu.synchronize();
            }
            // SAFETY: published just above by the owner of all of it (everything was collected), and waited for.
            unsafe { self.map.fold_offline(map_pages, ClassEntry::OFFLINE) };
        }
        isolated.remove();
        Ok(withdrawn)
    }

    /// Isolates `pages` and empties them.
    pub(crate) fn clear_out<'e>(
        &'e self,
        pages: &Range<u64>,
        migrate: &mut dyn Migrate<'e, P>,
        passes: usize,
    ) -> Result<Withdrawal<'e, P>, WithdrawError> {
        // Whatever ends this early (an error, a panic of an owner's) puts the range back into circulation.
        let zone = self.zone_of(Pfn(pages.start));
        let mut isolated = self.isolate_in(zone, pages.clone()).map_err(|error| match error {
            IsolateError::OutOfMemory => WithdrawError::OutOfMemory,
            IsolateError::BadRange | IsolateError::Isolated => WithdrawError::Busy(Busy {
                pages: pages.end - pages.start,
                unmovable: 0,
                near: Pfn(pages.start),
            }),
        })?;
        let isolation = &mut isolated.isolation;
        let had = isolation.areas_with_memory().count() as u64 * Order::AREA.pages();
        let mut left = Left::default();
        if isolation.missing_pages() != 0 {
            let walker = self.walker().map_err(|_| WithdrawError::OutOfMemory)?;
            let mut refused = Refused::new(pages).ok_or(WithdrawError::OutOfMemory)?;
            for _ in 0..passes.max(1) {
                left = self.ask_to_move(isolation, &walker, migrate, &mut refused);
                if left.pages == 0 || left.no_room {
                    break;
                }
                // Who only looked lets go by then.
                self.rcu.synchronize();
                isolation.collect();
                // One folio that never moves keeps the range. Asking the others again would not help.
                if self.uncollected(isolation).any(|pfn| refused.has(pfn) && self.is_in_use(pfn, &walker)) {
                    break;
                }
            }
            left =
                Left { unmovable: left.unmovable, no_room: left.no_room, ..self.left_in(isolation, &walker) };
        }
        match left.near {
            Some(near) => {
                let busy = Busy { pages: left.pages, unmovable: left.unmovable, near };
                Err(if left.no_room { WithdrawError::NoRoom(busy) } else { WithdrawError::Busy(busy) })
            }
            None => Ok(Withdrawal { isolated, pages: had - left.given_up }),
        }
    }

    /// Pages of the isolated range that are not collected, one by one.
    fn uncollected<'i>(&self, isolation: &'i Isolation<'_, P::Mapping>) -> impl Iterator<Item = Pfn> + 'i {
        isolation.rows_with_memory().flat_map(move |row| {
            let missing = isolation.missing(row);
            (0..PAGES_PER_ROW)
                .filter(move |bit| missing >> bit & 1 != 0)
                .map(move |bit| row.first_pfn().plus(bit))
        })
    }

    /// Whether `pfn`, which was not collected, is in use. If not it is withheld, or given up by a driver. (A broken page
    /// that is just about to be withheld counts as in use: another CPU owns it until it has noted that.)
    fn is_in_use(&self, pfn: Pfn, walker: &Walker<'_, P>) -> bool {
        let _section = walker.section();
        !self.map.withheld.contains(pfn) && !self.map.is_given_up(pfn)
    }

    fn left_in(&self, isolation: &Isolation<'_, P::Mapping>, walker: &Walker<'_, P>) -> Left {
        let mut left = Left::default();
        for pfn in self.uncollected(isolation) {
            // Owners may still fold the tails of what they have here.
            let _section = walker.section();
            if self.map.is_given_up(pfn) {
                left.given_up += 1;
            } else if self.is_in_use(pfn, walker) {
                left.pages += 1;
                left.near = left.near.or(Some(pfn));
            }
        }
        left
    }

    /// Asks the owner of every folio in the range to move it, and notes who refused. Ends early when there is no memory for
    /// copies.
    fn ask_to_move<'e>(
        &'e self,
        isolation: &Isolation<'_, P::Mapping>,
        walker: &Walker<'e, P>,
        migrate: &mut dyn Migrate<'e, P>,
        refused: &mut Refused,
    ) -> Left {
        let mut left = Left::default();
        let mut next = Pfn(0);
        for pfn in self.uncollected(isolation) {
            if pfn < next {
                continue;
            }
            match walker.try_get(pfn) {
                Ok(folio) => {
                    next = folio.pfn().plus(folio.order().pages());
                    left.pages += folio.order().pages();
                    match migrate.migrate(folio) {
                        Migration::Moved | Migration::Busy => {}
                        Migration::Unmovable => {
                            refused.note(pfn);
                            left.unmovable += 1;
                        }
                        Migration::NoMemory => {
                            left.no_room = true;
                            return left;
                        }
                    }
                }
                // Another CPU is at it just now; or it has no owner.
                Err(Miss::Frozen | Miss::Saturated | Miss::Free) => {
                    left.pages += u64::from(self.is_in_use(pfn, walker));
                }
                Err(Miss::Absent | Miss::Offline | Miss::Stray) => {}
            }
        }
        left
    }
}
