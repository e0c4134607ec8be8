//! Hand-overs: what one holder of a folio did with its data is over, and seen, when the next one begins.
//!
//! The owner's data is a checked cell (see `sync/checked.rs` of the engine): a reference counts as reading it for as long
//! as it lives, a frozen folio as writing it, and so do the end of a descriptor and of its memory. Two of these that
//! nothing orders end the model with "Causality violation". So most tests here only let handles come and go.

mod common;

use common::{
    ModelEngine, beside, explore, flat_machine, folio_at, freeze, frozen_at, machine, order, take, use_at,
};
use loom::sync::Arc;
use pagefold_model::{Kind, PageKind, Pfn};

/// Three forced switches: the one who gives is interrupted, the one who gets is interrupted, and the first once more while
/// it cleans up.
const BOUND: usize = 3;

// ---- share, then take ----------------------------------------------------------------------------------------------

/// The folio is made and shared while a walker asks for one of its pages.
fn taken_while_it_is_made(engine: Arc<ModelEngine>, pfn: u64, bits: u32, asked: u64) {
    let walker = beside(&engine, move |engine| {
        if let Ok(folio) = engine.walker().unwrap().try_get(Pfn(asked)) {
            assert_eq!((*folio.owner(), folio.order().get()), (1, bits), "what the owner wrote is not seen");
        }
    });
    let mut frozen = frozen_at(&engine, pfn, bits);
    assert_eq!(*frozen.owner(), 0, "an owner's data begins as zero");
    *frozen.owner_mut() = 1;
    let folio = frozen.share();
    walker.join().unwrap();
    drop(folio);
    engine.audit().unwrap();
}

/// Asked for by its head: the walker's fast path meets a map page that is just being unfolded.
#[test]
fn what_was_written_before_a_share_is_seen_by_who_takes_the_head() {
    explore(BOUND, || taken_while_it_is_made(machine(), 2, 0, 2));
}

#[test]
fn what_was_written_before_a_share_is_seen_by_who_takes_a_folded_tail() {
    explore(BOUND, || taken_while_it_is_made(machine(), 0, 2, 3));
}

#[test]
fn what_was_written_before_a_share_is_seen_by_who_takes_a_written_tail() {
    explore(BOUND, || taken_while_it_is_made(flat_machine(), 0, 2, 3));
}

/// A map page that already has memory leads, by a tail written just now, to a head whose map page has just got some.
#[test]
fn a_tail_in_old_memory_leads_to_a_head_in_new_memory() {
    explore(BOUND, || {
        let engine = flat_machine();
        // Leaves the second map page with memory.
        drop(frozen_at(&engine, 2, 0));
        taken_while_it_is_made(engine, 0, 2, 3);
    });
}

/// A folio is frozen, changed in place and shared again, while a walker asks for it twice.
#[test]
fn a_walker_sees_the_data_before_or_after_a_change_in_place() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        let walker = beside(&engine, |engine| {
            let walker = engine.walker().unwrap();
            let seen = [3, 0].map(|pfn| walker.try_get(Pfn(pfn)).map(|folio| (*folio.owner(), folio.kind())));
            let [first, second] =
                seen.map(|seen| seen.ok().map(|seen| seen == (7, PageKind::Owned(Kind::File))));
            assert!(first != Some(true) || second != Some(false), "changed, and changed back");
        });
        let mut frozen = freeze(take(&engine, raw));
        *frozen.owner_mut() = 7;
        frozen.set_kind(Kind::File);
        let folio = frozen.share();
        walker.join().unwrap();
        drop(folio);
        engine.audit().unwrap();
    });
}

// ---- put, then freeze ----------------------------------------------------------------------------------------------

/// One holder reads and puts; another freezes as soon as it is alone, and writes.
#[test]
fn a_put_is_over_when_another_holder_freezes() {
    explore(BOUND, || {
        let engine = machine();
        let folio = frozen_at(&engine, 2, 0).share();
        let raw = folio.get().unwrap().into_raw();
        let other = beside(&engine, move |engine| drop(take(engine, raw)));
        if let Ok(mut frozen) = folio.freeze() {
            *frozen.owner_mut() = 1;
        }
        other.join().unwrap();
        engine.audit().unwrap();
    });
}

/// The same with a walker's reference, which comes and goes while its folio is frozen.
#[test]
fn a_walkers_put_is_over_when_the_owner_freezes() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        let walker = beside(&engine, |engine| drop(engine.walker().unwrap().try_get(Pfn(2))));
        *freeze(take(&engine, raw)).owner_mut() = 1;
        walker.join().unwrap();
        engine.audit().unwrap();
    });
}

// ---- put, free, then allocate --------------------------------------------------------------------------------------

/// One thread puts the last reference; another gets the pages as soon as they are free.
fn freed_then_allocated(
    engine: Arc<ModelEngine>,
    raw: pagefold_model::RawFolio,
    again: impl FnOnce(&ModelEngine),
) {
    let freer = beside(&engine, move |engine| drop(take(engine, raw)));
    again(&engine);
    freer.join().unwrap();
    engine.audit().unwrap();
}

/// Takes any block, and writes.
fn use_any(engine: &ModelEngine, bits: u32) {
    if let Ok(mut next) = engine.alloc(order(bits), Kind::File) {
        assert_eq!(*next.owner(), 0, "an owner's data begins as zero");
        *next.owner_mut() = 2;
    }
}

#[test]
fn a_page_that_was_freed_is_over_when_it_is_allocated_again() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 2, 0);
        freed_then_allocated(engine, raw, |engine| use_at(engine, 2, 0));
    });
}

/// One of a larger folio's pages.
#[test]
fn a_folio_that_was_freed_is_over_when_a_page_of_it_is_allocated() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        freed_then_allocated(engine, raw, |engine| use_at(engine, 0, 0));
    });
}

/// Two areas at once, of which one was freed just now.
#[test]
fn an_area_that_was_freed_is_over_when_a_larger_folio_is_allocated() {
    explore(BOUND, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 2);
        freed_then_allocated(engine, raw, |engine| use_at(engine, 0, 3));
    });
}

/// By the search for a whole area: it is the only free one.
#[test]
fn an_area_that_was_freed_is_over_when_the_search_finds_it() {
    explore(BOUND, || {
        let engine = machine();
        let _kept = folio_at(&engine, 4, 2);
        let raw = folio_at(&engine, 0, 2);
        freed_then_allocated(engine, raw, |engine| use_any(engine, 2));
    });
}

/// By the search for a page: it is the only free one.
#[test]
fn a_page_that_was_freed_is_over_when_the_search_finds_it() {
    explore(BOUND, || {
        let engine = machine();
        let _kept = [folio_at(&engine, 4, 2), folio_at(&engine, 0, 1), folio_at(&engine, 2, 0)];
        let raw = folio_at(&engine, 3, 0);
        freed_then_allocated(engine, raw, |engine| use_any(engine, 0));
    });
}

/// Small pages were freed, their area closed, and it is taken as a whole.
#[test]
fn the_pages_of_an_area_are_over_when_it_is_allocated_whole() {
    // A third switch takes a minute.
    explore(2, || {
        let engine = machine();
        let raw = folio_at(&engine, 0, 0);
        freed_then_allocated(engine, raw, |engine| use_at(engine, 0, 2));
    });
}

/// Two holders on two threads: whoever puts last frees, and both are over for the next owner.
#[test]
fn both_puts_are_over_when_the_page_is_allocated_again() {
    explore(BOUND, || {
        let engine = machine();
        let folio = frozen_at(&engine, 2, 0).share();
        let raw = folio.get().unwrap().into_raw();
        freed_then_allocated(engine.clone(), raw, |engine| {
            drop(folio);
            use_at(engine, 2, 0);
        });
    });
}

/// One CPU takes its pages where another has opened an area: what it must know is that the rows are writable.
#[test]
#[cfg_attr(feature = "memdesc", ignore = "two owners who both take objects: does not end in minutes")]
fn a_cpu_that_shares_a_slot_knows_the_rows_it_takes_pages_in() {
    // One: both search the whole allocator, and a second switch takes a minute.
    explore(1, || {
        let engine = machine();
        let other = beside(&engine, |engine| drop(engine.alloc(order(0), Kind::Anon).unwrap()));
        drop(engine.alloc(order(0), Kind::Anon).unwrap());
        other.join().unwrap();
        assert_eq!(engine.audit().unwrap().free_pages, 8);
    });
}

// ---- split, collapse and fold --------------------------------------------------------------------------------------

/// The first piece keeps the data, the others begin with zeros, whoever looks meanwhile.
#[test]
fn pieces_of_a_split_have_data_of_their_own() {
    explore(BOUND, || {
        let engine = machine();
        let mut whole = frozen_at(&engine, 0, 2);
        *whole.owner_mut() = 5;
        let raw = whole.share().into_raw();
        let walker = beside(&engine, |engine| {
            if let Ok(folio) = engine.walker().unwrap().try_get(Pfn(2)) {
                let expected = if folio.order() == order(2) { 5 } else { 0 };
                assert_eq!(*folio.owner(), expected);
            }
        });
        let pieces: Vec<_> = freeze(take(&engine, raw)).split(order(1)).unwrap().collect();
        assert_eq!(pieces.iter().map(|piece| *piece.owner()).collect::<Vec<_>>(), [5, 0]);
        let shared: Vec<_> = pieces.into_iter().map(|piece| piece.share()).collect();
        walker.join().unwrap();
        drop(shared);
        engine.audit().unwrap();
    });
}

/// Folios with holders of their own become one, whose data the first one's is.
#[test]
fn holders_of_the_parts_are_over_when_they_are_collapsed() {
    explore(BOUND, || {
        let engine = machine();
        let raws = [0, 2].map(|pfn| {
            let mut part = frozen_at(&engine, pfn, 1);
            *part.owner_mut() = pfn + 1;
            part.share().into_raw()
        });
        let walker = beside(&engine, |engine| {
            if let Ok(folio) = engine.walker().unwrap().try_get(Pfn(2)) {
                let expected = if folio.order() == order(2) { 1 } else { 3 };
                assert_eq!(*folio.owner(), expected);
            }
        });
        let parts = raws.into_iter().map(|raw| freeze(take(&engine, raw))).collect();
        let mut whole = pagefold_model::Frozen::collapse(parts).unwrap();
        assert_eq!(*whole.owner_mut(), 1);
        let whole = whole.share();
        walker.join().unwrap();
        drop(whole);
        engine.audit().unwrap();
    });
}
