//! The whole engine against a plain model of it: random programs, every step compared and audited.
//!
//! The model knows nothing of classes, rows or descriptors: it is a table of which folio each page belongs to. It
//! predicts what every call returns, including that an allocation fails exactly when there is no free block.

mod common;

use std::collections::BTreeMap;

use common::{DESCRIBED, TestDescriptors};
use common::{TestEngine, TestPlatform, host, map_pages_measured, order};
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{
    AllocError, Class, Config, Engine, Folio, Frozen, Kind, Layout, Miss, Order, Pfn, Poisoned,
};
use proptest::prelude::*;

/// Memory: not aligned to anything, with a hole in between; 16 MiB and a bit.
const MEMORY: [std::ops::Range<u64>; 2] = [70..2500, 2560..5000];
const PAGES: usize = 5120;

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        bits: u32,
        kind: Kind,
        share: bool,
    },
    AllocAt {
        pfn: u64,
        bits: u32,
    },
    /// Drops the `which`th handle.
    Drop {
        which: usize,
    },
    Get {
        which: usize,
    },
    Freeze {
        which: usize,
    },
    Share {
        which: usize,
    },
    Write {
        which: usize,
        value: u64,
    },
    Split {
        which: usize,
        to: u32,
        keep: u64,
    },
    /// Collapses the `2^bits` block around the `which`th handle, if the handles allow it.
    Collapse {
        which: usize,
        bits: u32,
    },
    Unfold {
        which: usize,
    },
    FoldTails {
        which: Vec<usize>,
    },
    FoldFree {
        batch: usize,
    },
    Walk {
        pfn: u64,
    },
    Poison {
        pfn: u64,
    },
    /// The next few operations find no memory for tables beyond this many pages.
    Limit {
        spare: u64,
        ops: usize,
    },
    Isolate {
        area: u64,
        areas: u64,
    },
    EndIsolation,
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0usize..64;
    let pfn = || 0u64..PAGES as u64;
    prop_oneof![
        8 => (0u32..=11, prop::sample::select(&Kind::ALL[..]), any::<bool>()).prop_map(|(bits, kind, share)| Op::Alloc { bits, kind, share }),
        2 => (pfn(), 0u32..=10).prop_map(|(pfn, bits)| Op::AllocAt { pfn, bits }),
        5 => which().prop_map(|which| Op::Drop { which }),
        2 => which().prop_map(|which| Op::Get { which }),
        3 => which().prop_map(|which| Op::Freeze { which }),
        2 => which().prop_map(|which| Op::Share { which }),
        1 => (which(), any::<u64>()).prop_map(|(which, value)| Op::Write { which, value }),
        3 => (which(), 0u32..=10, any::<u64>()).prop_map(|(which, to, keep)| Op::Split { which, to, keep }),
        2 => (which(), 1u32..=11).prop_map(|(which, bits)| Op::Collapse { which, bits }),
        2 => which().prop_map(|which| Op::Unfold { which }),
        2 => prop::collection::vec(which(), 1..6).prop_map(|which| Op::FoldTails { which }),
        2 => (1usize..40).prop_map(|batch| Op::FoldFree { batch }),
        4 => pfn().prop_map(|pfn| Op::Walk { pfn }),
        1 => pfn().prop_map(|pfn| Op::Poison { pfn }),
        1 => (0u64..4, 1usize..6).prop_map(|(spare, ops)| Op::Limit { spare, ops }),
        1 => (0u64..9, 1u64..4).prop_map(|(area, areas)| Op::Isolate { area, areas }),
        1 => Just(Op::EndIsolation),
    ]
}

enum Handle<'e> {
    Shared(Folio<'e, TestPlatform>),
    Frozen(Frozen<'e, TestPlatform>),
}

impl Handle<'_> {
    fn head(&self) -> u64 {
        match self {
            Handle::Shared(folio) => folio.pfn().0,
            Handle::Frozen(frozen) => frozen.pfn().0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ModelFolio {
    order: u32,
    kind: Kind,
    refs: u32,
    value: u64,
}

#[derive(Default)]
struct Model {
    /// By head.
    folios: BTreeMap<u64, ModelFolio>,
    poisoned: Vec<u64>,
    isolated: std::ops::Range<u64>,
}

impl Model {
    fn is_present(pfn: u64) -> bool {
        MEMORY.iter().any(|range| range.contains(&pfn))
    }
    fn folio_of(&self, pfn: u64) -> Option<(u64, ModelFolio)> {
        let (&head, &folio) = self.folios.range(..=pfn).next_back()?;
        (pfn < head + (1 << folio.order)).then_some((head, folio))
    }
    fn is_free(&self, pfn: u64) -> bool {
        Self::is_present(pfn) && self.folio_of(pfn).is_none() && !self.poisoned.contains(&pfn)
    }
    /// Free, and not isolated.
    fn is_available(&self, first: u64, bits: u32) -> bool {
        (first..first + (1 << bits)).all(|pfn| self.is_free(pfn) && !self.isolated.contains(&pfn))
    }
    fn has_block(&self, bits: u32) -> bool {
        (0..PAGES as u64).step_by(1 << bits).any(|first| self.is_available(first, bits))
    }
    fn free_pages(&self) -> u64 {
        (0..PAGES as u64).filter(|&pfn| self.is_free(pfn) && !self.isolated.contains(&pfn)).count() as u64
    }
    fn add(&mut self, head: u64, order: u32, kind: Kind, refs: u32) {
        self.folios.insert(head, ModelFolio { order, kind, refs, value: 0 });
    }
}

struct Machine<'e> {
    engine: &'e TestEngine,
    model: Model,
    handles: Vec<Handle<'e>>,
    isolated: Option<pagefold_engine::Isolated<'e, TestPlatform>>,
    limited_for: usize,
}

impl<'e> Machine<'e> {
    fn pick(&self, which: usize) -> Option<usize> {
        (!self.handles.is_empty()).then(|| which % self.handles.len())
    }

    fn take_frozen(&mut self, which: usize) -> Option<Frozen<'e, TestPlatform>> {
        let at = self.pick(which)?;
        matches!(self.handles[at], Handle::Frozen(_)).then(|| match self.handles.swap_remove(at) {
            Handle::Frozen(frozen) => frozen,
            Handle::Shared(_) => unreachable!(),
        })
    }

    fn is_limited(&self) -> bool {
        self.limited_for > 0
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Alloc { bits, kind, share } => self.alloc(bits, kind, share)?,
            Op::AllocAt { pfn, bits } => self.alloc_at(pfn & !((1 << bits) - 1), bits)?,
            Op::Drop { which } => {
                if let Some(at) = self.pick(which) {
                    let handle = self.handles.swap_remove(at);
                    let head = handle.head();
                    let folio = self.model.folios.get_mut(&head).unwrap();
                    folio.refs = folio.refs.saturating_sub(1);
                    if folio.refs == 0 {
                        self.model.folios.remove(&head);
                    }
                    drop(handle);
                }
            }
            Op::Get { which } => {
                if let Some(at) = self.pick(which)
                    && let Handle::Shared(folio) = &self.handles[at]
                {
                    let another = folio.get().unwrap();
                    self.model.folios.get_mut(&another.pfn().0).unwrap().refs += 1;
                    self.handles.push(Handle::Shared(another));
                }
            }
            Op::Freeze { which } => self.freeze(which)?,
            Op::Share { which } => {
                if let Some(frozen) = self.take_frozen(which) {
                    self.model.folios.get_mut(&frozen.pfn().0).unwrap().refs = 1;
                    self.handles.push(Handle::Shared(frozen.share()));
                }
            }
            Op::Write { which, value } => {
                if let Some(at) = self.pick(which)
                    && let Handle::Frozen(frozen) = &mut self.handles[at]
                {
                    frozen.owner_mut()[6] = value;
                    self.model.folios.get_mut(&frozen.pfn().0).unwrap().value = value;
                }
            }
            Op::Split { which, to, keep } => self.split(which, to, keep)?,
            Op::Collapse { which, bits } => self.collapse(which, bits)?,
            Op::Unfold { which } => {
                if let Some(mut frozen) = self.take_frozen(which) {
                    let before = self.engine.materialised_map_pages();
                    let done = frozen.unfold();
                    prop_assert!(done.is_ok() || self.is_limited());
                    if done.is_err() {
                        prop_assert_eq!(self.engine.materialised_map_pages(), before);
                    } else {
                        prop_assert!(
                            !TestDescriptors::is_foldable(frozen.order()) || frozen.has_unfolded_tails()
                        );
                    }
                    self.handles.push(Handle::Frozen(frozen));
                }
            }
            Op::FoldTails { which } => {
                let mut batch = self.engine.fold_batch(which.len()).unwrap();
                for which in which {
                    if let Some(frozen) = self.take_frozen(which) {
                        batch.push(frozen).unwrap();
                    }
                }
                let report = batch.commit();
                prop_assert_eq!(report.refused, 0);
                prop_assert_eq!(report.grace_periods, u64::from(report.map_pages > 0));
                for frozen in batch.drain() {
                    prop_assert!(!frozen.has_unfolded_tails());
                    self.handles.push(Handle::Frozen(frozen));
                }
            }
            Op::FoldFree { batch } => {
                self.engine.folder(batch).unwrap().fold_all();
                // Nothing foldable is left: every materialised map page has a page in use (or without memory, or held
                // by the isolation).
                for first in (0..PAGES as u64).step_by(DESCRIBED as usize) {
                    if self.engine.class(Pfn(first)).0 == Class::Mapped {
                        let is_needed = (first..first + DESCRIBED).any(|pfn| {
                            self.model.folio_of(pfn).is_some()
                                || !Model::is_present(pfn)
                                || self.model.isolated.contains(&pfn)
                        });
                        prop_assert!(is_needed, "map page of page {} could be folded", first);
                    }
                }
            }
            Op::Walk { pfn } => self.walk(pfn)?,
            Op::Poison { pfn } => self.poison(pfn)?,
            Op::Limit { spare, ops } => {
                let budget = self.engine.platform().budget();
                budget.set_limit(budget.used() + spare);
                self.limited_for = ops + 1;
            }
            Op::Isolate { area, areas } => self.isolate(area, areas),
            Op::EndIsolation => self.end_isolation(),
        }
        if self.limited_for > 0 {
            self.limited_for -= 1;
            if self.limited_for == 0 {
                self.engine.platform().budget().set_limit(u64::MAX);
            }
        }
        Ok(())
    }

    fn alloc(&mut self, bits: u32, kind: Kind, share: bool) -> Result<(), TestCaseError> {
        let before = self.engine.materialised_map_pages();
        match self.engine.alloc(order(bits), kind) {
            Ok(frozen) => {
                let head = frozen.pfn().0;
                prop_assert!(head.is_multiple_of(1 << bits));
                prop_assert!(self.model.is_available(head, bits), "{head} order {bits} was not free");
                prop_assert_eq!(*frozen.owner(), [0; 7]);
                if self.engine.layout() == Layout::Folded {
                    prop_assert!(self.engine.materialised_map_pages() <= before + 1);
                }
                self.model.add(head, bits, kind, u32::from(share));
                let handle = if share { Handle::Shared(frozen.share()) } else { Handle::Frozen(frozen) };
                self.handles.push(handle);
            }
            Err(AllocError::NoBlock) => prop_assert!(!self.model.has_block(bits), "order {bits} is there"),
            Err(AllocError::OutOfMemory) => {
                prop_assert!(self.is_limited());
                prop_assert_eq!(self.engine.materialised_map_pages(), before);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        Ok(())
    }

    fn alloc_at(&mut self, pfn: u64, bits: u32) -> Result<(), TestCaseError> {
        match self.engine.alloc_at(Pfn(pfn), order(bits), Kind::Reserved) {
            Ok(frozen) => {
                prop_assert!(self.model.is_available(pfn, bits));
                self.model.add(pfn, bits, Kind::Reserved, 0);
                self.handles.push(Handle::Frozen(frozen));
            }
            Err(AllocError::OutOfMemory) => prop_assert!(self.is_limited()),
            Err(AllocError::Busy | AllocError::Absent) => {
                prop_assert!(!self.model.is_available(pfn, bits), "{pfn} order {bits} is free");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        Ok(())
    }

    fn freeze(&mut self, which: usize) -> Result<(), TestCaseError> {
        let Some(at) = self.pick(which) else { return Ok(()) };
        let handle = self.handles.swap_remove(at);
        let head = handle.head();
        let expected = self.model.folios[&head];
        let handle = match handle {
            Handle::Frozen(frozen) => Handle::Frozen(frozen),
            Handle::Shared(folio) => match folio.freeze() {
                Ok(frozen) => {
                    prop_assert_eq!(expected.refs, 1);
                    self.model.folios.get_mut(&head).unwrap().refs = 0;
                    Handle::Frozen(frozen)
                }
                Err(folio) => {
                    prop_assert!(expected.refs > 1);
                    Handle::Shared(folio)
                }
            },
        };
        self.handles.push(handle);
        Ok(())
    }

    fn split(&mut self, which: usize, to: u32, keep: u64) -> Result<(), TestCaseError> {
        let Some(frozen) = self.take_frozen(which) else { return Ok(()) };
        let (head, bits) = (frozen.pfn().0, frozen.order().get());
        match frozen.split(order(to)) {
            Ok(pieces) => {
                prop_assert!(to < bits);
                let whole = self.model.folios.remove(&head).unwrap();
                for (n, piece) in pieces.enumerate() {
                    prop_assert_eq!(piece.pfn().0, head + ((n as u64) << to));
                    prop_assert_eq!(piece.owner()[6], if n == 0 { whole.value } else { 0 });
                    // A few are kept, the others freed.
                    if n < 40 && keep >> (n % 64) & 1 != 0 {
                        self.model.add(piece.pfn().0, to, whole.kind, 0);
                        self.model.folios.get_mut(&piece.pfn().0).unwrap().value = piece.owner()[6];
                        self.handles.push(Handle::Frozen(piece));
                    }
                }
            }
            Err((frozen, _)) => {
                prop_assert!(to >= bits || self.is_limited());
                self.handles.push(Handle::Frozen(frozen));
            }
        }
        Ok(())
    }

    fn collapse(&mut self, which: usize, bits: u32) -> Result<(), TestCaseError> {
        let Some(at) = self.pick(which) else { return Ok(()) };
        let first = self.handles[at].head() & !((1 << bits) - 1);
        let block = first..first + (1u64 << bits);
        let mut pieces = Vec::new();
        let mut others = Vec::new();
        for handle in self.handles.drain(..) {
            match handle {
                Handle::Frozen(frozen) if block.contains(&frozen.pfn().0) => pieces.push(frozen),
                other => others.push(other),
            }
        }
        self.handles = others;
        pieces.sort_by_key(|piece| piece.pfn());
        let covered: u64 = pieces.iter().map(|piece| piece.order().pages()).sum();
        let is_block = pieces.first().is_some_and(|piece| piece.pfn().0 == first) && covered == 1 << bits;
        match Frozen::collapse(pieces) {
            Ok(whole) => {
                let bits = whole.order().get();
                let head = whole.pfn().0;
                let heads: Vec<u64> =
                    self.model.folios.range(head..head + (1 << bits)).map(|(&head, _)| head).collect();
                let first = self.model.folios[&head];
                self.model.folios.retain(|at, _| !heads.contains(at));
                self.model.add(head, bits, first.kind, 0);
                self.model.folios.get_mut(&head).unwrap().value = first.value;
                self.handles.push(Handle::Frozen(whole));
            }
            Err((pieces, _)) => {
                prop_assert!(!is_block);
                self.handles.extend(pieces.into_iter().map(Handle::Frozen));
            }
        }
        Ok(())
    }

    fn walk(&self, pfn: u64) -> Result<(), TestCaseError> {
        let walker = self.engine.walker().unwrap();
        match (walker.try_get(Pfn(pfn)), self.model.folio_of(pfn)) {
            (Ok(found), Some((head, folio))) => {
                prop_assert_eq!(found.pfn().0, head);
                prop_assert_eq!(found.order().get(), folio.order);
                prop_assert_eq!(found.kind(), folio.kind);
                prop_assert_eq!(found.refs(), folio.refs + 1);
                prop_assert_eq!(found.owner()[6], folio.value);
            }
            (Err(Miss::Frozen), Some((_, folio))) => prop_assert_eq!(folio.refs, 0),
            (Err(Miss::Free), None) => prop_assert!(self.engine.class(Pfn(pfn)).0 != Class::Absent),
            (Err(Miss::Absent), None) => prop_assert!(!Model::is_present(pfn)),
            (found, expected) => prop_assert!(false, "page {pfn}: {found:?}, expected {expected:?}"),
        }
        Ok(())
    }

    fn poison(&mut self, pfn: u64) -> Result<(), TestCaseError> {
        let walker = self.engine.walker().unwrap();
        let is_known = self.model.poisoned.contains(&pfn);
        let is_free = self.model.is_free(pfn) && !self.model.isolated.contains(&pfn);
        match walker.poison(Pfn(pfn)) {
            Ok(Poisoned::Known) => prop_assert!(is_known),
            Ok(Poisoned::Withheld) => prop_assert!(is_free && !is_known),
            Ok(Poisoned::InUse) => prop_assert!(!is_free && !is_known),
            Err(_) => {
                prop_assert!(self.is_limited() || !Model::is_present(pfn));
                return Ok(());
            }
        }
        if !is_known {
            self.model.poisoned.push(pfn);
        }
        Ok(())
    }

    fn isolate(&mut self, area: u64, areas: u64) {
        self.end_isolation();
        let pages = area * 512..((area + areas) * 512).min(PAGES as u64);
        self.isolated = Some(self.engine.isolate(pages.clone()).unwrap());
        self.model.isolated = pages;
    }

    fn end_isolation(&mut self) {
        if let Some(mut isolated) = self.isolated.take() {
            isolated.collect();
        }
        self.model.isolated = 0..0;
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        if let Some(isolated) = &mut self.isolated {
            isolated.collect();
        }
        let audit = match self.engine.audit() {
            Ok(audit) => Some(audit),
            // Pages held by an isolation are in no folio: the audit rightly misses them.
            Err(pagefold_engine::Violation::Leaked { .. }) if self.isolated.is_some() => None,
            Err(violation) => return Err(TestCaseError::fail(violation.to_string())),
        };
        if let Some(audit) = audit {
            prop_assert_eq!(audit.folios, self.model.folios.len() as u64);
            prop_assert_eq!(
                audit.refs,
                self.model.folios.values().map(|folio| u64::from(folio.refs)).sum::<u64>()
            );
            prop_assert_eq!(audit.free_pages, self.model.free_pages());
        }
        map_pages_measured(self.engine);
        Ok(())
    }
}

fn run_program(layout: Layout, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut engine = Engine::new(host(), Config { pages: PAGES as u64, layout }).unwrap();
    for range in MEMORY {
        engine.online(range).unwrap();
    }
    let mut machine = Machine {
        engine: &engine,
        model: Model::default(),
        handles: Vec::new(),
        isolated: None,
        limited_for: 0,
    };
    for op in ops {
        machine.run(op)?;
        machine.check()?;
    }
    for pfn in (0..PAGES as u64).step_by(37) {
        machine.walk(pfn)?;
    }
    // Everything goes, with nothing to spare: freeing never allocates.
    machine.end_isolation();
    engine.platform().budget().refuse_all();
    machine.handles.clear();
    machine.model.folios.clear();
    machine.check()?;
    let withheld = machine.model.poisoned.iter().filter(|&&pfn| Model::is_present(pfn)).count() as u64;
    let present: u64 = MEMORY.iter().map(|range| range.end - range.start).sum();
    prop_assert_eq!(engine.free_pages(), present - withheld);
    engine.platform().budget().set_limit(u64::MAX);
    if withheld == 0 {
        // And it has all come together again.
        let whole = engine.alloc_at(Pfn(512), Order::AREA, Kind::Anon);
        prop_assert!(whole.is_ok(), "{:?}", whole.err());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn folded_engine_does_what_the_model_does(ops in prop::collection::vec(op(), 1..120)) {
        run_program(Layout::Folded, ops)?;
    }

    #[test]
    fn flat_engine_does_what_the_model_does(ops in prop::collection::vec(op(), 1..80)) {
        run_program(Layout::Flat, ops)?;
    }
}
