//! Owners of folios: what they are asked in one step, what they answered, and what they refused to move.
//!
//! A folio that stays keeps its sub-block plugged, so one refusal is recorded for each sub-block, and its owner is not asked
//! again at every attempt. A refusal stands while that folio is there and has as many references as before: a pin that ends
//! puts a reference, or frees the folio. (Another folio may be at the same place by then, with as many. That it is another one
//! shows in a mark, which each folio gets that is asked about, and loses when it is freed.) An owner's own mark shows in no
//! reference; the owner reports its end by [`Driver::ask_again`](crate::Driver::ask_again). A new requested size ends all
//! refusals.

use alloc::vec::Vec;

use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{Migrate, Migration};
use pagefold_engine::{Folio, Order, OutOfMemory, Pfn, Platform, Walker, Zone};

use crate::geometry::Geometry;
use crate::status::{Shortfall, StuckBlocks};
use crate::stop::Stop;

/// Questions to owners in one step: each may cost a copy. A sub-block of 2 MiB has fewer folios in as many passes as the
/// default configuration makes, so one sub-block is never too much for a step.
pub(crate) const STEP_QUESTIONS: u64 = 4096;

/// What the driver knows of owners.
pub(crate) struct Owners {
    pub(crate) refusals: Refusals,
    pub(crate) questions: Questions,
    /// What the current pass of unplugging left behind in the normal and in the movable zone.
    stuck: [StuckBlocks; 2],
}

/// The questions of one step, and what came of them.
#[derive(Default)]
pub(crate) struct Questions {
    /// Questions that may still be asked.
    pub(crate) left: u64,
    pub(crate) asked: u64,
    moved: u64,
    /// A question was due and none was left.
    are_spent: bool,
}

impl Questions {
    /// If an attempt ended because no question was left, the reason: [`Stop::Paused`] where most questions moved a folio.
    pub(crate) fn spent(&self) -> Option<Stop> {
        let get_somewhere = self.moved * 2 >= self.asked;
        self.are_spent.then_some(if get_somewhere { Stop::Paused } else { Stop::IN_USE })
    }
}

impl Owners {
    pub(crate) fn new(refusals: Refusals) -> Self {
        Self { refusals, questions: Questions::default(), stuck: Default::default() }
    }

    pub(crate) fn begin_step(&mut self) {
        self.questions = Questions { left: STEP_QUESTIONS, ..Questions::default() };
    }

    /// A pass of unplugging begins.
    pub(crate) fn begin_pass(&mut self) {
        self.stuck = Default::default();
    }

    /// Records a sub-block of `zone` that `stop` kept from being unplugged.
    pub(crate) fn note_stuck(&mut self, zone: Zone, stop: Stop) {
        let [normal, movable] = &mut self.stuck;
        let stuck = match zone {
            Zone::Normal => normal,
            Zone::Movable => movable,
        };
        if stop == Stop::PINNED {
            stuck.pinned += 1;
        } else {
            stuck.busy += 1;
        }
    }

    /// What the current pass left behind.
    pub(crate) fn in_use(&self) -> Shortfall {
        let [normal, movable] = self.stuck;
        Shortfall::InUse { normal, movable }
    }
}

/// Asks the owners behind `migrate`, as often as `owners` allows, and records their answers.
pub(crate) struct Asking<'m, 'e, P: Platform> {
    pub(crate) migrate: &'m mut dyn Migrate<'e, P>,
    pub(crate) owners: &'m mut Owners,
}

impl<'e, P: Platform> Migrate<'e, P> for Asking<'_, 'e, P> {
    fn migrate(&mut self, folio: Folio<'e, P>) -> Migration {
        let Owners { refusals, questions, .. } = &mut *self.owners;
        if questions.left == 0 {
            questions.are_spent = true;
            // The answer that ends an attempt at once.
            return Migration::NoMemory;
        }
        questions.left -= 1;
        questions.asked += 1;
        folio.mark_asked();
        // Without the reference of the question itself.
        let (head, order, refs) = (folio.pfn(), folio.order(), folio.refs().saturating_sub(1));
        let answer = self.migrate.migrate(folio);
        match answer {
            Migration::Unmovable => refusals.note(head, order, refs),
            Migration::Moved => questions.moved += 1,
            Migration::Busy | Migration::NoMemory => {}
        }
        answer
    }
}

/// A folio that its owner refused to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    head: Pfn,
    /// References it had; 0 where nothing was refused, since a folio that could be asked about has one.
    refs: u32,
}

const NONE: Refusal = Refusal { head: Pfn(0), refs: 0 };

/// One refusal for each sub-block of a unit, or an empty list for a unit without any.
pub(crate) struct Refusals {
    geometry: Geometry,
    units: Vec<Vec<Refusal>>,
    has_any: bool,
}

impl Refusals {
    pub(crate) fn new(geometry: Geometry) -> Result<Self, OutOfMemory> {
        let count = usize::try_from(geometry.units).map_err(|_| OutOfMemory)?;
        let mut units = Vec::new();
        units.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        units.resize_with(count, Vec::new);
        Ok(Self { geometry, units, has_any: false })
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        if core::mem::take(&mut self.has_any) {
            self.units.iter_mut().for_each(|unit| *unit = Vec::new());
        }
    }

    /// Forgets those of a unit.
    pub(crate) fn forget(&mut self, unit: u64) {
        if let Some(unit) = self.units.get_mut(unit as usize) {
            *unit = Vec::new();
        }
    }

    /// Records a folio in all sub-blocks it reaches into. Without memory for the record its owner is asked again later.
    fn note(&mut self, head: Pfn, order: Order, refs: u32) {
        let geometry = self.geometry;
        let sub_pages = geometry.sub_block() >> PAGE_SHIFT;
        let (first, end) = (head.0, head.0.saturating_add(order.pages()));
        let mut pfn = first;
        while pfn < end {
            if let Some((unit, sub)) = geometry.sub_block_of(pfn)
                && let Some(subs) = self.units.get_mut(unit as usize)
            {
                if subs.is_empty() && subs.try_reserve_exact(geometry.per_unit() as usize).is_ok() {
                    subs.resize(geometry.per_unit() as usize, NONE);
                }
                if let Some(refusal) = subs.get_mut(sub as usize) {
                    *refusal = Refusal { head, refs: refs.max(1) };
                    self.has_any = true;
                }
            }
            pfn = (pfn / sub_pages + 1).saturating_mul(sub_pages);
        }
    }

    /// Whether something in sub-block `sub` of `unit` was refused and still is as it was then.
    pub(crate) fn stands<P: Platform>(&mut self, walker: &Walker<'_, P>, unit: u64, sub: u64) -> bool {
        let refusal = self.units.get_mut(unit as usize).and_then(|subs| subs.get_mut(sub as usize));
        let Some(refusal) = refusal.filter(|refusal| refusal.refs > 0) else { return false };
        let head = walker.peek(refusal.head).and_then(|peek| peek.head);
        let stands = head.is_some_and(|(head, state)| {
            head == refusal.head && state.is_asked() && state.refs() >= refusal.refs
        });
        if !stands {
            *refusal = NONE;
        }
        stands
    }

    /// Whether there may be refusals anywhere.
    pub(crate) fn are_any(&self) -> bool {
        self.has_any
    }

    /// Calls `each` with the unit and the sub-block of all refusals that still stand.
    pub(crate) fn each_standing<P: Platform>(
        &mut self,
        walker: &Walker<'_, P>,
        mut each: impl FnMut(u64, u64),
    ) {
        for unit in 0..self.units.len() as u64 {
            let subs = self.units.get(unit as usize).map_or(0, Vec::len) as u64;
            (0..subs).filter(|&sub| self.stands(walker, unit, sub)).for_each(|sub| each(unit, sub));
        }
    }

    /// Whether there may be refusals in `unit`.
    pub(crate) fn has_any(&self, unit: u64) -> bool {
        self.units.get(unit as usize).is_some_and(|subs| !subs.is_empty())
    }
}
