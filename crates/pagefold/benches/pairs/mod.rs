//! Two things timed in turn, and what one costs in terms of the other.
//!
//! Machines drift, and these are shared ones: absolute times of two runs cannot be compared. So every round times both
//! sides, one after the other, and yields one ratio; the table shows the median ratio over all rounds with its middle
//! half, and the times only for orientation.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

/// Rounds of a pair.
pub const ROUNDS: usize = 41;

/// A row of the table.
pub struct Row {
    what: String,
    peer: String,
    ours_ns: f64,
    peer_ns: f64,
    ratio: [f64; 3],
    bar: String,
    holds: bool,
}

/// What a ratio is held against.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "no benchmark has bars of all kinds")]
pub enum Bar {
    /// At most this many times the peer.
    AtMost(f64),
    /// At least this many times faster than the peer.
    Faster(f64),
    /// At most this many nanoseconds more than the peer, an operation.
    Over(f64),
    /// For information.
    None,
}

/// One side of a pair: runs its operations once and says how long they took.
pub type Side<'a> = &'a mut dyn FnMut() -> Duration;

/// Times `f`.
pub fn time<T>(f: impl FnOnce() -> T) -> Duration {
    let begun = Instant::now();
    std::hint::black_box(f());
    begun.elapsed()
}

/// Runs both sides in turn. Each does `operations` operations a call.
pub fn pair(what: &str, ours: Side, peer_name: &str, peer: Side, operations: u64, bar: Bar) -> Row {
    let (mut ratios, mut ours_ns, mut peer_ns) = (Vec::new(), Vec::new(), Vec::new());
    ours();
    peer();
    for round in 0..ROUNDS {
        // The first of the two has the colder caches: take turns.
        let (a, b) = if round % 2 == 0 {
            let a = ours();
            (a, peer())
        } else {
            let b = peer();
            (ours(), b)
        };
        ours_ns.push(a.as_nanos() as f64 / operations as f64);
        peer_ns.push(b.as_nanos() as f64 / operations as f64);
        ratios.push(a.as_nanos() as f64 / (b.as_nanos() as f64).max(1.0));
    }
    let (ours_ns, peer_ns) = (quartiles(ours_ns)[1], quartiles(peer_ns)[1]);
    let ratio = quartiles(ratios);
    let (text, holds) = match bar {
        Bar::AtMost(most) => (format!("≤ {most} ×"), ratio[1] <= most),
        Bar::Faster(times) => (format!("≥ {times} × faster"), 1.0 / ratio[1] >= times),
        Bar::Over(ns) => (format!("≤ {ns} ns more"), ours_ns - peer_ns <= ns),
        Bar::None => (String::new(), true),
    };
    let row = Row { what: what.into(), peer: peer_name.into(), ours_ns, peer_ns, ratio, bar: text, holds };
    eprintln!("{}", row.line());
    row
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn nanoseconds(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

impl Row {
    fn line(&self) -> String {
        let [low, median, high] = self.ratio;
        let holds = match (self.bar.is_empty(), self.holds) {
            (true, _) => "",
            (_, true) => " ✓",
            (_, false) => " ✗",
        };
        format!(
            "| {} | {} | {} | {} | **{median:.3}** ({low:.3}–{high:.3}) | {}{holds} |",
            self.what,
            nanoseconds(self.ours_ns),
            self.peer,
            nanoseconds(self.peer_ns),
            self.bar,
        )
    }
}

/// Rows of one subject.
pub type Group = fn(&mut Vec<Row>);

/// Times the groups of rows whose names contain the word on the command line, or all, and prints the table.
pub fn run<const N: usize>(groups: [(&str, Group); N]) {
    // `cargo bench` passes `--bench`; a word picks rows by name.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| filter.as_deref().is_none_or(|filter| name.contains(filter));
    let mut rows = Vec::new();
    for (_, group) in groups.into_iter().filter(|(name, _)| wanted(name)) {
        group(&mut rows);
    }
    if !print(&rows) {
        println!("\nNot every bar holds in this run.");
    }
}

/// Prints the table; whether all bars hold.
pub fn print(rows: &[Row]) -> bool {
    println!("| what | Pagefold | beside | its time | ratio (middle half) | bar |");
    println!("|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{}", row.line()));
    rows.iter().all(|row| row.holds)
}

/// The peer of unplugging: gives `len` bytes of a memory file back, and nothing else.
pub fn punch_hole(file: impl AsFd, offset: u64, len: u64) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, hole, offset, len).expect("a hole");
}
