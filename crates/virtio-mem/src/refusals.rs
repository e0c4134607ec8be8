//! What owners have said they will not move, so that they are not asked again at every attempt.
//!
//! One folio that stays keeps its sub-block plugged, whatever the others there do, so one for each sub-block is enough. It
//! counts for as long as it stands where it stood with as many references: a pin that ends gives a reference back, or frees
//! the folio. What cannot be seen that way (an owner's own mark) is for the owner to tell, by
//! [`Driver::ask_again`](crate::Driver::ask_again). A new wish of the host's ends all of them.

use alloc::vec::Vec;

use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{Migrate, Migration};
use pagefold_engine::{Folio, Order, OutOfMemory, Pfn, Platform, Walker};

use crate::config::Geometry;

/// A folio that its owner will not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    head: Pfn,
    /// References it had; 0 where nothing was refused, since a folio that could be asked about has one.
    refs: u32,
}

const NONE: Refusal = Refusal { head: Pfn(0), refs: 0 };

/// For each unit one refusal a sub-block, or nothing where none was heard of.
#[derive(Debug)]
pub(crate) struct Refusals {
    geometry: Geometry,
    units: Vec<Vec<Refusal>>,
    are_any: bool,
}

impl Refusals {
    pub(crate) fn new(geometry: Geometry) -> Result<Self, OutOfMemory> {
        let count = usize::try_from(geometry.units).map_err(|_| OutOfMemory)?;
        let mut units = Vec::new();
        units.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        units.resize_with(count, Vec::new);
        Ok(Self { geometry, units, are_any: false })
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        if core::mem::take(&mut self.are_any) {
            self.units.iter_mut().for_each(|unit| *unit = Vec::new());
        }
    }

    /// Forgets those of a unit.
    pub(crate) fn forget(&mut self, unit: u64) {
        if let Some(unit) = self.units.get_mut(unit as usize) {
            *unit = Vec::new();
        }
    }

    /// Notes a folio in all sub-blocks it reaches into. Without memory for the note its owner is asked again some time.
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
                    self.are_any = true;
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
        let stands = head.is_some_and(|(head, state)| head == refusal.head && state.refs() >= refusal.refs);
        if !stands {
            *refusal = NONE;
        }
        stands
    }

    /// Whether one of `unit`'s stands.
    pub(crate) fn any_stands<P: Platform>(&mut self, walker: &Walker<'_, P>, unit: u64) -> bool {
        let subs = self.units.get(unit as usize).map_or(0, |subs| subs.len() as u64);
        (0..subs).any(|sub| self.stands(walker, unit, sub))
    }
}

/// Questions to owners in one step, and what came of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Questions {
    /// Questions that may still be asked.
    pub(crate) left: u64,
    pub(crate) asked: u64,
    moved: u64,
    /// One more was due than there were left.
    pub(crate) are_spent: bool,
}

impl Questions {
    pub(crate) fn new(left: u64) -> Self {
        Self { left, ..Self::default() }
    }

    /// Whether most of them made a folio move, so that asking on gets somewhere.
    pub(crate) fn were_worth_it(&self) -> bool {
        self.moved * 2 >= self.asked
    }
}

/// Asks owners, and notes who refuses.
pub(crate) struct Asking<'m, 'e, P: Platform> {
    pub(crate) owners: &'m mut dyn Migrate<'e, P>,
    pub(crate) refusals: &'m mut Refusals,
    pub(crate) questions: &'m mut Questions,
}

impl<'e, P: Platform> Migrate<'e, P> for Asking<'_, 'e, P> {
    fn migrate(&mut self, folio: Folio<'e, P>) -> Migration {
        if self.questions.left == 0 {
            self.questions.are_spent = true;
            // What ends an attempt at once.
            return Migration::NoMemory;
        }
        self.questions.left -= 1;
        self.questions.asked += 1;
        let (head, order) = (folio.pfn(), folio.order());
        // Without the one that was taken to ask.
        let refs = folio.refs().saturating_sub(1);
        let answer = self.owners.migrate(folio);
        match answer {
            Migration::Unmovable => self.refusals.note(head, order, refs),
            Migration::Moved => self.questions.moved += 1,
            Migration::Busy | Migration::NoMemory => {}
        }
        answer
    }
}
