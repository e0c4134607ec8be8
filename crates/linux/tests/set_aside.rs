//! Memory set aside: so many unfolds and splits succeed when nothing else does.

mod common;

use common::{MIB, TestEngine, folded, measured, order};
use pagefold_engine::{Engine, Frozen, Kind, Order, Reshape, ReshapeError};
use proptest::prelude::*;

type TestFrozen<'e> = Frozen<'e, common::TestPlatform>;

/// Folios, folded where they are large enough.
fn folios(engine: &TestEngine, of: Order, count: usize) -> Vec<TestFrozen<'_>> {
    let all: Vec<_> = (0..count).map(|_| engine.alloc(of, Kind::Hugetlb).unwrap()).collect();
    assert!(all.iter().all(|folio| !folio.has_unfolded_tails()), "folios are born folded");
    all
}

#[test]
fn so_many_unfolds_succeed_without_memory() {
    let engine = folded(64 * MIB);
    let mut folios = folios(&engine, order(9), 6);
    let what = Reshape::Unfold(order(9));
    let mut aside = engine.set_aside(what, 4).unwrap();
    assert_eq!(aside.covers(what), 4);
    engine.platform().budget().refuse_all();
    for folio in &mut folios[..4] {
        aside.unfold(folio).unwrap();
        assert!(folio.has_unfolded_tails());
    }
    // Then it ends, and nothing changes.
    assert_eq!(aside.covers(what), 0);
    for folio in &mut folios[4..] {
        aside.unfold(folio).unwrap_err();
        assert!(!folio.has_unfolded_tails());
    }
    engine.audit().unwrap();
    assert_eq!(engine.platform().budget().used(), measured(&engine));
}

#[test]
fn so_many_splits_succeed_without_memory() {
    for (from, to) in [(9, 0), (9, 3), (9, 8), (10, 9), (11, 0), (5, 0), (1, 0)] {
        let engine = folded(64 * MIB);
        let free = engine.free_pages();
        let mut folios = folios(&engine, order(from), 5);
        let what = Reshape::Split { order: order(from), to: order(to) };
        let mut aside = engine.set_aside(what, 4).unwrap();
        engine.platform().budget().refuse_all();
        let mut pieces = Vec::new();
        for _ in 0..4 {
            pieces.extend(aside.split(folios.pop().unwrap(), order(to)).unwrap());
        }
        assert_eq!(pieces.len(), 4 << (from - to));
        assert!(pieces.iter().all(|piece| piece.order() == order(to)));
        engine.audit().unwrap();
        drop(aside);
        assert_eq!(engine.platform().budget().used(), measured(&engine), "no more was taken than set aside");
        drop((pieces, folios));
        assert_eq!(engine.free_pages(), free);
        assert_eq!(engine.objects().unwrap_or(0), 0);
        engine.audit().unwrap();
    }
}

#[test]
fn what_was_not_used_goes_back() {
    let engine = folded(64 * MIB);
    let mut folios = folios(&engine, order(9), 2);
    let (used, free) = (engine.platform().budget().used(), engine.free_pages());
    let split = Reshape::Split { order: order(9), to: Order::ZERO };
    let mut aside = engine.set_aside(split, 3).unwrap();
    aside.add(Reshape::Unfold(order(9)), 2).unwrap();
    assert!(engine.platform().budget().used() > used);
    assert_eq!(engine.objects().unwrap_or(2), 2, "objects that are set aside are no folio's");
    engine.audit().unwrap();
    aside.unfold(&mut folios[0]).unwrap();
    drop(aside);
    engine.folder(64).unwrap().fold_all();
    engine.audit().unwrap();
    assert_eq!(engine.platform().budget().used(), measured(&engine), "the account is the system's");
    drop(folios);
    engine.folder(64).unwrap().fold_all();
    assert!(engine.free_pages() >= free);
    assert_eq!(engine.platform().budget().used(), measured(&engine));
}

#[test]
fn nothing_is_set_aside_where_there_is_no_memory() {
    let engine = folded(64 * MIB);
    let mut folios = folios(&engine, order(9), 1);
    let what = Reshape::Unfold(order(9));
    let mut aside = engine.set_aside(what, 1).unwrap();
    engine.platform().budget().refuse_all();
    let used = engine.platform().budget().used();
    assert!(engine.set_aside(what, 1).is_err());
    assert!(aside.add(what, 1).is_err());
    assert!(aside.add(what, u64::MAX).is_err());
    assert!(aside.add(Reshape::Split { order: order(18), to: Order::ZERO }, u64::MAX).is_err());
    assert_eq!((aside.covers(what), engine.platform().budget().used()), (1, used));
    engine.platform().budget().set_limit(u64::MAX);
    // More objects than there are pages are not even tried.
    let pairs = engine.set_aside(Reshape::Split { order: order(1), to: Order::ZERO }, 1 << 20);
    assert_eq!(pairs.is_err(), engine.objects().is_some());
    drop(pairs);
    assert_eq!(engine.platform().budget().used(), used);
    engine.platform().budget().refuse_all();
    aside.unfold(&mut folios[0]).unwrap();
    engine.audit().unwrap();
}

#[test]
fn folios_of_another_engine_and_larger_ones_are_refused() {
    let (engine, other) = (folded(64 * MIB), folded(64 * MIB));
    let mut strange = folios(&other, order(9), 1);
    let mut large = folios(&engine, order(10), 1);
    let mut aside = engine.set_aside(Reshape::Unfold(order(9)), 1).unwrap();
    assert!(aside.unfold(&mut strange[0]).is_err());
    assert!(aside.unfold(&mut large[0]).is_err());
    let (strange, why) = aside.split(strange.pop().unwrap(), Order::ZERO).unwrap_err();
    assert_eq!(why, ReshapeError::OutOfMemory);
    let (large, why) = aside.split(large.pop().unwrap(), order(10)).unwrap_err();
    assert!(matches!(why, ReshapeError::OutOfMemory | ReshapeError::NotSmaller), "{why:?}");
    assert!(!strange.has_unfolded_tails() && !large.has_unfolded_tails());
    engine.audit().unwrap();
    other.audit().unwrap();
}

/// Whatever is done meanwhile, a reshape that is covered succeeds, and the accounts are the system's.
fn covered_reshapes_succeed(engine: &Engine<common::TestPlatform>, steps: &[(u8, u32, u32)]) {
    let mut aside = engine.set_aside(Reshape::Unfold(Order::ZERO), 0).unwrap();
    let mut folios: Vec<TestFrozen<'_>> = Vec::new();
    for &(step, a, b) in steps {
        let budget = engine.platform().budget();
        match step {
            0 => budget.set_limit(u64::MAX),
            1 => budget.refuse_all(),
            2 => {
                let _ = aside.add(Reshape::Unfold(order(a)), u64::from(b % 3));
            }
            3 => {
                let _ = aside.add(Reshape::Split { order: order(a), to: order(b.min(a)) }, 1);
            }
            4 => folios.extend(engine.alloc(order(a), Kind::Anon)),
            5 => {
                if let Some(mut folio) = folios.pop() {
                    let is_covered = aside.covers(Reshape::Unfold(folio.order())) > 0;
                    assert_eq!(aside.unfold(&mut folio).is_ok(), is_covered);
                    folios.insert(0, folio);
                }
            }
            6 => {
                if let Some(folio) = folios.pop().filter(|folio| folio.order() > order(b)) {
                    let is_covered = aside.covers(Reshape::Split { order: folio.order(), to: order(b) }) > 0;
                    match aside.split(folio, order(b)) {
                        Ok(pieces) => assert!(is_covered && pieces.len() > 1),
                        Err((folio, why)) => {
                            assert!(!is_covered, "{why:?}");
                            folios.insert(0, folio);
                        }
                    }
                }
            }
            _ => {
                if let Ok(mut folder) = engine.folder(16) {
                    folder.fold_all();
                }
            }
        }
    }
    engine.audit().unwrap();
    engine.platform().budget().set_limit(u64::MAX);
    drop((aside, folios));
    engine.audit().unwrap();
    assert_eq!(engine.free_pages(), engine.pages());
    assert_eq!(engine.platform().budget().used(), measured(engine));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_is_covered_succeeds(
        steps in prop::collection::vec((0u8..8, 0u32..13, 0u32..13), 1..60)
    ) {
        covered_reshapes_succeed(&folded(256 * MIB), &steps);
    }
}
