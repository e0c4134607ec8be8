//! Sections: what a walker does inside one that it holds anyway, and what a later one says of an earlier one.

mod common;

use common::{alone, beside, explore, folio_at, machine, section_is_seen, take};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use pagefold_model::platform::Fences;
use pagefold_model::rcu::Rcu;
use pagefold_model::{Miss, Pfn};

/// By the head (the fast way), by a tail, and where there is nothing: none of them ends the section around it.
#[test]
fn try_get_does_not_end_the_section_around_it() {
    alone(|| {
        let engine = machine();
        let kept = [folio_at(&engine, 2, 0), folio_at(&engine, 4, 2)];
        let walker = engine.walker().unwrap();
        let section = walker.section();
        let ticket = engine.rcu().start();
        for (pfn, found) in [(2, Ok(0)), (7, Ok(2)), (3, Err(Miss::Free)), (0, Err(Miss::Free))] {
            assert_eq!(walker.try_get(Pfn(pfn)).map(|folio| folio.order().get()), found, "page {pfn}");
            assert!(!ticket.is_over(), "page {pfn}: the section was over");
        }
        assert!(walker.peek(Pfn(7)).is_some());
        assert!(!ticket.is_over(), "the section was over after a look");
        drop(section);
        assert!(ticket.is_over());
        kept.into_iter().for_each(|raw| drop(take(&engine, raw)));
    });
}

/// After a reference was taken, no section is left behind: the next grace period does not wait for it.
#[test]
fn try_get_leaves_the_section_it_entered() {
    alone(|| {
        let engine = machine();
        let raw = folio_at(&engine, 4, 2);
        let walker = engine.walker().unwrap();
        for pfn in [4, 7, 0, 3] {
            let held = walker.try_get(Pfn(pfn));
            let ticket = engine.rcu().start();
            assert!(ticket.is_over(), "page {pfn}: still inside");
            drop(held);
        }
        drop(take(&engine, raw));
    });
}

/// An index of the walker's own, protected by the same grace periods, stays while the walker takes references.
///
/// Two forced switches: the walker inside its section, the owner between taking out and taking apart.
#[test]
fn an_index_of_the_walkers_own_outlives_the_section_in_which_it_takes_references() {
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let index = Arc::new((AtomicUsize::new(2), AtomicBool::new(true)));
        let walker = {
            let index = Arc::clone(&index);
            beside(&engine, move |engine| {
                let walker = engine.walker().unwrap();
                let _section = walker.section();
                let pfn = index.0.load(Relaxed) as u64;
                if pfn != 0 {
                    drop(walker.try_get(Pfn(pfn)));
                    assert!(index.1.load(Relaxed), "the index is gone under its reader");
                }
            })
        };
        index.0.store(0, Relaxed);
        engine.rcu().synchronize();
        index.1.store(false, Relaxed);
        walker.join().unwrap();
        drop(take(&engine, raw));
        engine.audit().unwrap();
    });
}

/// A walker that asks twice inside one section, while the page is freed and folded.
///
/// One forced switch, between the walker's looks: the folder waits for the section, and what waits is switched anyway.
#[test]
fn two_looks_in_one_section_against_free_and_fold() {
    explore(1, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walker = beside(&engine, |engine| {
            let walker = engine.walker().unwrap();
            let _section = walker.section();
            for pfn in [2, 3] {
                drop(walker.try_get(Pfn(pfn)));
            }
            let peek = walker.peek(Pfn(2)).unwrap();
            assert!(peek.head.is_none_or(|(head, state)| state.covers(head, Pfn(2))), "{peek:?}");
        });
        drop(take(&engine, raw));
        engine.folder(4).unwrap().fold_batch();
        walker.join().unwrap();
        engine.audit().unwrap();
    });
}

/// A slot changes hands: what its former reader did inside is over for the grace periods of the next.
#[test]
fn a_slot_that_is_given_back_is_idle() {
    explore(3, || {
        let rcu = section_is_seen(|reader, inside| {
            // A guard that is leaked ends with its reader.
            std::mem::forget(reader.section());
            inside();
        });
        let [first, second] = [rcu.reader().unwrap(), rcu.reader().unwrap()];
        assert!(!first.is_inside() && !second.is_inside());
    });
}

/// Readers that come while slots are used up make room for themselves, and are waited for.
#[test]
fn a_reader_that_had_to_make_room_is_waited_for() {
    explore(2, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let alive = Arc::new((AtomicBool::new(true), AtomicBool::new(true)));
        // Both slots of the first block.
        let readers = [rcu.reader().unwrap(), rcu.reader().unwrap()];
        let theirs = Arc::clone(&alive);
        let reader = beside(&rcu, move |rcu| {
            let reader = rcu.reader().unwrap();
            let _section = reader.section();
            if theirs.0.load(Relaxed) {
                assert!(theirs.1.load(Relaxed), "gone under its reader");
            }
        });
        alive.0.store(false, Relaxed);
        rcu.synchronize();
        alive.1.store(false, Relaxed);
        reader.join().unwrap();
        drop(readers);
    });
}
