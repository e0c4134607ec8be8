//! Grace periods: nobody is inside any more, and what they did is visible.

mod common;

use common::{beside, explore, section_is_seen, visit};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use pagefold_model::platform::{Barrier, Fences};
use pagefold_model::rcu::Rcu;

/// Two versions of something; the old one is taken apart after a grace period.
struct Versions {
    current: AtomicUsize,
    alive: [AtomicBool; 2],
}

impl Versions {
    fn new() -> Self {
        Self { current: AtomicUsize::new(0), alive: [AtomicBool::new(true), AtomicBool::new(true)] }
    }
    /// A reader's whole visit. All accesses are relaxed: only the grace period orders anything.
    fn visit(&self) {
        let current = self.current.load(Ordering::Relaxed);
        assert!(self.alive[current].load(Ordering::Relaxed), "version {current} is gone under its reader");
    }
    fn replace(&self) {
        self.current.store(1, Ordering::Relaxed);
    }
    fn take_apart(&self) {
        self.alive[0].store(false, Ordering::Relaxed);
    }
}

fn readers_and_a_writer<B: Barrier + 'static>(barrier: fn() -> B, visits: usize) {
    let rcu = Arc::new(Rcu::new(barrier()));
    let versions = Arc::new(Versions::new());
    let theirs = Arc::clone(&versions);
    let reader = beside(&rcu, move |rcu| {
        let reader = rcu.reader().unwrap();
        for _ in 0..visits {
            let _section = reader.section();
            theirs.visit();
        }
    });
    versions.replace();
    rcu.synchronize();
    versions.take_apart();
    reader.join().unwrap();
}

#[test]
fn a_grace_period_ends_after_every_section_that_could_see_the_old() {
    explore(3, || readers_and_a_writer(|| Fences, 1));
}

#[test]
fn a_reader_that_comes_back_is_not_mistaken() {
    explore(3, || readers_and_a_writer(|| Fences, 2));
}

#[test]
fn nested_sections_end_with_the_outermost() {
    explore(3, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let versions = Arc::new(Versions::new());
        let theirs = Arc::clone(&versions);
        let reader = beside(&rcu, move |rcu| {
            let reader = rcu.reader().unwrap();
            let outer = reader.section();
            drop(reader.section());
            theirs.visit();
            drop(outer);
        });
        versions.replace();
        rcu.synchronize();
        versions.take_apart();
        reader.join().unwrap();
    });
}

#[test]
fn what_a_section_did_happens_before_the_end_of_the_grace_period() {
    // The reader stays: nothing but the end of its section orders what it did.
    explore(3, || {
        section_is_seen(|reader, inside| {
            visit(&reader, inside);
            std::mem::forget(reader);
        });
    });
}

#[test]
fn readers_come_and_go_while_others_wait() {
    explore(2, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let versions = Arc::new(Versions::new());
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let versions = Arc::clone(&versions);
                beside(&rcu, move |rcu| {
                    let reader = rcu.reader().unwrap();
                    let _section = reader.section();
                    versions.visit();
                })
            })
            .collect();
        versions.replace();
        rcu.synchronize();
        versions.take_apart();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn deferred_callbacks_run_after_every_reader_that_could_need_what_they_free() {
    explore(2, || {
        let rcu = Arc::new(Rcu::new(Fences));
        let versions = Arc::new(Versions::new());
        let theirs = Arc::clone(&versions);
        let reader = beside(&rcu, move |rcu| {
            let reader = rcu.reader().unwrap();
            let _section = reader.section();
            theirs.visit();
        });
        versions.replace();
        let old = Arc::clone(&versions);
        assert!(rcu.defer(Box::new(move || old.take_apart())).is_ok());
        assert_eq!(rcu.run_deferred(), 1);
        reader.join().unwrap();
    });
}

/// No barrier at all, on either side.
struct Nothing;

// SAFETY: none of the contract holds. That is what the test is about, and it stays inside the model.
unsafe impl Barrier for Nothing {
    fn light(&self) {}
    fn heavy(&self) {}
}

#[test]
#[should_panic(expected = "gone under its reader")]
fn the_harness_finds_a_missing_barrier() {
    explore(3, || readers_and_a_writer(|| Nothing, 1));
}
