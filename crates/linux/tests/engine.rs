//! What the engine promises, one promise a test, on the real platform.

mod common;

use common::{DESCRIBED, TestDescriptors};
use common::{MIB, classes, folded, frame_allocator, host, machine, map_pages_measured, order};
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::protocol::Fold;
use pagefold_engine::{
    AddError, AllocError, Class, Config, Engine, FreeError, IsolateError, Kind, Layout, Miss, Order, Pfn,
    Poisoned, ReshapeError,
};

#[test]
fn free_memory_is_born_folded() {
    let engine = folded(1024 * MIB);
    assert_eq!(engine.free_pages(), 1024 * MIB);
    assert_eq!(map_pages_measured(&engine), 0);
    assert_eq!(engine.class(Pfn(12345)), (Class::Free, false));
    assert_eq!(engine.walker().unwrap().try_get(Pfn(12345)).unwrap_err(), Miss::Free);
    engine.audit().unwrap();
}

#[test]
fn a_huge_folio_materialises_one_map_page_at_most() {
    let engine = folded(2048 * MIB);
    let mut folder = engine.folder(64).unwrap();
    for bits in 7..=18 {
        folder.fold_all();
        assert_eq!(map_pages_measured(&engine), 0);
        let folio = engine.alloc(order(bits), Kind::Anon).unwrap();
        let map_pages = TestDescriptors::map_pages(folio.pfn(), folio.order()).count() as u64;
        let kept = map_pages - TestDescriptors::folding_map_pages(folio.order());
        assert_eq!(map_pages_measured(&engine), kept, "order {bits}");
        let seen = classes(&engine, folio.pfn(), map_pages);
        let (mapped, tails) = seen.split_at(kept as usize);
        assert!(mapped.iter().all(|&class| class == Class::Mapped), "{mapped:?}");
        assert!(tails.iter().all(|&class| class == Class::Tail(order(bits))), "{tails:?}");
        drop(folio);
    }
    engine.audit().unwrap();
}

#[test]
fn every_page_of_a_folio_leads_to_it_and_no_other_page_does() {
    for layout in [Layout::Folded, Layout::Flat] {
        let engine = machine::<Fold>(64 * MIB, layout);
        let walker = engine.walker().unwrap();
        for bits in 0..=13 {
            let frozen = engine.alloc(order(bits), Kind::File).unwrap();
            let (head, pages) = (frozen.pfn(), frozen.order().pages());
            for pfn in head.0..head.0 + pages {
                assert_eq!(walker.try_get(Pfn(pfn)).unwrap_err(), Miss::Frozen, "order {bits} page {pfn}");
            }
            let folio = frozen.share();
            for pfn in head.0..head.0 + pages {
                let found = walker.try_get(Pfn(pfn)).unwrap();
                assert_eq!(
                    (found.pfn(), found.order(), found.kind()),
                    (head, order(bits), Kind::File.into())
                );
                assert_eq!(found.refs(), 2);
            }
            for stranger in [head.0.wrapping_sub(1), head.0 + pages] {
                assert!(walker.try_get(Pfn(stranger)).is_err(), "order {bits} page {stranger}");
            }
            assert_eq!(folio.refs(), 1);
        }
        engine.audit().unwrap();
    }
}

#[test]
fn the_last_put_frees_and_walkers_notice() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let folio = engine.alloc(order(9), Kind::Anon).unwrap().share();
    let pfn = folio.pfn();
    let second = walker.try_get(pfn.plus(300)).unwrap();
    drop(folio);
    assert_eq!(second.refs(), 1, "a reference keeps the folio");
    drop(second);
    assert_eq!(walker.try_get(pfn).unwrap_err(), Miss::Free);
    assert_eq!(walker.try_get(pfn.plus(300)).unwrap_err(), Miss::Free);
    assert_eq!(engine.free_pages(), 64 * MIB);
}

#[test]
fn only_the_only_holder_can_freeze() {
    let engine = folded(64 * MIB);
    let folio = engine.alloc(order(3), Kind::Anon).unwrap().share();
    let other = folio.get().unwrap();
    let folio = folio.freeze().unwrap_err();
    drop(other);
    let mut frozen = folio.freeze().unwrap();
    frozen.owner_mut()[3] = 7;
    frozen.set_kind(Kind::File);
    let folio = frozen.share();
    assert_eq!((folio.owner()[3], folio.kind(), folio.refs()), (7, Kind::File.into(), 1));
}

#[test]
fn owners_data_begins_as_zeros_even_where_somebody_was_before() {
    let engine = folded(2 * MIB);
    for round in 1..=3u64 {
        let mut frozen = engine.alloc(order(9), Kind::Anon).unwrap();
        assert_eq!(*frozen.owner(), [0; 7], "round {round}");
        *frozen.owner_mut() = [round; 7];
    }
}

#[test]
fn freed_memory_folds_again_and_costs_nothing() {
    let engine = folded(256 * MIB);
    let small: Vec<_> = (0..40_000).map(|_| engine.alloc(Order::ZERO, Kind::Anon).unwrap()).collect();
    let huge: Vec<_> = (0..20).map(|_| engine.alloc(order(9), Kind::Anon).unwrap()).collect();
    let map_pages = 40_000u64.div_ceil(DESCRIBED) + 20 * TestDescriptors::KEPT_MAP_PAGES;
    assert_eq!(map_pages_measured(&engine), map_pages);
    drop(small);
    drop(huge);
    assert_eq!(map_pages_measured(&engine), map_pages, "freeing does not fold; folding is batched");
    let report = engine.folder(64).unwrap().fold_all();
    assert_eq!(report.map_pages, map_pages);
    assert_eq!(report.refused, 0);
    assert!(report.grace_periods <= report.map_pages / 64 + 2, "{report:?}");
    assert_eq!(map_pages_measured(&engine), 0);
    assert_eq!(engine.audit().unwrap().free_pages, 256 * MIB);
}

#[test]
fn a_batch_of_huge_folios_folds_for_one_grace_period() {
    let engine = machine::<Fold>(512 * MIB, Layout::Flat);
    let mut batch = engine.fold_batch(128).unwrap();
    for _ in 0..128 {
        batch.push(engine.alloc(order(9), Kind::Hugetlb).unwrap()).unwrap();
    }
    let per_folio = 512 / DESCRIBED;
    assert_eq!(map_pages_measured(&engine), 128 * per_folio);
    let report = batch.commit();
    assert_eq!(
        (report.map_pages, report.refused, report.grace_periods),
        (128 * (per_folio - TestDescriptors::KEPT_MAP_PAGES), 0, 1)
    );
    assert_eq!(map_pages_measured(&engine), 128 * TestDescriptors::KEPT_MAP_PAGES);
    let walker = engine.walker().unwrap();
    let folios: Vec<_> = batch.drain().map(|frozen| frozen.share()).collect();
    for folio in &folios {
        assert_eq!(walker.try_get(folio.pfn().plus(511)).unwrap().pfn(), folio.pfn());
    }
    engine.audit().unwrap();
}

#[test]
fn unfolding_a_folio_and_folding_it_again() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let mut frozen = engine.alloc(order(10), Kind::Hugetlb).unwrap();
    frozen.unfold().unwrap();
    let (map_pages, kept) = (1024 / DESCRIBED, TestDescriptors::KEPT_MAP_PAGES);
    assert_eq!(map_pages_measured(&engine), map_pages);
    let folio = frozen.share();
    assert_eq!(walker.try_get(folio.pfn().plus(1023)).unwrap().pfn(), folio.pfn());
    engine.audit().unwrap();
    let mut batch = engine.fold_batch(1).unwrap();
    batch.push(folio.freeze().unwrap()).unwrap();
    assert_eq!(batch.commit().map_pages, map_pages - kept);
    let folio = batch.drain().next().unwrap().share();
    assert_eq!(map_pages_measured(&engine), kept);
    assert_eq!(walker.try_get(folio.pfn().plus(1023)).unwrap().pfn(), folio.pfn());
    engine.audit().unwrap();
}

/// The tails in the head's own map page stay written when a folio is folded: whatever becomes of it next, they do not lead astray.
#[test]
fn a_folded_folio_whose_tails_were_written_is_split_and_freed() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let pfn = Pfn(1024);
    for to in [9, 7, 6, 3, 0] {
        let mut frozen = engine.alloc_at(pfn, order(10), Kind::Hugetlb).unwrap();
        frozen.unfold().unwrap();
        let mut batch = engine.fold_batch(1).unwrap();
        batch.push(frozen).unwrap();
        batch.commit();
        let frozen = batch.drain().next().unwrap();
        assert_eq!(map_pages_measured(&engine), TestDescriptors::KEPT_MAP_PAGES);
        let pieces = frozen.split(order(to)).unwrap().map(|piece| piece.share()).collect::<Vec<_>>();
        engine.audit().unwrap();
        for page in 0..1024 {
            let piece = walker.try_get(pfn.plus(page)).unwrap();
            assert_eq!(piece.pfn(), pfn.plus(page).head(order(to)));
        }
        // Every second goes; what is left is found, and nothing else is.
        let kept = pieces.into_iter().step_by(2).collect::<Vec<_>>();
        engine.audit().unwrap();
        for page in 0..1024 {
            let is_kept = page >> to & 1 == 0;
            assert_eq!(
                walker.try_get(pfn.plus(page)).is_ok(),
                is_kept,
                "page {page} of pieces of order {to}"
            );
        }
        drop(kept);
        // Another folio in the head's map page, of an order that writes no tails.
        let next = engine.alloc_at(pfn, order(6), Kind::Anon).unwrap().share();
        assert_eq!(walker.try_get(pfn.plus(63)).unwrap().pfn(), next.pfn());
        assert!(walker.try_get(pfn.plus(64)).is_err());
        engine.audit().unwrap();
    }
}

#[test]
fn freeing_never_allocates() {
    let engine = folded(16384 * MIB);
    let mut folios = Vec::new();
    for n in 0..1_000_000u32 {
        // A mix of orders, most of them single pages.
        let bits = if n % 1000 == 0 {
            9
        } else if n % 50 == 0 {
            4
        } else {
            0
        };
        match engine.alloc(order(bits), Kind::Anon) {
            Ok(frozen) => folios.push(frozen.share()),
            Err(error) => panic!("after {n}: {error}"),
        }
    }
    // Some of it was unfolded and split meanwhile: the more roads lead to freeing, the better.
    let unfolded: Vec<_> = (0..100)
        .map(|_| {
            let mut frozen = engine.alloc(order(9), Kind::Anon).unwrap();
            frozen.unfold().unwrap();
            frozen
        })
        .collect();
    let split: Vec<_> =
        (0..100).map(|_| engine.alloc(order(9), Kind::Anon).unwrap().split(order(2)).unwrap()).collect();
    let budget = engine.platform().budget();
    let (used, refused) = (budget.used(), budget.refused());
    budget.refuse_all();
    drop(folios);
    drop(unfolded);
    drop(split);
    assert_eq!(budget.refused(), refused, "freeing asked for memory");
    assert!(budget.used() <= used);
    assert_eq!(engine.free_pages(), 16384 * MIB);
    // And what was freed can be folded with nothing to spare either.
    engine.folder(512).unwrap().fold_all();
    assert_eq!(budget.refused(), refused);
    assert_eq!(map_pages_measured(&engine), 0);
    engine.audit().unwrap();
}

#[test]
fn a_failed_allocation_leaves_no_trace() {
    let engine = folded(64 * MIB);
    engine.platform().budget().refuse_all();
    for bits in [0, 5, 6, 7, 9, 12] {
        assert_eq!(
            engine.alloc(order(bits), Kind::Anon).unwrap_err(),
            AllocError::OutOfMemory,
            "order {bits}"
        );
    }
    assert_eq!(engine.free_pages(), 64 * MIB);
    assert_eq!(map_pages_measured(&engine), 0);
    // The same where an object is at hand, and no memory for the rest.
    engine.platform().budget().set_limit(u64::MAX);
    drop(engine.alloc(Order::ZERO, Kind::Anon).unwrap());
    engine.folder(16).unwrap().fold_all();
    let first = engine.alloc_at(Pfn(0), Order::ZERO, Kind::Anon).unwrap();
    engine.platform().budget().refuse_all();
    engine.alloc_at(Pfn(32 * MIB), Order::ZERO, Kind::Anon).unwrap_err();
    assert_eq!(engine.objects().unwrap_or(1), 1);
    engine.audit().unwrap();
    drop(first);
    engine.platform().budget().set_limit(u64::MAX);
    engine.folder(16).unwrap().fold_all();
    let one = engine.alloc(Order::ZERO, Kind::Anon).unwrap();
    engine.platform().budget().refuse_all();
    let used = engine.platform().budget().used();
    // The map page is materialised already, so a neighbour needs nothing.
    let two = engine.alloc(Order::ZERO, Kind::Anon).unwrap();
    assert_eq!(engine.platform().budget().used(), used);
    assert_eq!(TestDescriptors::map_page(one.pfn()), TestDescriptors::map_page(two.pfn()));
    drop((one, two));
    engine.audit().unwrap();
}

#[test]
fn a_failed_unfold_or_split_leaves_the_folio_as_it_was() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let mut frozen = engine.alloc(order(9), Kind::Anon).unwrap();
    // Enough for some of the map pages at most, not for all.
    let budget = engine.platform().budget();
    budget.set_limit(budget.used() + TestDescriptors::folding_map_pages(order(9)) / 2);
    frozen.unfold().unwrap_err();
    let (frozen, error) = frozen.split(Order::ZERO).unwrap_err();
    assert_eq!(error, ReshapeError::OutOfMemory);
    let kept = TestDescriptors::KEPT_MAP_PAGES;
    assert_eq!(map_pages_measured(&engine), kept);
    let seen = classes(&engine, frozen.pfn(), 512 / DESCRIBED);
    assert!(seen[kept as usize..].iter().all(|&class| class == Class::Tail(order(9))));
    let folio = frozen.share();
    assert_eq!(walker.try_get(folio.pfn().plus(511)).unwrap().pfn(), folio.pfn());
    engine.audit().unwrap();
    budget.set_limit(u64::MAX);
    assert_eq!(folio.freeze().unwrap().split(Order::ZERO).unwrap().count(), 512);
    assert_eq!(engine.free_pages(), 64 * MIB);
}

#[test]
fn split_pieces_are_folios_and_collapse_undoes_it() {
    for layout in [Layout::Folded, Layout::Flat] {
        for (bits, to) in [(9, 0), (9, 3), (9, 6), (9, 7), (10, 9), (11, 8), (6, 0), (5, 2), (1, 0), (12, 9)]
        {
            let engine = machine::<Fold>(64 * MIB, layout);
            let walker = engine.walker().unwrap();
            let mut frozen = engine.alloc(order(bits), Kind::File).unwrap();
            frozen.owner_mut()[0] = 42;
            let head = frozen.pfn();
            let pieces: Vec<_> = frozen.split(order(to)).unwrap().collect();
            assert_eq!(pieces.len(), 1 << (bits - to));
            let folios: Vec<_> = pieces.into_iter().map(|piece| piece.share()).collect();
            engine.audit().unwrap();
            for folio in &folios {
                assert_eq!((folio.order(), folio.kind()), (order(to), Kind::File.into()));
                let last = folio.pfn().plus(folio.order().pages() - 1);
                assert_eq!(walker.try_get(last).unwrap().pfn(), folio.pfn(), "{layout:?} {bits} to {to}");
            }
            let pieces = folios.into_iter().map(|folio| folio.freeze().unwrap()).collect();
            let whole = pagefold_engine::Frozen::collapse(pieces).unwrap();
            assert_eq!((whole.pfn(), whole.order(), whole.owner()[0]), (head, order(bits), 42));
            let folio = whole.share();
            engine.audit().unwrap();
            for page in 0..1u64 << bits {
                assert_eq!(walker.try_get(head.plus(page)).unwrap().pfn(), head);
            }
            drop(folio);
            assert_eq!(engine.free_pages(), 64 * MIB, "{layout:?} {bits} to {to}");
            engine.audit().unwrap();
        }
    }
}

#[test]
fn collapse_refuses_what_is_not_a_block() {
    let engine = folded(64 * MIB);
    let mut pieces: Vec<_> = engine.alloc(order(9), Kind::Anon).unwrap().split(order(7)).unwrap().collect();
    let last = pieces.pop().unwrap();
    let (mut pieces, error) = pagefold_engine::Frozen::collapse(pieces).unwrap_err();
    assert_eq!(error, ReshapeError::NotABlock);
    pieces.insert(0, last);
    let (pieces, error) = pagefold_engine::Frozen::collapse(pieces).unwrap_err();
    assert_eq!(error, ReshapeError::NotABlock);
    drop(pieces);
    engine.audit().unwrap();
}

#[test]
fn pieces_that_nobody_takes_are_freed() {
    let engine = folded(64 * MIB);
    let mut pieces = engine.alloc(order(9), Kind::Anon).unwrap().split(order(4)).unwrap();
    let kept = pieces.nth(5).unwrap();
    drop(pieces);
    assert_eq!(engine.free_pages(), 64 * MIB - 16);
    drop(kept);
    // All of it is one block again.
    drop(engine.alloc(order(14), Kind::Anon).unwrap());
}

#[test]
fn memory_comes_back_in_blocks_of_every_order() {
    let engine = folded(1024 * MIB);
    let pages: Vec<_> = (0..1024 * MIB).map(|_| engine.alloc(Order::ZERO, Kind::Anon).unwrap()).collect();
    assert_eq!(engine.alloc(Order::ZERO, Kind::Anon).unwrap_err(), AllocError::NoBlock);
    engine.audit().unwrap();
    drop(pages);
    let whole = engine.alloc(Order::MAX, Kind::Anon).unwrap();
    assert_eq!(engine.alloc(Order::ZERO, Kind::Anon).unwrap_err(), AllocError::NoBlock);
    drop(whole);
    engine.audit().unwrap();
}

#[test]
fn memory_that_begins_and_ends_anywhere() {
    let mut engine = Engine::<common::TestPlatform>::new(host(), Config::new(4096 * MIB)).unwrap();
    let ranges = [1..0x9f, 0x100..0x3_1001, 0x3_1040..0x8_0000, 0x9_0123..0xe_ffff];
    for range in &ranges {
        engine.online(range.clone()).unwrap();
    }
    let present: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert_eq!(engine.free_pages(), present);
    engine.audit().unwrap();
    let mut pages = Vec::new();
    while let Ok(page) = engine.alloc(Order::ZERO, Kind::Anon) {
        assert!(ranges.iter().any(|range| range.contains(&page.pfn().0)), "{}", page.pfn());
        pages.push(page);
    }
    assert_eq!(pages.len() as u64, present);
    engine.audit().unwrap();
    drop(pages);
    assert_eq!(engine.free_pages(), present);
    engine.audit().unwrap();
}

#[test]
fn memory_cannot_be_added_twice_or_nowhere() {
    let mut engine = Engine::<common::TestPlatform>::new(host(), Config::new(1024 * MIB)).unwrap();
    engine.online(0..512 * MIB).unwrap();
    assert_eq!(engine.online(511 * MIB..600 * MIB), Err(AddError::Overlap));
    assert_eq!(engine.online(0..1), Err(AddError::Overlap));
    assert_eq!(engine.online(600 * MIB..1025 * MIB), Err(AddError::OutOfRange));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 8..7;
    assert_eq!(engine.online(reversed), Err(AddError::OutOfRange));
    engine.add_offline(600 * MIB..700 * MIB).unwrap();
    assert_eq!(engine.online(650 * MIB..651 * MIB), Err(AddError::Overlap));
    let walker = engine.walker().unwrap();
    assert_eq!(walker.try_get(Pfn(650 * MIB)).unwrap_err(), Miss::Offline);
    assert_eq!(walker.try_get(Pfn(800 * MIB)).unwrap_err(), Miss::Absent);
    assert_eq!(walker.try_get(Pfn(u64::MAX)).unwrap_err(), Miss::Absent);
    engine.audit().unwrap();
}

#[test]
fn particular_blocks_can_be_asked_for() {
    let engine = folded(1024 * MIB);
    for (pfn, bits) in [(5, 0), (64, 6), (128, 7), (1024, 9), (1 << 14, 13), (512 * MIB, 17)] {
        let folio = engine.alloc_at(Pfn(pfn), order(bits), Kind::Reserved).unwrap();
        assert_eq!(folio.pfn(), Pfn(pfn));
        assert_eq!(engine.alloc_at(Pfn(pfn), order(bits), Kind::Anon).unwrap_err(), AllocError::Busy);
    }
    assert_eq!(engine.alloc_at(Pfn(1), order(1), Kind::Anon).unwrap_err(), AllocError::Misaligned);
    assert_eq!(engine.alloc_at(Pfn(1024 * MIB), order(0), Kind::Anon).unwrap_err(), AllocError::Absent);
    assert_eq!(engine.alloc_at(Pfn(u64::MAX), order(0), Kind::Anon).unwrap_err(), AllocError::Absent);
    assert_eq!(engine.free_pages(), 1024 * MIB);
    engine.audit().unwrap();
    drop(engine.alloc_at(Pfn(0), Order::MAX, Kind::Anon).unwrap());
}

#[test]
fn poison_is_recorded_beside_folded_folios_and_put_back() {
    let engine = folded(64 * MIB);
    let walker = engine.walker().unwrap();
    let folio = engine.alloc(order(9), Kind::Hugetlb).unwrap().share();
    let broken = folio.pfn().plus(300);
    assert_eq!(engine.class(broken), (Class::Tail(order(9)), false));
    assert_eq!(walker.poison(broken), Ok(Poisoned::InUse));
    assert_eq!(walker.poison(broken), Ok(Poisoned::Known));
    assert_eq!(map_pages_measured(&engine), TestDescriptors::KEPT_MAP_PAGES, "the folio is still folded");
    assert!(engine.is_poisoned(broken) && !engine.is_poisoned(broken.plus(1)));
    // Unfolding puts the mark into the descriptor.
    let mut frozen = folio.freeze().unwrap();
    frozen.unfold().unwrap();
    assert!(walker.peek(broken).unwrap().state.is_poison_marked());
    assert!(!walker.peek(broken.plus(1)).unwrap().state.is_poison_marked());
    drop(frozen);
    // Everything comes back but the broken page, which is never handed out.
    assert_eq!(engine.free_pages(), 64 * MIB - 1);
    assert_eq!(engine.audit().unwrap().withheld_pages, 1);
    let mut all = Vec::new();
    while let Ok(page) = engine.alloc(Order::ZERO, Kind::Anon) {
        assert_ne!(page.pfn(), broken);
        all.push(page);
    }
    assert_eq!(all.len() as u64, 64 * MIB - 1);
    drop(all);
    // Its map page folds although it is never all free, and the mark survives that.
    engine.folder(64).unwrap().fold_all();
    assert_eq!(map_pages_measured(&engine), 0);
    let neighbour = engine.alloc_at(broken.plus(1), Order::ZERO, Kind::Anon).unwrap();
    assert!(walker.peek(broken).unwrap().state.is_poison_marked());
    assert_eq!(walker.try_get(broken).unwrap_err(), Miss::Free);
    drop(neighbour);
    engine.audit().unwrap();
}

#[test]
fn free_pages_that_break_are_withheld() {
    let engine = folded(1024 * MIB);
    let walker = engine.walker().unwrap();
    assert_eq!(walker.poison(Pfn(777)), Ok(Poisoned::Withheld));
    assert!(walker.poison(Pfn(1 << 40)).is_err());
    assert_eq!(engine.free_pages(), 1024 * MIB - 1);
    assert_eq!(engine.alloc(Order::MAX, Kind::Anon).unwrap_err(), AllocError::NoBlock);
    assert_eq!(engine.alloc_at(Pfn(777), Order::ZERO, Kind::Anon).unwrap_err(), AllocError::Busy);
    // Large folios around it still work, and so does freeing a huge one that broke in use.
    let huge = engine.alloc(order(13), Kind::Anon).unwrap().share();
    for page in [0, 64, 4096, 8191] {
        assert_eq!(walker.poison(huge.pfn().plus(page)), Ok(Poisoned::InUse));
    }
    drop(huge);
    assert_eq!(engine.free_pages(), 1024 * MIB - 5);
    let audit = engine.audit().unwrap();
    assert_eq!((audit.withheld_pages, audit.free_pages), (5, 1024 * MIB - 5));
}

#[test]
fn isolated_memory_is_not_handed_out_and_comes_back() {
    let engine = folded(64 * MIB);
    let used: Vec<_> = (0..3000).map(|_| engine.alloc(Order::ZERO, Kind::Anon).unwrap()).collect();
    let huge = engine.alloc(order(9), Kind::Anon).unwrap();
    let mut isolated = engine.isolate(0..32 * MIB).unwrap();
    let busy = isolated.collect();
    let inside = used.iter().filter(|page| page.pfn().0 < 32 * MIB).count() as u64;
    assert_eq!(busy, inside + if huge.pfn().0 < 32 * MIB { 512 } else { 0 });
    let mut others = Vec::new();
    while let Ok(page) = engine.alloc(Order::ZERO, Kind::Anon) {
        assert!(page.pfn().0 >= 32 * MIB, "{} is isolated", page.pfn());
        others.push(page);
    }
    drop(used);
    drop(huge);
    assert_eq!(isolated.collect(), 0);
    assert_eq!(isolated.held_pages(), 32 * MIB);
    assert_eq!(engine.alloc_at(Pfn(512), order(9), Kind::Anon).unwrap_err(), AllocError::Busy);
    drop(isolated);
    drop(others);
    assert_eq!(engine.free_pages(), 64 * MIB);
    engine.audit().unwrap();
    assert_eq!(engine.isolate(1..512).unwrap_err(), IsolateError::BadRange);
    assert_eq!(engine.isolate(0..65 * MIB).unwrap_err(), IsolateError::BadRange);
}

#[test]
fn materialised_free_memory_is_flat_and_folds() {
    let mut engine = Engine::<common::TestPlatform>::new(host(), Config::new(256 * MIB)).unwrap();
    engine.online(100..64 * MIB + 17).unwrap();
    engine.materialise_free(0..256 * MIB).unwrap();
    let map_pages = (64 * MIB + 17).div_ceil(DESCRIBED) - 100 / DESCRIBED;
    assert_eq!(map_pages_measured(&engine), map_pages);
    engine.audit().unwrap();
    let report = engine.folder(128).unwrap().fold_all();
    // Those at the edges too, although some of their pages have no memory.
    assert_eq!(report.map_pages, map_pages);
    engine.audit().unwrap();
}

#[test]
fn a_petabyte_of_free_memory_costs_megabytes() {
    let engine = folded(1 << 38);
    assert_eq!(engine.free_pages(), 1 << 38);
    let used = engine.platform().budget().used();
    assert!(used * 4096 < 16 << 20, "{used} pages");
    let somewhere = engine.alloc_at(Pfn(123 << 30), Order::MAX, Kind::Anon).unwrap();
    let walker = engine.walker().unwrap();
    let folio = somewhere.share();
    assert_eq!(walker.try_get(Pfn((123 << 30) + 262_143)).unwrap().pfn(), folio.pfn());
}

#[test]
fn references_saturate_instead_of_overflowing() {
    let engine = folded(2 * MIB);
    let walker = engine.walker().unwrap();
    let folio = engine.alloc(Order::ZERO, Kind::Anon).unwrap().share();
    // Two thousand million real gets would take a minute; these are as good.
    let raws: Vec<_> = (0..1000).map(|_| folio.get().unwrap().into_raw()).collect();
    assert_eq!(folio.refs(), 1001);
    assert_eq!(walker.try_get(folio.pfn()).unwrap().refs(), 1002);
    for raw in raws {
        // SAFETY: made by `into_raw` above, given back once.
        drop(unsafe { engine.from_raw(raw) });
    }
    assert_eq!(folio.refs(), 1);
}

#[test]
fn pages_given_back_that_are_not_all_taken_stay_as_they_are() {
    let mut frames = frame_allocator(64 * MIB);
    frames.online(0..64 * MIB).unwrap();
    for bits in [6, 7, 8, 10] {
        let block = frames.alloc(order(bits), 0).unwrap();
        let half = bits - 1;
        let second = block.plus(1 << half);
        frames.free(second, order(half)).unwrap();
        let free = frames.free_pages();
        assert_eq!(frames.free(block, order(bits)), Err(FreeError::Free), "order {bits}");
        assert_eq!(frames.free_pages(), free, "order {bits}");
        frames.free(block, order(half)).unwrap();
        assert_eq!(frames.free_pages(), 64 * MIB);
    }
}
