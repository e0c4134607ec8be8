//! Saturation: a folio has a largest number of references (three, under loom), and never one more.

mod common;

use common::{Model, ModelEngine, alone, beside, explore, frozen_at, is_one_of, machine, take, walk};
use pagefold_model::protocol::Fold;
use pagefold_model::{Folio, MAX_REFS, Miss, Pfn, Saturated};

/// All references that a new folio can have.
fn saturated(engine: &ModelEngine, pfn: u64, bits: u32) -> Vec<Folio<'_, Model<Fold>>> {
    let first = frozen_at(engine, pfn, bits).share();
    let mut all: Vec<_> = (1..MAX_REFS).map(|_| first.get().unwrap()).collect();
    all.push(first);
    all
}

#[test]
fn no_reference_is_taken_of_a_folio_that_has_the_most() {
    alone(|| {
        let engine = machine();
        let mut all = saturated(&engine, 0, 2);
        assert_eq!(all[0].refs(), MAX_REFS);
        assert_eq!(all[0].get().unwrap_err(), Saturated);
        let walker = engine.walker().unwrap();
        // By its head, which is the fast way, and by a tail.
        for pfn in [0, 1, 3] {
            assert_eq!(walker.try_get(Pfn(pfn)).unwrap_err(), Miss::Saturated, "page {pfn}");
        }
        assert_eq!((all[0].refs(), all[0].order().get()), (MAX_REFS, 2), "what failed left nothing behind");
        all.pop();
        let again = walker.try_get(Pfn(0)).unwrap();
        assert_eq!(again.refs(), MAX_REFS);
        drop((again, all));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// One reference is left, and two want it: a holder, and a walker.
///
/// Three forced switches: a holder's attempt counts for a moment, and is undone.
#[test]
fn the_last_reference_goes_to_one_of_two() {
    explore(3, || {
        let engine = machine();
        let mut all = saturated(&engine, 2, 0);
        let spare = all.pop().unwrap();
        drop(spare);
        let other = beside(&engine, |engine| engine.walker().unwrap().try_get(Pfn(2)).map(Folio::into_raw));
        let mine = all[0].get();
        let theirs = other.join().unwrap();
        match (&mine, &theirs) {
            // The one's attempt may have counted when the other looked.
            (Ok(_), Err(Miss::Saturated)) | (Err(Saturated), Ok(_)) => {}
            both => panic!("{both:?}"),
        }
        assert_eq!(all[0].refs(), MAX_REFS);
        if let Ok(raw) = theirs {
            drop(take(&engine, raw));
        }
        drop((mine, all));
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// Two holders that both fail, beside a put: nothing is lost and nothing is left over.
///
/// Two forced switches: each attempt between its count and its undoing.
#[test]
fn attempts_that_fail_leave_the_count_as_it_was() {
    explore(2, || {
        let engine = machine();
        let mut all = saturated(&engine, 2, 0);
        let [first, second] = [all.pop().unwrap().into_raw(), all.pop().unwrap().into_raw()];
        let others = [first, second].map(|raw| {
            beside(&engine, move |engine| {
                let folio = take(engine, raw);
                drop(folio.get());
            })
        });
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(all[0].refs(), 1);
        drop(all);
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

/// The walker's last reference and the owner's put.
#[test]
fn a_walker_beside_a_put_of_a_folio_that_has_the_most() {
    explore(3, || {
        let engine = machine();
        let all: Vec<_> = saturated(&engine, 2, 0).into_iter().map(Folio::into_raw).collect();
        let walker = beside(&engine, |engine| walk(engine, 2));
        all.into_iter().for_each(|raw| drop(take(&engine, raw)));
        let found = walker.join().unwrap();
        assert!(is_one_of(found, &[0]) || found == Err(Miss::Saturated), "{found:?}");
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}
