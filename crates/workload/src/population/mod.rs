//! A population: the folios of workloads, taken, freed, pinned, and moved when memory is to be unplugged.

mod contents;
mod error;
mod grammar;
mod slots;
mod usage;

use core::fmt;
use core::ops::{ControlFlow, Range};

use fastrand::Rng;
use pagefold_engine::Page64;
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::hotplug::{Migrate, Migration};
use pagefold_engine::{AllocError, Engine, Folio, Frozen, Order, Pfn, Platform, Zone};

use self::slots::Slots;
use self::usage::rounded;
use crate::index::Index;
use crate::owner::share;
use crate::stamp::Stamp;

pub use contents::Contents;
pub use error::PopulationError;
pub use grammar::{Mistake, WorkloadArg, Wrong};
pub use usage::{Change, Misfit, Part, Use, Workload};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Memory blocks that are tried for a folio that is to lie in a certain one, and places in each.
const BLOCKS_TRIED: usize = 8;
const PLACES_TRIED: usize = 16;
/// Makes a mark that neither zeros nor a page number can be mistaken for.
const MARK: u64 = 0x6d61_726b_6564_2121;

/// Slots of an index that `workloads` may need.
pub fn slots(workloads: &[Workload]) -> usize {
    let folios = workloads.iter().fold(0u64, |sum, workload| sum.saturating_add(workload.most_folios()));
    usize::try_from(folios).unwrap_or(usize::MAX)
}

/// Linux's HVO keeps one map page of the descriptors of a hugetlb folio, which have 64 bytes each.
fn hvo_saving(usage: Use, order: Order) -> u64 {
    if usage == Use::Hugetlb { Page64::folding_map_pages(order) * PAGE } else { 0 }
}

/// All folios of all workloads.
///
/// Their references are in the index: walkers find them there, and they outlive this.
pub struct Population<'a, 'e, P: Platform<Owner = Stamp>, C> {
    index: &'a Index<'e, P>,
    contents: &'a C,
    workloads: &'a [Workload],
    slots: Slots,
    rng: Rng,
    /// Pages in use, by zone.
    in_use: [u64; 2],
    hvo_saving: u64,
    migrated: u64,
    lost: u64,
}

impl<'a, 'e, P: Platform<Owner = Stamp>, C: Contents<P>> Population<'a, 'e, P, C> {
    /// Nothing yet, with room in `index` for all of `workloads`. `seed` decides all random choices. Nobody else may put
    /// folios into the index's shared slots.
    ///
    /// # Errors
    /// [`PopulationError`].
    pub fn new(
        index: &'a Index<'e, P>,
        contents: &'a C,
        workloads: &'a [Workload],
        seed: u64,
    ) -> Result<Self, PopulationError> {
        Ok(Self {
            index,
            contents,
            workloads,
            slots: Slots::new(workloads, index.shared())?,
            rng: Rng::with_seed(seed),
            in_use: [0; 2],
            hvo_saving: 0,
            migrated: 0,
            lost: 0,
        })
    }

    fn engine(&self) -> &'e Engine<P> {
        self.index.engine()
    }

    /// Bytes in use, in the normal and in the movable zone.
    pub fn in_use(&self) -> [u64; 2] {
        self.in_use.map(|pages| pages * PAGE)
    }
    /// Bytes of descriptors that HVO would save Linux now, for the hugetlb folios there are.
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
        self.slots.held()
    }

    fn mark(slot: usize) -> u64 {
        slot as u64 ^ MARK
    }

    fn count(&mut self, pfn: Pfn, order: Order, is_there: bool) {
        let [normal, movable] = &mut self.in_use;
        let pages = match self.index.engine().zone_of(pfn) {
            Zone::Normal => normal,
            Zone::Movable => movable,
        };
        *pages = if is_there { *pages + order.pages() } else { pages.saturating_sub(order.pages()) };
    }

    /// Changes the workload of that number; without one, nothing. `blocks` are the pages of the memory blocks online,
    /// for pinned folios. Returns bytes that found no place. `tell` hears of every folio that came or went, and may end
    /// the change there.
    pub fn change(
        &mut self,
        workload: usize,
        change: Change,
        blocks: &[Range<u64>],
        mut tell: impl FnMut(&Self) -> ControlFlow<()>,
    ) -> u64 {
        let mut missing = 0;
        // Broken off or not, what is missing is what was missed.
        let _ = match change {
            Change::To(bytes) => self.resize(workload, bytes, blocks, &mut missing, &mut tell),
            Change::Free(share) => self.free(workload, share, &mut tell),
            Change::Pin(share) => {
                for part in self.slots.of(workload) {
                    let count = rounded(self.held(part) as f64 * share);
                    self.slots.pin_any(part, count, &mut self.rng);
                }
                ControlFlow::Continue(())
            }
        };
        missing
    }

    /// Folios of a part.
    fn held(&self, part: usize) -> u64 {
        self.slots.part(part).map_or(0, |part| part.held())
    }

    fn resize(
        &mut self,
        number: usize,
        bytes: u64,
        blocks: &[Range<u64>],
        missing: &mut u64,
        tell: &mut impl FnMut(&Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(workload) = self.workloads.get(number) else { return ControlFlow::Continue(()) };
        // Large folios first, while there is room for them.
        for order in (0..=Order::MAX.get()).rev().filter_map(Order::new) {
            let Some(part) = self.slots.of_order(number, order) else { continue };
            let keep = self.slots.part(part).map_or(0, |part| part.folios(bytes));
            let have = self.held(part);
            // What is taken beyond what is kept leaves holes.
            let most = have.saturating_add((keep.saturating_sub(have) as f64 * workload.excess()) as u64);
            while self.held(part) < most {
                if !self.take(workload, part, blocks) {
                    let short = keep.saturating_sub(self.held(part));
                    *missing = missing.saturating_add(short.saturating_mul(order.pages() * PAGE));
                    break;
                }
                tell(self)?;
            }
            while self.held(part) > keep {
                self.free_one(part);
                tell(self)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn free(
        &mut self,
        workload: usize,
        share: f64,
        tell: &mut impl FnMut(&Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for part in self.slots.of(workload) {
            let held = self.held(part);
            for _ in 0..rounded(held as f64 * share).min(held) {
                self.free_one(part);
                tell(self)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes one folio more. False where there is none to be had.
    fn take(&mut self, workload: &Workload, part: usize, blocks: &[Range<u64>]) -> bool {
        let Some(slots) = self.slots.part(part) else { return false };
        let (order, turn) = (slots.order(), slots.held());
        let Some(slot) = slots.next() else { return false };
        let kind = workload.usage().kind();
        let taken = match workload.usage() {
            Use::Pinned => self.take_spread(turn, workload, order, blocks),
            Use::Kernel => self.engine().alloc(order, kind),
            Use::PageCache | Use::Anonymous | Use::Hugetlb => self.engine().alloc_movable(order, kind),
        };
        let Ok(mut frozen) = taken else { return false };
        // There may be no memory behind it.
        if workload.touches() && self.contents.mark(&mut frozen, Self::mark(slot)).is_err() {
            return false;
        }
        self.slots.pin(slot, workload.usage() == Use::Pinned);
        self.hvo_saving += hvo_saving(workload.usage(), order);
        self.count(frozen.pfn(), order, true);
        drop(self.index.put(slot, keep(frozen, slot)));
        if let Some(slots) = self.slots.part_mut(part) {
            slots.fill();
        }
        true
    }

    /// A folio in the `turn`th memory block, or the next one that has room.
    fn take_spread(
        &mut self,
        turn: u64,
        workload: &Workload,
        order: Order,
        blocks: &[Range<u64>],
    ) -> Result<Frozen<'e, P>, AllocError> {
        let kind = workload.usage().kind();
        let first = (turn as usize).checked_rem(blocks.len()).unwrap_or(0);
        for block in blocks.iter().cycle().skip(first).take(blocks.len().min(BLOCKS_TRIED)) {
            let places = block.end.saturating_sub(block.start) >> order.get();
            for _ in 0..if places == 0 { 0 } else { PLACES_TRIED } {
                let pfn = Pfn(block.start).plus(self.rng.u64(0..places) << order.get());
                if let Ok(frozen) = self.engine().alloc_at(pfn, order, kind) {
                    return Ok(frozen);
                }
            }
        }
        self.engine().alloc_movable(order, kind)
    }

    /// Frees one of the folios of a part, at random.
    fn free_one(&mut self, part: usize) {
        let Some(slot) = self.slots.part_mut(part).and_then(|part| part.empty_any(&mut self.rng)) else {
            return;
        };
        let owner = self.slots.workload(slot).and_then(|workload| self.workloads.get(workload));
        let (Some(workload), Some(folio)) = (owner, self.index.take(slot)) else { return };
        let (pfn, order) = (folio.pfn(), folio.order());
        self.check(workload, slot, &folio);
        self.hvo_saving = self.hvo_saving.saturating_sub(hvo_saving(workload.usage(), order));
        self.count(pfn, order, false);
    }

    /// Looks whether a folio holds what it was given.
    fn check(&mut self, workload: &Workload, slot: usize, folio: &Folio<'e, P>) {
        if workload.touches() {
            let holds = self.contents.holds(folio, Self::mark(slot));
            self.lost += u64::from(!matches!(holds, Ok(true)));
        }
    }
}

/// Shares a folio whose reference goes into `slot`.
fn keep<P: Platform<Owner = Stamp>>(mut frozen: Frozen<'_, P>, slot: usize) -> Folio<'_, P> {
    frozen.owner_mut().slot = slot as u64;
    share(frozen)
}

impl<'e, P: Platform<Owner = Stamp>, C: Contents<P>> Migrate<'e, P> for Population<'_, 'e, P, C> {
    fn migrate(&mut self, folio: Folio<'e, P>) -> Migration {
        let (old, order) = (folio.pfn(), folio.order());
        let Some(kind) = folio.kind().owned() else { return Migration::Unmovable };
        let slot = folio.owner().slot as usize;
        // Its stamp says where it is kept; if it is not kept there it is on its way, or another owner's who comes and goes.
        if self.index.load(slot).is_none_or(|entry| entry.head() != old) {
            return Migration::Busy;
        }
        let owner = self.slots.workload(slot).and_then(|workload| self.workloads.get(workload));
        let Some(workload) = owner else { return Migration::Unmovable };
        if self.slots.is_pinned(slot) || workload.usage() == Use::Kernel {
            return Migration::Unmovable;
        }
        let Ok(mut frozen) = self.engine().alloc_movable(order, kind) else { return Migration::NoMemory };
        if workload.touches() {
            let Ok(holds) = self.contents.copy(&folio, &mut frozen, Self::mark(slot)) else {
                return Migration::NoMemory;
            };
            self.lost += u64::from(!holds);
        }
        self.count(old, order, false);
        self.count(frozen.pfn(), order, true);
        // Whoever looks now finds one or the other, and each is whole.
        drop(self.index.put(slot, keep(frozen, slot)));
        self.migrated += 1;
        Migration::Moved
    }
}

impl<P: Platform<Owner = Stamp>, C> fmt::Debug for Population<'_, '_, P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Population").field("folios", &self.slots.held()).finish_non_exhaustive()
    }
}
