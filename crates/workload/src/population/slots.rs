//! Which slots of an index are whose, and which of them hold a folio.

use alloc::vec::Vec;
use core::ops::Range;

use fastrand::Rng;
use pagefold_engine::Order;

use super::error::PopulationError;
use super::usage::{Part, Workload};

/// The slots of one part of one workload.
pub(super) struct PartSlots {
    workload: usize,
    part: Part,
    /// The slot after its last one.
    end: usize,
    /// All its slots: first those that hold a folio, `held` of them, then the empty ones, the next one to be used first.
    slots: Vec<u32>,
    held: usize,
}

impl PartSlots {
    pub(super) fn order(&self) -> Order {
        self.part.order
    }
    /// As [`Part::folios`].
    pub(super) fn folios(&self, bytes: u64) -> u64 {
        self.part.folios(bytes)
    }
    /// Slots that hold a folio.
    pub(super) fn held(&self) -> u64 {
        self.held as u64
    }
    /// The slot that the next folio goes into.
    pub(super) fn next(&self) -> Option<usize> {
        self.slots.get(self.held).map(|&slot| slot as usize)
    }
    /// Notes that the next slot holds a folio.
    pub(super) fn fill(&mut self) {
        self.held = (self.held + 1).min(self.slots.len());
    }
    /// Takes a slot with a folio, at random; it is empty now.
    pub(super) fn empty_any(&mut self, rng: &mut Rng) -> Option<usize> {
        let last = self.held.checked_sub(1)?;
        self.slots.swap(rng.usize(0..self.held), last);
        self.held = last;
        self.next()
    }
    /// Brings the slots with a folio into a random order.
    fn shuffle(&mut self, rng: &mut Rng) -> &[u32] {
        let held = self.slots.get_mut(..self.held).unwrap_or_default();
        rng.shuffle(held);
        held
    }
}

/// The slots of all workloads.
pub(super) struct Slots {
    /// In the order of their slots.
    parts: Vec<PartSlots>,
    /// Whether the folio is pinned, by slot; `first` is the first one.
    pinned: Vec<bool>,
    first: usize,
}

impl Slots {
    /// A slot for every folio that `workloads` have room for, out of `available`.
    pub(super) fn new(workloads: &[Workload], available: Range<usize>) -> Result<Self, PopulationError> {
        let needed = super::slots(workloads);
        if needed > available.len() || u32::try_from(available.end).is_err() {
            return Err(PopulationError::FewSlots { needed, available: available.len() });
        }
        let mut parts = Vec::new();
        parts.try_reserve_exact(workloads.iter().map(|workload| workload.parts().len()).sum())?;
        let mut next = available.start;
        for (workload, part) in workloads
            .iter()
            .enumerate()
            .flat_map(|(at, load)| load.parts().iter().map(move |part| (at, part)))
        {
            let start = next;
            next += part.most() as usize;
            let mut slots = Vec::new();
            slots.try_reserve_exact(next - start)?;
            slots.extend(start as u32..next as u32);
            parts.push(PartSlots { workload, part: *part, end: next, slots, held: 0 });
        }
        let mut pinned = Vec::new();
        pinned.try_reserve_exact(needed)?;
        pinned.resize(needed, false);
        Ok(Self { parts, pinned, first: available.start })
    }

    /// Numbers of the parts of a workload.
    pub(super) fn of(&self, workload: usize) -> Range<usize> {
        let start = self.parts.partition_point(|part| part.workload < workload);
        start..self.parts.partition_point(|part| part.workload <= workload)
    }

    /// The number of the part of `workload` whose folios have this order.
    pub(super) fn of_order(&self, workload: usize, order: Order) -> Option<usize> {
        self.of(workload).find(|&part| self.part(part).is_some_and(|part| part.order() == order))
    }

    pub(super) fn part(&self, part: usize) -> Option<&PartSlots> {
        self.parts.get(part)
    }
    pub(super) fn part_mut(&mut self, part: usize) -> Option<&mut PartSlots> {
        self.parts.get_mut(part)
    }

    /// Slots that hold a folio.
    pub(super) fn held(&self) -> u64 {
        self.parts.iter().map(PartSlots::held).sum()
    }

    /// The workload that a slot belongs to.
    pub(super) fn workload(&self, slot: usize) -> Option<usize> {
        slot.checked_sub(self.first)?;
        let part = self.parts.partition_point(|part| part.end <= slot);
        self.parts.get(part).map(|part| part.workload)
    }

    pub(super) fn is_pinned(&self, slot: usize) -> bool {
        slot.checked_sub(self.first).and_then(|at| self.pinned.get(at)).copied().unwrap_or(false)
    }

    pub(super) fn pin(&mut self, slot: usize, pinned: bool) {
        if let Some(entry) = slot.checked_sub(self.first).and_then(|at| self.pinned.get_mut(at)) {
            *entry = pinned;
        }
    }

    /// Pins so many of the folios of a part, at random, and unpins the others.
    pub(super) fn pin_any(&mut self, part: usize, count: u64, rng: &mut Rng) {
        let Some(part) = self.parts.get_mut(part) else { return };
        for (slot, at) in part.shuffle(rng).iter().zip(0u64..) {
            let entry = (*slot as usize).checked_sub(self.first).and_then(|at| self.pinned.get_mut(at));
            if let Some(entry) = entry {
                *entry = at < count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::Use;
    use super::*;

    fn slots() -> Slots {
        let order = |bits| Order::new(bits).unwrap();
        let mut mixed =
            Workload::new(Use::Anonymous, &[(order(0), 0.5), (order(2), 0.5)], 0.0, false).unwrap();
        let mut huge = Workload::new(Use::Hugetlb, &[], 0.0, false).unwrap();
        mixed.allow(64 << 10);
        huge.allow(6 << 20);
        Slots::new(&[mixed, huge], 100..113).unwrap()
    }

    #[test]
    fn every_slot_has_one_owner() {
        let slots = slots();
        assert_eq!((slots.of(0), slots.of(1), slots.of(2)), (0..2, 2..3, 3..3));
        assert_eq!(slots.of_order(0, Order::new(2).unwrap()), Some(1));
        for (slot, workload) in
            [(99, None), (100, Some(0)), (109, Some(0)), (110, Some(1)), (112, Some(1)), (113, None)]
        {
            assert_eq!(slots.workload(slot), workload, "{slot}");
        }
    }

    #[test]
    fn folios_come_and_go_and_no_slot_is_lost() {
        let (mut slots, mut rng) = (slots(), Rng::with_seed(1));
        let part = slots.part_mut(0).unwrap();
        for slot in 100..108 {
            assert_eq!(part.next(), Some(slot));
            part.fill();
        }
        assert_eq!(part.next(), None);
        part.fill();
        let emptied = part.empty_any(&mut rng);
        assert_eq!((part.held(), part.next()), (7, emptied), "the slot that was emptied last is used first");
        let mut all = part.slots.clone();
        all.sort_unstable();
        assert!(all.into_iter().eq(100..108));
        while part.empty_any(&mut rng).is_some() {}
        assert_eq!(slots.held(), 0);
    }

    #[test]
    fn so_many_are_pinned() {
        let (mut slots, mut rng) = (slots(), Rng::with_seed(1));
        for _ in 0..8 {
            slots.part_mut(0).unwrap().fill();
        }
        slots.pin_any(0, 3, &mut rng);
        assert_eq!((100..113).filter(|&slot| slots.is_pinned(slot)).count(), 3);
        slots.pin_any(0, 0, &mut rng);
        assert!(!(0..200).any(|slot| slots.is_pinned(slot)));
    }
}
