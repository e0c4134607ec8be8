//! The code of `pagefold-pagetable` under processors that remember whatever they may; and what would happen otherwise.

use pagefold_pagetable::aarch64::ArmEntry;
use pagefold_pagetable::x86_64::X86Entry;
use pagefold_pagetable::{Access, Entry, Gap, Level, PAGE};
use pagefold_tlb_model::machine::{Flushes, Late, Rules};
use pagefold_tlb_model::replay::{BASE, Call, Expect, Found, PAGES, Replayed};

/// Silicon of arm64 that manages accessed flags and has FEAT_ETS2.
const ARM: Rules<ArmEntry> = Rules {
    format: ArmEntry,
    breaks_before_makes: true,
    sets_flags: true,
    reports_late: Late::Permission,
    flushes: Flushes::All,
    flushes_when_made: true,
};
/// Without FEAT_ETS2.
const ARM_LATE: Rules<ArmEntry> = Rules { reports_late: Late::All, ..ARM };
/// Without FEAT_HAFDBS and FEAT_ETS2.
const ARM_OLD: Rules<ArmEntry> = Rules { sets_flags: false, ..ARM_LATE };
const X86: Rules<X86Entry> = Rules {
    format: X86Entry,
    breaks_before_makes: false,
    sets_flags: true,
    reports_late: Late::None,
    flushes: Flushes::All,
    flushes_when_made: false,
};

fn bytes(page: u64) -> std::ops::Range<u64> {
    page - BASE..page - BASE + PAGE
}

/// A page is materialised, written, folded, and materialised again; another under the same table stays.
fn fold_and_unfold(looked_at: usize) -> Vec<Call> {
    let [one, two, _] = PAGES;
    let written = |page| [Call::Expect(Expect::Settled), Call::Expect(Expect::Written(page))];
    let mut calls = vec![Call::Materialise(bytes(one))];
    calls.extend(written(one));
    if looked_at > 1 {
        calls.push(Call::Materialise(bytes(two)));
        calls.extend(written(two));
    }
    calls.push(Call::Fold(vec![bytes(one)]));
    calls.extend([Call::Expect(Expect::Settled), Call::Expect(Expect::Zero(one))]);
    calls.push(Call::Materialise(bytes(one)));
    calls.extend(written(one));
    calls
}

/// Everything under both tables goes, and comes again.
fn tables_go() -> Vec<Call> {
    let [one, _, three] = PAGES;
    vec![
        Call::Materialise(bytes(one)),
        Call::Expect(Expect::Written(one)),
        Call::Materialise(bytes(three)),
        Call::Expect(Expect::Written(three)),
        Call::Fold(vec![bytes(one), bytes(three)]),
        Call::Expect(Expect::Settled),
        Call::Expect(Expect::Zero(one)),
        Call::Expect(Expect::Free(9)),
        Call::Materialise(bytes(three)),
        Call::Expect(Expect::Settled),
        Call::Expect(Expect::Written(three)),
    ]
}

/// A range that is read all the time: pages come, one after the other.
fn always_readable() -> Vec<Call> {
    let [one, two, _] = PAGES;
    let mut calls = Vec::new();
    for page in [one, two] {
        calls.push(Call::Expect(Expect::Zero(page)));
        calls.push(Call::Materialise(bytes(page)));
        calls.push(Call::Expect(Expect::Settled));
        calls.push(Call::Expect(Expect::Written(page)));
    }
    calls
}

fn explore<E: Entry + std::fmt::Debug + 'static>(
    rules: Rules<E>,
    gap: Gap,
    processors: usize,
    pages: &[u64],
    calls: Vec<Call>,
) -> Found {
    let found = Replayed::new(rules, gap, processors, pages, calls).explore();
    println!("{} states, {:?}", found.states, found.broken);
    found
}

#[track_caller]
fn holds<E: Entry + std::fmt::Debug + 'static>(
    rules: Rules<E>,
    gap: Gap,
    processors: usize,
    pages: &[u64],
    calls: Vec<Call>,
) {
    let found = explore(rules, gap, processors, pages, calls);
    assert_eq!(found.broken, None);
    assert!(found.has_ended && found.states > 200, "{found:?}");
}

#[track_caller]
fn is_found<E: Entry + std::fmt::Debug + 'static>(rules: Rules<E>, gap: Gap, calls: Vec<Call>, says: &str) {
    let broken = explore(rules, gap, 1, &PAGES[..2], calls).broken.expect("nothing was found");
    assert!(broken.contains(says), "{broken}");
}

#[test]
fn fold_and_unfold_hold_on_both() {
    for processors in [1, 2] {
        holds(ARM, Gap::Allowed, processors, &PAGES[..1], fold_and_unfold(1));
        holds(X86, Gap::Allowed, processors, &PAGES[..1], fold_and_unfold(1));
    }
    holds(ARM, Gap::Allowed, 1, &PAGES[..2], fold_and_unfold(2));
    holds(X86, Gap::Allowed, 1, &PAGES[..2], fold_and_unfold(2));
}

#[test]
fn older_cores_of_arm64_hold() {
    holds(ARM_LATE, Gap::Allowed, 1, &PAGES[..2], fold_and_unfold(2));
    holds(ARM_OLD, Gap::Allowed, 1, &PAGES[..2], fold_and_unfold(2));
}

#[test]
fn tables_go_and_come_on_both() {
    holds(ARM, Gap::Allowed, 1, &[PAGES[0], PAGES[2]], tables_go());
    holds(X86, Gap::Allowed, 1, &[PAGES[0], PAGES[2]], tables_go());
}

#[test]
fn a_range_that_is_always_read_is_never_unreadable() {
    holds(ARM, Gap::Never, 1, &PAGES[..2], always_readable());
    holds(ARM_LATE, Gap::Never, 1, &PAGES[..2], always_readable());
    holds(X86, Gap::Never, 1, &PAGES[..2], always_readable());
}

#[test]
fn flushes_that_are_missing_or_fall_short_are_found() {
    let broken = |flushes| Rules { flushes, reports_late: Late::None, ..ARM };
    is_found(broken(Flushes::None), Gap::Allowed, fold_and_unfold(2), "remembers");
    is_found(broken(Flushes::PagesOnly), Gap::Allowed, tables_go(), "remember");
    is_found(Rules { flushes: Flushes::None, ..X86 }, Gap::Allowed, fold_and_unfold(2), "remembers");
    is_found(Rules { flushes: Flushes::PagesOnly, ..X86 }, Gap::Allowed, tables_go(), "remember");
    // The first processor flushes its own TLB only; the second is the one that remembers.
    let local = explore(broken(Flushes::Local), Gap::Allowed, 2, &PAGES[..1], fold_and_unfold(1));
    assert!(local.broken.is_some_and(|broken| broken.contains("processor 1")));
}

#[test]
fn a_fault_that_comes_late_is_found_without_the_flush_after_making() {
    for reports_late in [Late::Permission, Late::All] {
        let rules = Rules { flushes_when_made: false, reports_late, ..ARM };
        is_found(rules, Gap::Allowed, fold_and_unfold(2), "by a walk from before");
    }
}

/// An architecture's entries, with one answer that is wrong.
#[derive(Clone, Copy, Debug)]
struct Wrong<E, const TABLES: bool> {
    right: E,
    /// Every entry of this level passes for unused.
    unused: Option<Level>,
}

impl<E: Entry, const TABLES: bool> Entry for Wrong<E, TABLES> {
    const TABLES_GIVE_WAY: bool = TABLES;

    fn is_unused(self, word: u64, level: Level) -> bool {
        self.unused == Some(level) || self.right.is_unused(word, level)
    }
    fn branch(self, table: u64) -> u64 {
        self.right.branch(table)
    }
    fn zero(self, frame: u64) -> u64 {
        self.right.zero(frame)
    }
    fn leaf(self, physical: u64, access: Access, is_large: bool) -> u64 {
        self.right.leaf(physical, access, is_large)
    }
    fn is_present(self, word: u64) -> bool {
        self.right.is_present(word)
    }
    fn is_large(self, word: u64) -> bool {
        self.right.is_large(word)
    }
    fn is_writable(self, word: u64) -> bool {
        self.right.is_writable(word)
    }
    fn address(self, word: u64) -> u64 {
        self.right.address(word)
    }
    fn used(self, word: u64, level: Level) -> u64 {
        self.right.used(word, level)
    }
    fn broken(self, word: u64) -> u64 {
        self.right.broken(word)
    }
    fn mended(self, word: u64) -> u64 {
        self.right.mended(word)
    }
    fn count(self, word: u64) -> u64 {
        self.right.count(word)
    }
    fn with_count(self, word: u64, count: u64) -> u64 {
        self.right.with_count(word, count)
    }
}

#[test]
fn replacing_what_is_live_is_found_on_arm64() {
    let rules = |unused| {
        let format = Wrong::<_, false> { right: ArmEntry, unused };
        let Rules { breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made, .. } = ARM;
        Rules { format, breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made }
    };
    // As the kernel for x86-64 alone did it: a live page table by a live page table.
    is_found(rules(Some(Level::Table)), Gap::Allowed, tables_go(), "another");
    // A page whose entry was used, swapped all the same.
    is_found(rules(Some(Level::Page)), Gap::Allowed, fold_and_unfold(2), "remembers");
    assert_eq!(explore(rules(None), Gap::Allowed, 1, &PAGES[..1], fold_and_unfold(1)).broken, None);
    // In a range that is always read: tables that give way.
    let Rules { breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made, .. } = ARM;
    let format = Wrong::<_, true> { right: ArmEntry, unused: None };
    let rules = Rules { format, breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made };
    is_found(rules, Gap::Never, always_readable(), "another");
}

#[test]
fn x86_needs_the_accessed_flag_as_well() {
    let Rules { breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made, .. } = X86;
    let format = Wrong::<_, true> { right: X86Entry, unused: Some(Level::Page) };
    let rules = Rules { format, breaks_before_makes, sets_flags, reports_late, flushes, flushes_when_made };
    is_found(rules, Gap::Allowed, fold_and_unfold(2), "remembers");
}
