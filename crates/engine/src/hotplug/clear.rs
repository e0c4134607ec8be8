//! Emptying memory that is in use: it is isolated, its owners are asked to move what they have there, and what they let go
//! of is collected.

use alloc::vec::Vec;
use core::ops::Range;

use super::error::Busy;
use super::migrate::{Migrate, Migration};
use crate::descriptors::seam::OfflinePages;
use crate::engine::Engine;
use crate::geometry::{AREA_ORDER, Order, PAGES_PER_ROW, Pfn, areas_of};
use crate::heap::{OutOfMemory, try_vec};
use crate::isolate::Isolated;
use crate::page::PageKind;
use crate::platform::Platform;
use crate::protocol::class::Miss;
use crate::walk::Walker;

/// What became of an area that was to be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// All of it was free already.
    Free,
    /// It was in use, and is empty now: what was in it has moved, or was freed.
    Moved,
    /// It stays in use for now. (Or it is isolated by other code, or no memory is behind it.)
    Busy,
    /// It stays in use: a folio in it does not move.
    Pinned,
}

/// What is to be emptied: pieces, each of use as a whole only.
#[derive(Clone, Copy)]
pub(super) struct Pieces<'p> {
    /// Whole pieces, ascending.
    pub(super) parts: &'p [Range<u64>],
    /// Pages of a piece: whole areas.
    pub(super) pages: u64,
    /// Whether all owners are asked even where one has refused: somebody wants to know how many do.
    pub(super) counts_all: bool,
}

impl Pieces<'_> {
    /// From the last to the first.
    fn downward(&self) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let pages = self.pages.max(1);
        self.parts.iter().rev().flat_map(move |part| {
            let count = (part.end - part.start) / pages;
            (0..count).rev().map(move |index| {
                let start = part.start + index * pages;
                start..start + pages
            })
        })
    }
}

/// Isolated memory on its way to being empty. Dropping it puts all of it back into circulation.
pub(super) struct Clearing<'e, 'p, P: Platform> {
    engine: &'e Engine<P>,
    pub(super) isolated: Isolated<'e, P>,
    pieces: Pieces<'p>,
    /// Of each area, from the first one on.
    fates: Vec<Fate>,
    first_area: u64,
    /// Where nothing is in use there is nothing to look at.
    walker: Option<Walker<'e, P>>,
    /// Owners who refused.
    unmovable: u64,
    /// Nobody was asked below this page.
    pub(super) asked_from: u64,
    /// An owner found no memory for a copy. The piece it was asked for begins at `asked_from`.
    pub(super) no_room: bool,
}

impl<'e, 'p, P: Platform> Clearing<'e, 'p, P> {
    /// `isolated` has what can be had of `pieces`.
    pub(super) fn new(
        engine: &'e Engine<P>,
        isolated: Isolated<'e, P>,
        pieces: Pieces<'p>,
    ) -> Result<Self, OutOfMemory> {
        let areas = areas_of(&isolated.pages());
        let mut fates = try_vec(usize::try_from(areas.end - areas.start).map_err(|_| OutOfMemory)?)?;
        let isolation = &isolated.isolation;
        let is_free = |area| isolation.has_marked(area) && isolation.missing_in(area).next().is_none();
        fates.extend(areas.clone().map(|area| if is_free(area) { Fate::Free } else { Fate::Busy }));
        let is_used = isolation.missing().next().is_some();
        let walker = if is_used { Some(engine.walker()?) } else { None };
        let asked_from = isolated.pages().start;
        Ok(Self {
            engine,
            isolated,
            pieces,
            fates,
            first_area: areas.start,
            walker,
            unmovable: 0,
            asked_from,
            no_room: false,
        })
    }

    fn fate(&self, area: u64) -> Fate {
        let index = area.wrapping_sub(self.first_area);
        self.fates.get(index as usize).copied().unwrap_or(Fate::Busy)
    }

    fn set_fates(&mut self, areas: Range<u64>, fate: Fate) {
        for area in areas {
            if let Some(place) = self.fates.get_mut(area.wrapping_sub(self.first_area) as usize) {
                *place = fate;
            }
        }
    }

    fn is_pinned(&self, piece: &Range<u64>) -> bool {
        areas_of(piece).any(|area| self.fate(area) == Fate::Pinned)
    }

    /// Asks for what is in use, until about `enough` pages are empty, and collects it. Owners are asked once, and again only
    /// after something has changed: `passes` times at most.
    pub(super) fn empty(&mut self, migrate: &mut dyn Migrate<'e, P>, enough: u64, passes: usize) {
        let mut before = if self.walker.is_some() { self.left() } else { 0 };
        for _ in 0..passes.max(1) {
            if before == 0 {
                break;
            }
            let is_waiting = self.ask(migrate, enough);
            self.isolated.isolation.collect();
            let mut now = self.left();
            if now > 0 && is_waiting {
                // Who only looked lets go by then.
                self.engine.rcu.synchronize();
                self.isolated.isolation.collect();
                now = self.left();
            }
            if self.no_room || now >= before {
                break;
            }
            before = now;
        }
        for area in areas_of(&self.isolated.pages()) {
            if self.fate(area) == Fate::Busy
                && self.isolated.isolation.has_marked(area)
                && self.in_use(area).next().is_none()
            {
                self.set_fates(area..area + 1, Fate::Moved);
            }
        }
    }

    /// Asks once for every folio in pieces where none is pinned. Whether somebody may let go of something soon.
    fn ask(&mut self, migrate: &mut dyn Migrate<'e, P>, enough: u64) -> bool {
        let (mut is_waiting, mut emptied) = (false, 0);
        let pieces = self.pieces;
        for piece in pieces.downward() {
            if emptied >= enough {
                self.asked_from = piece.end;
                break;
            }
            if self.is_pinned(&piece) {
                continue;
            }
            let mut from = Pfn(piece.start);
            while from.0 < piece.end {
                let asked = self.ask_from(from, &piece, migrate);
                from = Pfn(piece.end);
                match asked {
                    Asked::Emptied { had_any } => {
                        emptied += piece.end - piece.start;
                        is_waiting |= had_any;
                    }
                    Asked::Busy => is_waiting = true,
                    Asked::Pinned(pages) => {
                        self.unmovable += 1;
                        if self.pieces.counts_all {
                            from = Pfn(pages.end);
                        }
                        self.set_fates(
                            pages.start >> AREA_ORDER..((pages.end - 1) >> AREA_ORDER) + 1,
                            Fate::Pinned,
                        );
                    }
                    Asked::NoRoom => {
                        (self.asked_from, self.no_room) = (piece.start, true);
                        return true;
                    }
                }
            }
        }
        is_waiting
    }

    /// Asks for all folios of `piece` from `from` on, until one does not move.
    fn ask_from(&self, from: Pfn, piece: &Range<u64>, migrate: &mut dyn Migrate<'e, P>) -> Asked {
        let Some(walker) = &self.walker else { return Asked::Emptied { had_any: false } };
        let (mut had_any, mut is_busy) = (false, false);
        let mut next = from;
        for pfn in areas_of(&(from.0..piece.end)).flat_map(|area| self.missing_in(area)) {
            if pfn < next {
                continue;
            }
            had_any = true;
            match walker.try_get(pfn) {
                // Of the driver itself, without memory behind it.
                Ok(folio) if folio.kind() == PageKind::Offline => is_busy = true,
                Ok(folio) => {
                    let pages = folio.pfn().0..folio.pfn().plus(folio.order().pages()).0;
                    next = Pfn(pages.end);
                    match migrate.migrate(folio) {
                        Migration::Moved => {}
                        Migration::Busy => is_busy = true,
                        Migration::NoMemory => return Asked::NoRoom,
                        Migration::Unmovable => return Asked::Pinned(pages),
                    }
                }
                // Another CPU is at it just now.
                Err(Miss::Frozen | Miss::Saturated) => is_busy |= self.is_in_use(pfn),
                // Freed, or without an owner.
                Err(Miss::Free | Miss::Absent | Miss::Offline | Miss::Stray) => {}
            }
        }
        if is_busy { Asked::Busy } else { Asked::Emptied { had_any } }
    }

    /// Pages of `area` that were not collected.
    fn missing_in(&self, area: u64) -> impl Iterator<Item = Pfn> + '_ {
        self.isolated.isolation.missing_in(area).flat_map(|(row, missing)| {
            (0..PAGES_PER_ROW)
                .filter(move |bit| missing >> bit & 1 != 0)
                .map(move |bit| row.first_pfn().plus(bit))
        })
    }

    /// Those that are in use.
    fn in_use(&self, area: u64) -> impl Iterator<Item = Pfn> + '_ {
        self.missing_in(area).filter(|&pfn| self.is_in_use(pfn))
    }

    /// Whether `pfn`, which was not collected, is in use. If not it is withheld, or given up by a driver. (A broken page
    /// that is just about to be withheld counts as in use: another CPU owns it until it has noted that.)
    fn is_in_use(&self, pfn: Pfn) -> bool {
        !self.engine.map.withheld.contains(pfn) && !self.is_given_up(pfn)
    }

    /// Whether a driver has given `pfn` up (classic fake-offline): it is without an owner, and not the allocator's either.
    fn is_given_up(&self, pfn: Pfn) -> bool {
        // Owners may still fold the tails of what they have here.
        let _section = self.walker.as_ref().map(Walker::section);
        self.engine.map.is_given_up(pfn)
    }

    /// Pages in use in pieces that are not pinned.
    fn left(&self) -> u64 {
        let open = self.pieces.downward().filter(|piece| !self.is_pinned(piece));
        open.flat_map(|piece| areas_of(&piece)).map(|area| self.in_use(area).count() as u64).sum()
    }

    /// All that is in use; `None` if nothing is.
    pub(super) fn busy(&self) -> Option<Busy> {
        let mut in_use = areas_of(&self.isolated.pages()).flat_map(|area| self.in_use(area));
        let near = in_use.next()?;
        Some(Busy { pages: 1 + in_use.count() as u64, unmovable: self.unmovable, near })
    }

    /// Pages that the allocator had in `taken`, all of which is empty.
    pub(super) fn managed(&self, taken: &[Range<u64>]) -> u64 {
        let areas = taken.iter().flat_map(areas_of);
        let areas = areas.filter(|&area| self.isolated.isolation.has_marked(area));
        let given_up = |area| self.missing_in(area).filter(|&pfn| self.is_given_up(pfn)).count() as u64;
        areas.map(|area| Order::AREA.pages() - given_up(area)).sum()
    }

    /// Chooses pieces that are empty, from the last one down: at most so many pages, in at most so many runs, ascending. And
    /// the page from which on everything was considered.
    pub(super) fn choose(&self, pages: u64, runs: usize) -> (Vec<Range<u64>>, u64) {
        let mut taken: Vec<Range<u64>> = Vec::new();
        let (mut left, mut from) = (pages, self.asked_from);
        for piece in self.pieces.downward() {
            if piece.end <= from {
                break;
            }
            let is_empty = areas_of(&piece).all(|area| matches!(self.fate(area), Fate::Free | Fate::Moved));
            if !is_empty {
                continue;
            }
            let is_next = |run: &Range<u64>| run.start == piece.end;
            let has_place =
                taken.last().is_some_and(is_next) || taken.len() < runs && taken.try_reserve(1).is_ok();
            if left < self.pieces.pages || !has_place {
                from = piece.end;
                break;
            }
            left -= self.pieces.pages;
            match taken.last_mut() {
                Some(run) if run.start == piece.end => run.start = piece.start,
                _ => taken.push(piece),
            }
        }
        taken.reverse();
        (taken, from)
    }

    /// Whether pieces were left out for want of memory for copies, all below those that were considered.
    pub(super) fn into_parts(self) -> (Isolated<'e, P>, Vec<Fate>) {
        (self.isolated, self.fates)
    }
}

/// What asking for a piece came to.
enum Asked {
    /// All that was in it has moved, or was freed; if there was any.
    Emptied { had_any: bool },
    /// Something in it stays for now.
    Busy,
    /// The folio of these pages does not move.
    Pinned(Range<u64>),
    /// There is no memory for a copy.
    NoRoom,
}
