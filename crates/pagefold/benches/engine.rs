//! The engine beside its peers. `cargo bench` prints the table of docs/benchmarks.md.

mod pairs;
mod peers;

use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pagefold_engine::{Config, Engine, FrameAllocator, Kind, Layout, Order, Pfn, Platform, Walker};
use pagefold_linux::{Linux, Membarrier};
use pairs::{Bar, Row, pair, time};
use peers::{Bitmap, RawMemory, ThreeLevels};
use rustix::thread::{MembarrierCommand, membarrier};

type BenchEngine = Engine<Linux<Membarrier>>;

fn engine(pages: u64, layout: Layout) -> BenchEngine {
    let host = Linux::new(Membarrier::register().expect("membarrier")).expect("a host");
    let mut engine = Engine::new(host, Config { pages, layout }).expect("an engine");
    engine.online(0..pages).expect("memory");
    engine
}

fn order(order: u32) -> Order {
    Order::new(order).expect("an order")
}

fn main() {
    pairs::run([
        ("get", gets),
        ("miss", misses),
        ("fold", folds),
        ("grace", grace_periods),
        ("alloc", allocations),
        ("load", loads),
    ]);
}

// ---- try_get and put -----------------------------------------------------------------------------------------------

/// A million pages for each of two threads.
const MILLION: u64 = 1 << 20;
const PAGES: u64 = 2 * MILLION;

/// The state words of the engine's own descriptors: what a bare get and put work on.
struct Words<'e>(&'e [AtomicU64]);

impl<'e> Words<'e> {
    fn of(engine: &'e BenchEngine) -> Self {
        let (_, map) = engine.tables().next().expect("the memory map");
        let base = map.addresses().start as *const AtomicU64;
        // SAFETY: the map is one array of descriptors of 64 bytes, each beginning with its state word; the caller has
        // materialised all of those that are used, and all accesses are atomic.
        Words(unsafe { std::slice::from_raw_parts(base, PAGES as usize * 8) })
    }

    fn word(&self, pfn: u64) -> &'e AtomicU64 {
        &self.0[pfn as usize * 8]
    }

    /// Linux's `get_page_unless_zero` and `put_page` on the same word, without anything around them.
    #[inline]
    fn get_and_put(&self, pfn: u64) -> bool {
        let word = self.word(pfn);
        let mut now = word.load(Ordering::Relaxed);
        loop {
            if now as u32 == 0 {
                return false;
            }
            match word.compare_exchange(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = other,
            }
        }
        if word.fetch_sub(1, Ordering::Release) as u32 == 1 {
            black_box(());
        }
        true
    }
}

#[inline]
fn try_get_and_put(walker: &Walker<'_, Linux<Membarrier>>, pfn: u64) -> bool {
    walker.try_get(Pfn(pfn)).is_ok()
}

fn random(n: usize, below: u64) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..n).map(|_| rng.u64(0..below)).collect()
}

fn gets(rows: &mut Vec<Row>) {
    let engine = engine(PAGES, Layout::Folded);
    for pfn in 0..PAGES {
        let folio = engine.alloc_at(Pfn(pfn), Order::ZERO, Kind::Anon).expect("a page").share();
        let _for_good = folio.into_raw();
    }
    let words = Words::of(&engine);
    let walker = engine.walker().expect("a walker");
    let sets = [
        ("one page", vec![12_345; 1 << 12], 50, Bar::AtMost(1.15)),
        ("4,096 pages", (0..4096).collect::<Vec<_>>(), 50, Bar::AtMost(1.25)),
        ("random over a million pages", random(1 << 19, MILLION), 1, Bar::AtMost(1.4)),
    ];
    for (name, pages, repeats, bar) in &sets {
        let run = |each: &dyn Fn(&[u64])| time(|| (0..*repeats).for_each(|_| each(pages)));
        rows.push(pair(
            &format!("`try_get` + put, {name}"),
            &mut || run(&|pages| pages.iter().for_each(|&pfn| assert!(try_get_and_put(&walker, pfn)))),
            "bare CAS-unless-zero + sub",
            &mut || run(&|pages| pages.iter().for_each(|&pfn| assert!(words.get_and_put(pfn)))),
            pages.len() as u64 * repeats,
            *bar,
        ));
    }
    // Tails: Linux reads the tail's word, which names the head, and goes on there.
    let huge = self::engine(PAGES, Layout::Folded);
    let heads: Vec<_> = (0..1024)
        .map(|_| {
            let folio = huge.alloc(order(9), Kind::Anon).expect("a folio").share();
            folio.into_raw().0.0
        })
        .collect();
    let walker_of_huge = huge.walker().expect("a walker");
    let words_of_huge = Words::of(&huge);
    let tails: Vec<_> =
        random(1 << 16, 1024 * 511).into_iter().map(|n| heads[n as usize % 1024] + 1 + n / 1024).collect();
    rows.push(pair(
        "`try_get` + put by folded tails of a thousand 2 MiB folios",
        &mut || {
            time(|| {
                (0..5).for_each(|_| {
                    tails.iter().for_each(|&pfn| assert!(try_get_and_put(&walker_of_huge, pfn)))
                })
            })
        },
        "bare CAS-unless-zero + sub at the head",
        &mut || {
            time(|| {
                (0..5).for_each(|_| {
                    tails.iter().for_each(|&pfn| assert!(words_of_huge.get_and_put(pfn & !511)))
                })
            })
        },
        5 * tails.len() as u64,
        Bar::None,
    ));
    let one = &sets[0].1;
    rows.push(pair(
        "`try_get` + put, one page",
        &mut || {
            time(|| (0..50).for_each(|_| one.iter().for_each(|&pfn| assert!(try_get_and_put(&walker, pfn)))))
        },
        "crossbeam-epoch pin + CAS pair",
        &mut || {
            time(|| {
                (0..50).for_each(|_| {
                    one.iter().for_each(|&pfn| {
                        let guard = crossbeam_epoch::pin();
                        assert!(words.get_and_put(pfn));
                        drop(guard);
                    });
                });
            })
        },
        one.len() as u64 * 50,
        Bar::AtMost(0.75),
    ));
    // Two threads, each with lines of its own.
    let halves = |n: u64, length: usize| {
        [(0..n).cycle().take(length).collect::<Vec<_>>(), (n..2 * n).cycle().take(length).collect()]
    };
    for (name, sets, bar) in [
        ("one page", [vec![100; 1 << 17], vec![MILLION + 100; 1 << 17]], Bar::AtMost(1.15)),
        ("4,096 pages", halves(4096, 1 << 17), Bar::AtMost(1.25)),
        (
            "random over a million pages",
            [random(1 << 18, MILLION), random(1 << 18, MILLION).iter().map(|pfn| pfn + MILLION).collect()],
            Bar::AtMost(1.4),
        ),
    ] {
        let operations = 2 * sets[0].len() as u64;
        rows.push(pair(
            &format!("two threads, {name} each"),
            &mut || {
                on_two_threads(&sets, |pages| {
                    let walker = engine.walker().expect("a walker");
                    move || pages.iter().for_each(|&pfn| assert!(try_get_and_put(&walker, pfn)))
                })
            },
            "bare CAS-unless-zero + sub",
            &mut || {
                on_two_threads(&sets, |pages| {
                    let words = &words;
                    move || pages.iter().for_each(|&pfn| assert!(words.get_and_put(pfn)))
                })
            },
            operations,
            bar,
        ));
    }
}

/// Runs `make(pages)` on a thread for each set, both at once; the longer of the two times.
fn on_two_threads<'a, W: FnOnce()>(
    sets: &'a [Vec<u64>; 2],
    make: impl Fn(&'a [u64]) -> W + Sync,
) -> Duration {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let threads = sets.each_ref().map(|pages| {
            let (barrier, make) = (&barrier, &make);
            scope.spawn(move || {
                let work = make(pages);
                barrier.wait();
                time(work)
            })
        });
        threads.map(|thread| thread.join().expect("a bench thread")).into_iter().max().unwrap_or_default()
    })
}

fn misses(rows: &mut Vec<Row>) {
    let engine = engine(PAGES, Layout::Folded);
    // Memory around it is in use, so that its class is its own.
    let _neighbour = engine.alloc_at(Pfn(0), Order::ZERO, Kind::Anon).expect("a page");
    let walker = engine.walker().expect("a walker");
    let pages = random(1 << 16, PAGES / 2).into_iter().map(|pfn| pfn | 64).collect::<Vec<_>>();
    rows.push(miss("`try_get` that fails on a folded page", &walker, &pages, Bar::Over(3.0)));
    // The same in memory that is free as a whole, where the class is the region's.
    let uniform = self::engine(1 << 26, Layout::Folded);
    let walker = uniform.walker().expect("a walker");
    rows.push(miss("the same, where a region's class stands for all", &walker, &pages, Bar::None));
}

fn miss(what: &str, walker: &Walker<'_, Linux<Membarrier>>, pages: &[u64], bar: Bar) -> Row {
    pair(
        what,
        &mut || {
            time(|| {
                (0..10).for_each(|_| pages.iter().for_each(|&pfn| assert!(!try_get_and_put(walker, pfn))))
            })
        },
        "an empty loop",
        &mut || {
            time(|| {
                (0..10).for_each(|_| {
                    pages.iter().for_each(|pfn| {
                        black_box(pfn);
                    });
                });
            })
        },
        10 * pages.len() as u64,
        bar,
    )
}

// ---- folding -------------------------------------------------------------------------------------------------------

/// Folios of 2 MiB.
const FOLIOS: usize = 512;

fn folds(rows: &mut Vec<Row>) {
    let engine = engine((2 * FOLIOS as u64) << 9, Layout::Folded);
    let raw = RawMemory::new(FOLIOS);
    let mut batch = engine.fold_batch(FOLIOS).expect("a batch");
    let mut folios: Vec<_> =
        (0..FOLIOS).map(|_| engine.alloc(order(9), Kind::Hugetlb).expect("a folio")).collect();
    let mut fold = || {
        folios.iter_mut().for_each(|folio| folio.unfold().expect("descriptors"));
        let spent = time(|| {
            folios.drain(..).for_each(|folio| assert!(batch.push(folio).is_ok()));
            assert_eq!(batch.commit().map_pages, 7 * FOLIOS as u64);
        });
        folios.extend(batch.drain());
        spent
    };
    let mut discard = || {
        raw.populate();
        time(|| raw.discard())
    };
    rows.push(pair(
        "fold of a 2 MiB folio, 512 a batch",
        &mut fold,
        "raw `process_madvise` of the same ranges",
        &mut discard,
        FOLIOS as u64,
        Bar::AtMost(1.15),
    ));
    beside_a_reader(&engine, || {
        rows.push(pair(
            "the same, while another thread walks",
            &mut fold,
            "raw `process_madvise` of the same ranges",
            &mut discard,
            FOLIOS as u64,
            Bar::AtMost(1.15),
        ));
    });
}

/// Runs `f` while another thread goes in and out of sections.
fn beside_a_reader(engine: &BenchEngine, f: impl FnOnce()) {
    let (stop, runs) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let walker = engine.walker().expect("a walker");
            runs.store(1, Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                black_box(walker.try_get(Pfn(5)).is_ok());
            }
        });
        while runs.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        f();
        stop.store(true, Ordering::Relaxed);
    });
}

fn grace_periods(rows: &mut Vec<Row>) {
    const PERIODS: u64 = 2000;
    let engine = engine(1 << 15, Layout::Folded);
    let _somebody = engine.walker().expect("a walker");
    let mut ours = || time(|| (0..PERIODS).for_each(|_| engine.rcu().synchronize()));
    let mut peer = || {
        time(|| {
            (0..2 * PERIODS)
                .for_each(|_| membarrier(MembarrierCommand::PrivateExpedited).expect("membarrier"));
        })
    };
    let name = "two `membarrier` calls";
    rows.push(pair("grace period, nobody inside", &mut ours, name, &mut peer, PERIODS, Bar::AtMost(1.2)));
    beside_a_reader(&engine, || {
        rows.push(pair("grace period, a busy reader", &mut ours, name, &mut peer, PERIODS, Bar::AtMost(1.2)));
    });
    // Every reader has a cache line of its own, which a grace period looks at.
    const READERS: u64 = 1024;
    let crowded = self::engine(1 << 15, Layout::Folded);
    let _readers: Vec<_> = (0..READERS).map(|_| crowded.walker().expect("a walker")).collect();
    rows.push(pair(
        "grace period, 1,024 readers registered, nobody inside",
        &mut || time(|| (0..PERIODS).for_each(|_| crowded.rcu().synchronize())),
        "one reader registered",
        &mut || time(|| (0..PERIODS).for_each(|_| engine.rcu().synchronize())),
        PERIODS,
        Bar::Over(5.0 * READERS as f64),
    ));
}

// ---- allocating ----------------------------------------------------------------------------------------------------

fn allocations(rows: &mut Vec<Row>) {
    const TIMES: u64 = 4096;
    let folded = engine(1 << 20, Layout::Folded);
    let flat = engine(1 << 20, Layout::Flat);
    let huge = |engine: &BenchEngine| {
        time(|| {
            (0..TIMES).for_each(|_| drop(black_box(engine.alloc(order(9), Kind::Anon).expect("a folio"))))
        })
    };
    rows.push(pair(
        "allocate + free of 2 MiB, tails folded",
        &mut || huge(&folded),
        "flat: 512 descriptors written",
        &mut || huge(&flat),
        TIMES,
        Bar::Faster(10.0),
    ));
    // Every folio out of memory whose descriptors are folded, all of them, and folded again afterwards; beside a flat
    // map that is materialised once and for all.
    let many = |engine: &BenchEngine| {
        let mut folios = Vec::with_capacity(1024);
        time(|| {
            (0..1024).for_each(|_| folios.push(engine.alloc(order(9), Kind::Anon).expect("a folio")));
            folios.clear();
        })
    };
    let mut folder = folded.folder(512).expect("a folder");
    let mut cold = || {
        let spent = many(&folded);
        folder.fold_all();
        spent
    };
    rows.push(pair(
        "the same, 1,024 folios, first map page unfolded for each",
        &mut cold,
        "flat: 512 descriptors written",
        &mut || many(&flat),
        1024,
        Bar::None,
    ));
    let one = |engine: &BenchEngine| {
        time(|| {
            (0..TIMES).for_each(|_| drop(black_box(engine.alloc(Order::ZERO, Kind::Anon).expect("a page"))))
        })
    };
    let bitmap = Bitmap((0..1 << 14).map(|_| AtomicU64::new(0)).collect());
    let mut bare =
        || time(|| (0..TIMES).for_each(|_| bitmap.free(black_box(bitmap.alloc(0).expect("a page")))));
    let host = Linux::<Membarrier>::new(Membarrier::register().expect("membarrier")).expect("a host");
    let mut frames =
        FrameAllocator::new(1 << 20, |kind, bytes| host.reserve(kind, bytes)).expect("an allocator");
    frames.online(0..1 << 20).expect("memory");
    let mut frame = || {
        time(|| {
            (0..TIMES).for_each(|_| {
                let page = black_box(frames.alloc(Order::ZERO, 0).expect("a page"));
                frames.free(page, Order::ZERO).expect("our page");
            });
        })
    };
    let name = "a bare bitmap";
    rows.push(pair("allocate + free of a page", &mut frame, name, &mut bare, TIMES, Bar::AtMost(1.5)));
    rows.push(pair("the same with its descriptor", &mut || one(&folded), name, &mut bare, TIMES, Bar::None));
    let levels = ThreeLevels {
        local: AtomicU64::new(1 << 20),
        area: AtomicU64::new(512),
        bits: Bitmap((0..8).map(|_| AtomicU64::new(0)).collect()),
    };
    rows.push(pair(
        "allocate + free of a page",
        &mut frame,
        "the atomics of LLFree's get + put",
        &mut || time(|| (0..TIMES).for_each(|_| levels.free(black_box(levels.alloc().expect("a page"))))),
        TIMES,
        Bar::None,
    ));
}

// ---- loading -------------------------------------------------------------------------------------------------------

/// The whole of `pagefold replay` up to the loaded machine, beside the bar of 20 million pages a second.
fn loads(rows: &mut Vec<Row>) {
    let load = || {
        let output = Command::new(env!("CARGO_BIN_EXE_pagefold"))
            .args(["replay", "--sample", "--seconds", "0", "--walkers", "0", "--owners", "0", "--json"])
            .output()
            .expect("the command");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
        let seconds = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        let spent = seconds("read_seconds") + seconds("flat_seconds") + seconds("load_seconds");
        (report["pages"].as_u64().unwrap_or(0), Duration::from_secs_f64(spent))
    };
    let (pages, _) = load();
    rows.push(pair(
        "load of the 24 GiB sample, a page: read, made flat, folios made",
        &mut || load().1,
        "the bar: 20 M pages/s",
        &mut || Duration::from_nanos(50 * pages),
        pages,
        Bar::AtMost(1.0),
    ));
}
