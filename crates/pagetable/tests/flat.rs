//! A reservation against a flat array: random calls, random looks, few frames.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use pagefold_pagetable::aarch64::ArmEntry;
use pagefold_pagetable::simulated::{Fault, Simulated};
use pagefold_pagetable::x86_64::X86Entry;
use pagefold_pagetable::{Entry, Gap, HUGE, LARGE, PAGE, Reservation, SHARED_FRAMES, Shared};
use proptest::prelude::*;

const BASE: u64 = 0x4000_0000_0000;
/// Crosses a GiB, so that there are two directories.
const LEN: u64 = HUGE + 4 * LARGE;
/// Of a range that has all its tables from the start on arm64.
const SHORT: u64 = 4 * LARGE;

#[derive(Clone, Debug)]
enum Call {
    Materialise(Range<u64>),
    Fold(Vec<Range<u64>>),
    Read(u64),
    Write(u64, u64),
    Evict(u64),
}

/// Page numbers in a few places: the ends of tables and of the range.
fn page() -> impl Strategy<Value = u64> {
    let pages = LEN / PAGE;
    prop_oneof![0..8u64, 508..516u64, 2044..2048u64, 262_140..262_148u64, pages - 4..pages]
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (page(), 1..6u64).prop_map(|(start, count)| start..(start + count).min(LEN / PAGE))
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        3 => range().prop_map(Call::Materialise),
        1 => Just(Call::Materialise(500..1030)),
        2 => prop::collection::vec(range(), 1..5).prop_map(Call::Fold),
        1 => Just(Call::Fold(std::iter::once(0..LEN / PAGE).collect())),
        1 => Just(Call::Fold((0..80).map(|at| at * 7..at * 7 + 1).collect())),
        3 => page().prop_map(Call::Read),
        3 => (page(), any::<u64>()).prop_map(|(page, word)| Call::Write(page, word)),
        1 => page().prop_map(Call::Evict),
    ];
    prop::collection::vec(call, 1..60)
}

fn check<E: Entry>(format: E, gap: Gap, frames: u64, calls: &[Call]) {
    let len = if gap == Gap::Never { SHORT } else { LEN };
    let machine = Simulated::new(format, frames);
    let shared = Shared::new(&machine).unwrap();
    // SAFETY: the only reservation of a fresh machine.
    let table = unsafe { Reservation::new(&shared, BASE, len, gap) }.unwrap();
    let mut flat: BTreeMap<u64, u64> = BTreeMap::new();
    for call in calls {
        match call {
            Call::Materialise(pages) => {
                let pages = pages.start..pages.end.min(len / PAGE);
                let before = (table.counted(), machine.free());
                // SAFETY: nobody else reads.
                match unsafe { table.materialise(pages.start * PAGE..pages.end * PAGE) } {
                    Ok(()) => pages.clone().for_each(|page| {
                        flat.entry(page).or_insert(0);
                    }),
                    Err(_) => assert_eq!((table.counted(), machine.free()), before),
                }
            }
            Call::Fold(ranges) => {
                let bytes = ranges.iter().map(|pages| pages.start * PAGE..pages.end * PAGE);
                // SAFETY: nobody else reads.
                unsafe { table.fold(bytes) };
                if gap == Gap::Allowed {
                    flat.retain(|page, _| !ranges.iter().any(|range| range.contains(page)));
                }
            }
            Call::Read(page) | Call::Write(page, _) if *page >= len / PAGE => {}
            Call::Read(page) => {
                let word = machine.read(BASE + page * PAGE + 8);
                assert_eq!(word, Ok(flat.get(page).copied().unwrap_or(0)), "page {page}");
            }
            Call::Write(page, word) => {
                let done = machine.write(BASE + page * PAGE + 8, *word);
                match flat.get_mut(page) {
                    Some(flat) => {
                        assert_eq!(done, Ok(()), "page {page}");
                        *flat = *word;
                    }
                    None => assert_eq!(done, Err(Fault::ReadOnly), "page {page}"),
                }
            }
            Call::Evict(page) => machine.evict(BASE + page * PAGE),
        }
        let behind = table.counted();
        assert_eq!(behind.pages, flat.len() as u64);
        assert_eq!(machine.free() + SHARED_FRAMES + behind.pages + behind.tables, frames);
    }
    assert_eq!(table.counted(), table.measured());
    // SAFETY: nobody else reads.
    unsafe { table.fold(std::iter::once(0..len)) };
    assert_eq!(table.counted(), table.measured());
    if gap == Gap::Allowed {
        assert_eq!(machine.free() + SHARED_FRAMES, frames);
        assert_eq!(machine.read(BASE), Ok(0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn reads_as_a_flat_array(calls in calls(), few in any::<bool>()) {
        let frames = if few { 24 } else { 2000 };
        for gap in [Gap::Allowed, Gap::Never] {
            check(X86Entry, gap, frames, &calls);
            check(ArmEntry, gap, frames, &calls);
        }
    }
}

/// What was read while it was folded can be written once it is materialised, though the table that it was read through has gone
/// meanwhile, and the flags with it that say so.
#[test]
fn what_was_read_through_a_table_that_went_can_be_written() {
    use Call::{Fold, Materialise, Read, Write};
    let one = |page: u64| std::iter::once(page..page + 1).collect();
    // A page table; then a page directory, under which the page was read through a table that all share.
    let table = [Materialise(508..513), Read(515), Fold(one(512)), Materialise(513..516), Write(515, 1)];
    let directory = [Materialise(0..1), Read(2044), Fold(one(0)), Materialise(2044..2045), Write(2044, 1)];
    for calls in [table, directory] {
        for gap in [Gap::Allowed, Gap::Never] {
            check(X86Entry, gap, 2000, &calls);
            check(ArmEntry, gap, 2000, &calls);
        }
    }
}

/// One materialised page, folded: flushes by how the page was used before.
fn flushes<E: Entry>(format: E, gap: Gap, look: impl Fn(&Simulated<E>)) -> (u64, u64) {
    let machine = Simulated::new(format, 600);
    let shared = Shared::new(&machine).unwrap();
    // SAFETY: the only reservation of a fresh machine.
    let table = unsafe { Reservation::new(&shared, BASE, LARGE, gap) }.unwrap();
    // SAFETY: nobody else reads.
    unsafe { table.materialise(0..PAGE) }.unwrap();
    let before = machine.flushes();
    look(&machine);
    // SAFETY: nobody else reads.
    unsafe { table.materialise(PAGE..2 * PAGE) }.unwrap();
    assert_eq!(machine.write(BASE + PAGE, 7), Ok(()));
    let after = machine.flushes();
    // SAFETY: nobody else reads.
    unsafe { table.fold([0..PAGE, PAGE..2 * PAGE].into_iter()) };
    let counts = shared.counts();
    assert_eq!(counts.fold_flushes.load(Ordering::Relaxed), u64::from(gap == Gap::Allowed));
    (after - before, machine.flushes() - after)
}

#[test]
fn what_nobody_looked_at_needs_no_flush_and_a_batch_needs_one() {
    for gap in [Gap::Allowed, Gap::Never] {
        let folds = u64::from(gap == Gap::Allowed);
        assert_eq!(flushes(X86Entry, gap, |_| ()), (0, folds));
        assert_eq!(flushes(ArmEntry, gap, |_| ()), (0, folds));
        // Readable at all times: read-only first, and writable after a flush.
        let steps = if gap == Gap::Allowed { 1 } else { 2 };
        let look = |address| assert_eq!(address, Ok(0));
        assert_eq!(flushes(X86Entry, gap, |machine| look(machine.read(BASE + PAGE))), (steps, folds));
        assert_eq!(flushes(ArmEntry, gap, |machine| look(machine.read(BASE + PAGE))), (steps, folds));
    }
}

#[test]
fn a_gib_that_is_folded_costs_one_entry() {
    let machine = Simulated::new(ArmEntry, 16);
    let shared = Shared::new(&machine).unwrap();
    // SAFETY: the only reservation of a fresh machine.
    let table = unsafe { Reservation::new(&shared, BASE, 100 * HUGE, Gap::Allowed) }.unwrap();
    assert_eq!(machine.free(), 16 - SHARED_FRAMES);
    assert_eq!((machine.read(BASE), machine.read(BASE + 100 * HUGE - 8)), (Ok(0), Ok(0)));
    assert_eq!(machine.write(BASE, 1), Err(Fault::ReadOnly));
    assert_eq!(machine.read(BASE + 100 * HUGE), Err(Fault::NotPresent));
    // A directory, a table, a page.
    // SAFETY: nobody else reads.
    unsafe { table.materialise(50 * HUGE..50 * HUGE + 1) }.unwrap();
    assert_eq!(machine.free(), 16 - SHARED_FRAMES - 3);
}
