//! The steps of the protocol in all orders, and that the code has one of those that are safe.

mod recorded;

use pagefold_tlb_model::machine::Late;
use pagefold_tlb_model::orders::{
    Course, FOLDED, FolderStep, MAPPED, SHARED, Setting, Start, UNUSED, safe_orders,
};

/// Processors that report no fault late: x86-64.
const SETTING: Setting =
    Setting { walkers: 2, rounds: 2, reports_late: Late::None, leaves_with_release: true };
const ONE: Setting = Setting { walkers: 1, ..SETTING };
/// arm64 with FEAT_ETS2, and without.
const ETS2: Setting = Setting { reports_late: Late::Permission, ..ONE };
const LATE: Setting = Setting { reports_late: Late::All, ..ONE };

const FOLD: [FolderStep; 6] = [
    FolderStep::PublishFolded,
    FolderStep::Grace,
    FolderStep::BreakPage,
    FolderStep::Flush,
    FolderStep::MakeZero,
    FolderStep::FreePage,
];

fn why(setting: Setting, start: Start, steps: &[FolderStep]) -> Option<&'static str> {
    Course { setting, start, steps: steps.to_vec() }.explore()
}

fn without(steps: &[FolderStep], step: FolderStep) -> Vec<FolderStep> {
    steps.iter().copied().filter(|&other| other != step).collect()
}

#[test]
fn folding_has_two_safe_orders() {
    use FolderStep::*;
    let safe = safe_orders(SETTING, MAPPED, &FOLD);
    let other = [PublishFolded, Grace, BreakPage, Flush, FreePage, MakeZero];
    assert_eq!(safe, [FOLD.to_vec(), other.to_vec()]);
}

#[test]
fn every_step_of_a_fold_is_needed() {
    for (step, says) in [
        (FolderStep::PublishFolded, "faults"),
        (FolderStep::Grace, "faults"),
        (FolderStep::BreakPage, "two translations"),
        (FolderStep::Flush, "two translations"),
    ] {
        let found = why(SETTING, MAPPED, &without(&FOLD, step)).unwrap_or("nothing");
        assert!(found.contains(says), "without {step:?}: {found}");
    }
    // Writes that arrive after their walker has left.
    let relaxed = Setting { leaves_with_release: false, ..SETTING };
    assert_eq!(why(relaxed, MAPPED, &FOLD), Some("a late write reaches a frame that is free"));
}

#[test]
fn unfolding_what_was_looked_at_has_one_safe_order() {
    use FolderStep::*;
    let steps = [BreakPage, Flush, MakePage, PublishMapped];
    assert_eq!(safe_orders(SETTING, FOLDED, &steps), [steps.to_vec()]);
}

#[test]
fn unfolding_by_a_swap_needs_no_flush_where_nobody_looked() {
    use FolderStep::*;
    assert_eq!(safe_orders(SETTING, UNUSED, &[SwapPage, PublishMapped]), [vec![SwapPage, PublishMapped]]);
    // The same as a plain store: somebody may have looked.
    assert!(why(SETTING, UNUSED, &[MakePage, PublishMapped]).is_some());
}

#[test]
fn faults_that_come_late_need_a_second_flush() {
    use FolderStep::*;
    let found = Some("a walker faults by a walk from before");
    let (broken, swapped) = ([BreakPage, Flush, MakePage, PublishMapped], [SwapPage, PublishMapped]);
    for (setting, start, steps) in
        [(LATE, FOLDED, &broken[..]), (LATE, UNUSED, &swapped), (ETS2, UNUSED, &swapped)]
    {
        assert_eq!(why(setting, start, steps), found);
        let mut twice = without(steps, PublishMapped);
        twice.extend([Flush, PublishMapped]);
        assert_eq!(why(setting, start, &twice), None, "{twice:?}");
    }
    // What found no entry is reported in time with FEAT_ETS2, and what found the zeroed frame was flushed.
    assert_eq!(why(ETS2, FOLDED, &broken), None);
}

#[test]
fn a_table_takes_a_shared_ones_place_by_break_before_make() {
    use FolderStep::*;
    let steps = [FillTable, BreakTable, Flush, LinkTable, SwapPage, PublishMapped];
    let safe = safe_orders(ONE, SHARED, &steps);
    // The table may be filled, and the page put into it, at any time before it is linked; the page may come later too.
    assert!(safe.contains(&steps.to_vec()));
    let at = |order: &[FolderStep], step| order.iter().position(|&other| other == step);
    for order in &safe {
        let places = [BreakTable, Flush, LinkTable, PublishMapped].map(|step| at(order, step));
        assert!(places.is_sorted() && at(order, FillTable) < at(order, LinkTable), "{order:?}");
        assert!(at(order, SwapPage) < at(order, PublishMapped), "{order:?}");
    }
    println!("{} orders are safe", safe.len());
    // A live table by a live table.
    let live = without(&without(&steps, BreakTable), Flush);
    assert_eq!(why(ONE, SHARED, &live), Some("two page tables may be remembered"));
}

#[test]
fn removal_takes_the_table_too() {
    use FolderStep::*;
    let steps = [PublishFolded, Grace, BreakPage, BreakTable, Flush, LinkShared, FreePage, FreeTable];
    let safe = safe_orders(ONE, MAPPED, &steps);
    let at = |order: &[FolderStep], step| order.iter().position(|&other| other == step);
    for order in &safe {
        for (first, second) in [
            (PublishFolded, Grace),
            (Grace, BreakPage),
            (Grace, BreakTable),
            (BreakTable, Flush),
            (Flush, LinkShared),
            (Flush, FreePage),
            (Flush, FreeTable),
        ] {
            assert!(at(order, first) < at(order, second), "{first:?} before {second:?}: {order:?}");
        }
    }
    assert!(safe.contains(&steps.to_vec()));
    println!("{} of 40,320 orders are safe", safe.len());
}

#[test]
fn the_code_has_a_safe_order() {
    let recorded = recorded::of_the_code();
    println!("{recorded:#?}");
    assert!(safe_orders(SETTING, MAPPED, &FOLD).contains(&recorded.fold));
    let mut removal = recorded.removal.clone();
    removal.retain(|step| *step != FolderStep::MakeZero);
    let mut steps = removal.clone();
    steps.sort();
    assert!(safe_orders(ONE, MAPPED, &steps).contains(&removal));
    for (start, unfold) in [
        (UNUSED, &recorded.unfold_unused),
        (FOLDED, &recorded.unfold_used),
        (SHARED, &recorded.unfold_shared),
    ] {
        let mut steps = unfold.clone();
        steps.sort();
        assert!(safe_orders(ONE, start, &steps).contains(unfold), "{unfold:?}");
    }
}
