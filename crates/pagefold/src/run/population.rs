//! The workloads' folios: taken, freed, pinned, and moved when memory is to be unplugged.

use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use pagefold_engine::hotplug::{Migrate, Migration};
use pagefold_engine::platform::Barrier;
use pagefold_engine::protocol::Fold;
use pagefold_engine::{AllocError, Engine, Folio, Frozen, Order, Pfn, Zone};
use pagefold_host::Host;
use pagefold_workload::{Index, Stamp, share};

use super::contents::Contents;
use super::plan::{Doing, PartPlan, WorkloadPlan};
use super::scenario::Use;

/// The platform of a run.
pub type Machine<B> = Host<B, Stamp>;

/// The folios of one order of one workload.
struct Part {
    /// Slots of the index, those that are empty and those that hold a folio.
    empty: Vec<usize>,
    held: Vec<usize>,
}

/// All folios of all workloads.
pub struct Population<'a, 'e, B: Barrier + Clone> {
    index: &'a Index<'e, Machine<B>, Fold>,
    contents: &'a Contents,
    plans: &'a [WorkloadPlan],
    parts: Vec<Vec<Part>>,
    /// By slot: whose it is, and whether it is pinned.
    owners: Vec<(usize, bool)>,
    rng: Rng,
    /// Pages in use, by zone.
    in_use: [u64; 2],
    /// Bytes of descriptors that Linux's HVO gives back for the hugetlb folios there are.
    hvo_saving: u64,
    migrated: u64,
    lost: u64,
}

/// Slots that a run needs.
pub fn slots(plans: &[WorkloadPlan]) -> usize {
    plans.iter().flat_map(|plan| &plan.parts).map(|part| part.most as usize).sum()
}

/// HVO keeps one map page of the descriptors of a hugetlb folio.
fn hvo_saving(usage: Use, order: Order) -> u64 {
    if usage == Use::Hugetlb { (order.map_pages() - 1) * 4096 } else { 0 }
}

impl<'a, 'e, B: Barrier + Clone> Population<'a, 'e, B> {
    /// Nothing yet, with room in `index` for all of `plans`.
    pub fn new(
        index: &'a Index<'e, Machine<B>, Fold>,
        contents: &'a Contents,
        plans: &'a [WorkloadPlan],
        seed: u64,
    ) -> Self {
        let mut next = index.shared().start;
        let mut owners = vec![(0, false); index.len()];
        let parts = plans.iter().enumerate().map(|(number, workload)| {
            let part = |plan: &PartPlan| {
                let slots = next..next + plan.most as usize;
                next = slots.end;
                owners[slots.clone()].fill((number, false));
                Part { empty: slots.rev().collect(), held: Vec::new() }
            };
            workload.parts.iter().map(part).collect()
        });
        let parts = parts.collect();
        let rng = Rng::with_seed(seed);
        Self {
            index,
            contents,
            plans,
            parts,
            owners,
            rng,
            in_use: [0; 2],
            hvo_saving: 0,
            migrated: 0,
            lost: 0,
        }
    }

    fn engine(&self) -> &'e Engine<Machine<B>, Fold> {
        self.index.engine()
    }

    /// Bytes in use, in the normal and in the movable zone.
    pub fn in_use(&self) -> [u64; 2] {
        self.in_use.map(|pages| pages * 4096)
    }
    /// Bytes that HVO would save Linux now.
    pub fn hvo_saving(&self) -> u64 {
        self.hvo_saving
    }
    /// Folios moved so far.
    pub fn migrated(&self) -> u64 {
        self.migrated
    }
    /// Folios whose contents were not as they were left.
    pub fn lost(&self) -> u64 {
        self.lost
    }
    /// Folios there are.
    pub fn folios(&self) -> u64 {
        self.parts.iter().flatten().map(|part| part.held.len() as u64).sum()
    }

    fn mark(slot: usize) -> u64 {
        slot as u64 ^ 0x6d61_726b_6564_2121
    }

    fn count(&mut self, pfn: Pfn, order: Order, is_there: bool) {
        let zone = match self.engine().zone_of(pfn) {
            Zone::Normal => 0,
            Zone::Movable => 1,
        };
        let pages = order.pages();
        self.in_use[zone] = if is_there { self.in_use[zone] + pages } else { self.in_use[zone] - pages };
    }

    /// Changes one workload. `blocks` are the pages of the memory blocks online, for pinned ones. Returns bytes that
    /// found no place; `tell` hears of every folio. Ends early when `interrupted`.
    pub fn change(
        &mut self,
        workload: usize,
        doing: Doing,
        blocks: &[std::ops::Range<u64>],
        interrupted: &AtomicBool,
        mut tell: impl FnMut(&Self),
    ) -> u64 {
        match doing {
            Doing::To(bytes) => {
                let plan = &self.plans[workload];
                let mut missing = 0;
                // Large folios first, while there is room for them.
                let mut numbers: Vec<usize> = (0..plan.parts.len()).collect();
                numbers.sort_by_key(|&part| std::cmp::Reverse(plan.parts[part].order));
                for part in numbers {
                    let have = self.parts[workload][part].held.len() as u64;
                    let keep = plan.parts[part].folios(bytes);
                    if have < keep {
                        // What is taken beyond what is kept leaves holes.
                        let most = have + ((keep - have) as f64 * plan.excess) as u64;
                        while (self.parts[workload][part].held.len() as u64) < most {
                            if interrupted.load(Ordering::Relaxed) {
                                return missing;
                            }
                            if !self.take(workload, part, blocks) {
                                let have = self.parts[workload][part].held.len() as u64;
                                missing += keep.saturating_sub(have) * plan.parts[part].order.pages() * 4096;
                                break;
                            }
                            tell(self);
                        }
                    }
                    while self.parts[workload][part].held.len() as u64 > keep {
                        self.free_one(workload, part);
                        tell(self);
                    }
                }
                missing
            }
            Doing::Free(share) => {
                for part in 0..self.parts[workload].len() {
                    let count = (self.parts[workload][part].held.len() as f64 * share).round() as usize;
                    for _ in 0..count {
                        self.free_one(workload, part);
                        tell(self);
                    }
                }
                0
            }
            Doing::Pin(share) => {
                for part in &mut self.parts[workload] {
                    self.rng.shuffle(&mut part.held);
                    let count = (part.held.len() as f64 * share).round() as usize;
                    for (at, &slot) in part.held.iter().enumerate() {
                        self.owners[slot].1 = at < count;
                    }
                }
                0
            }
        }
    }

    /// Takes one folio more. False where there is none to be had.
    fn take(&mut self, workload: usize, part: usize, blocks: &[std::ops::Range<u64>]) -> bool {
        let plan = &self.plans[workload];
        let order = plan.parts[part].order;
        let Some(&slot) = self.parts[workload][part].empty.last() else { return false };
        let taken = match plan.usage {
            Use::Pinned => self.take_spread(self.parts[workload][part].held.len(), order, blocks),
            Use::Kernel => self.engine().alloc(order, plan.kind),
            Use::PageCache | Use::Anonymous | Use::Hugetlb => self.engine().alloc_movable(order, plan.kind),
        };
        let Ok(frozen) = taken else { return false };
        let pfn = frozen.pfn();
        // The host may have no memory for it.
        if plan.touch && self.contents.write(pfn, order, Self::mark(slot)).is_err() {
            return false;
        }
        self.owners[slot].1 = plan.usage == Use::Pinned;
        self.hvo_saving += hvo_saving(plan.usage, order);
        let folio = keep(frozen, slot);
        drop(self.index.put(slot, folio));
        self.count(pfn, order, true);
        let part = &mut self.parts[workload][part];
        part.empty.pop();
        part.held.push(slot);
        true
    }

    /// A folio in the `turn`th memory block, or the next one that has room.
    fn take_spread(
        &mut self,
        turn: usize,
        order: Order,
        blocks: &[std::ops::Range<u64>],
    ) -> Result<Frozen<'e, Machine<B>, Fold>, AllocError> {
        let kind = pagefold_engine::Kind::Anon;
        for at in 0..blocks.len().min(8) {
            let block = &blocks[(turn + at) % blocks.len()];
            for _ in 0..16 {
                let places = (block.end - block.start) >> order.get();
                if places == 0 {
                    break;
                }
                let pfn = Pfn(block.start + (self.rng.u64(0..places) << order.get()));
                if let Ok(frozen) = self.engine().alloc_at(pfn, order, kind) {
                    return Ok(frozen);
                }
            }
        }
        self.engine().alloc_movable(order, kind)
    }

    /// Frees one of the folios of a part, at random.
    fn free_one(&mut self, workload: usize, part: usize) {
        let held = &mut self.parts[workload][part].held;
        if held.is_empty() {
            return;
        }
        let slot = held.swap_remove(self.rng.usize(0..held.len()));
        self.parts[workload][part].empty.push(slot);
        self.owners[slot].1 = false;
        let Some(folio) = self.index.take(slot) else { return };
        let (pfn, order) = (folio.pfn(), folio.order());
        self.check(workload, slot, pfn, order);
        self.hvo_saving -= hvo_saving(self.plans[workload].usage, order);
        self.count(pfn, order, false);
    }

    /// Looks whether a folio holds what it was given.
    fn check(&mut self, workload: usize, slot: usize, pfn: Pfn, order: Order) {
        if self.plans[workload].touch {
            let holds = self.contents.holds(pfn, order, Self::mark(slot));
            self.lost += u64::from(!matches!(holds, Ok(true)));
        }
    }
}

/// Shares a folio whose reference goes into `slot`.
fn keep<'e, B: Barrier + Clone>(
    mut frozen: Frozen<'e, Machine<B>, Fold>,
    slot: usize,
) -> Folio<'e, Machine<B>, Fold> {
    frozen.owner_mut().slot = slot as u64;
    share(frozen)
}

impl<'e, B: Barrier + Clone> Migrate<'e, Machine<B>, Fold> for Population<'_, 'e, B> {
    fn migrate(&mut self, folio: Folio<'e, Machine<B>, Fold>) -> Migration {
        let (old, order, kind) = (folio.pfn(), folio.order(), folio.kind());
        let slot = folio.owner().slot as usize;
        // Its stamp says where it is kept; if it is not kept there it is on its way, or nobody's that we know.
        if self.index.load(slot).is_none_or(|entry| entry.head() != old) {
            return Migration::Unmovable;
        }
        let (workload, is_pinned) = self.owners[slot];
        if is_pinned || self.plans[workload].usage == Use::Kernel {
            return Migration::Unmovable;
        }
        let Ok(frozen) = self.engine().alloc_movable(order, kind) else { return Migration::Busy };
        let new = frozen.pfn();
        if self.plans[workload].touch {
            self.check(workload, slot, old, order);
            if self.contents.copy(old, new, order).is_err() {
                return Migration::Busy;
            }
        }
        // Whoever looks now finds one or the other, and each is whole.
        drop(self.index.put(slot, keep(frozen, slot)));
        self.count(old, order, false);
        self.count(new, order, true);
        self.migrated += 1;
        Migration::Moved
    }
}
