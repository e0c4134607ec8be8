//! A word a page and an object a folio (memdesc) beside descriptors of 64 bytes, and beside a bare reference count.
//! `cargo bench --bench descriptors` prints the table of docs/memdesc.md.

mod pairs;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use pagefold_engine::platform::TableKind;
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Descriptors, Engine, Frozen, Kind, Memdesc, Order, Page64, Pfn, Walker};
use pagefold_linux::{Linux, Membarrier};
use pairs::{Bar, Row, pair, time};

/// What owners keep: objects have 64 bytes with it, as descriptors have.
type Owner = [u64; 6];
type Machine<D> = Linux<Membarrier, Owner, Fold, D>;
type BenchEngine<D> = Engine<Machine<D>>;

/// Pages of a machine of 4 GiB.
const MILLION: u64 = 1 << 20;

fn engine<D: Descriptors>(pages: u64) -> BenchEngine<D> {
    let host = Machine::new(Membarrier::register().expect("membarrier")).expect("a host");
    let mut engine = Engine::new(host, Config::new(pages)).expect("an engine");
    engine.online(0..pages).expect("memory");
    engine
}

fn order(order: u32) -> Order {
    Order::new(order).expect("an order")
}

fn main() {
    pairs::run([
        ("get", gets),
        ("scan", scans),
        ("alloc", allocations),
        ("reshape", reshapes),
        ("fold", folds),
    ]);
}

/// The machine with every page a folio of its own.
fn full<D: Descriptors>() -> BenchEngine<D> {
    let engine = engine::<D>(MILLION);
    for pfn in 0..MILLION {
        let folio = engine.alloc_at(Pfn(pfn), Order::ZERO, Kind::Anon).expect("a page").share();
        let _for_good = folio.into_raw();
    }
    engine
}

/// Words and objects, without classes and sections: a kernel that never folds.
struct Bare<'e> {
    words: &'e [AtomicU64],
    objects: u64,
}

impl<'e> Bare<'e> {
    fn of(engine: &'e BenchEngine<Memdesc>) -> Self {
        let base = |wanted: TableKind| {
            let mut tables = engine.tables();
            tables.find(|(kind, _)| *kind == wanted).expect("a table").1.addresses().start
        };
        assert_eq!(Memdesc::shape::<Owner>().object_bytes, 64);
        // SAFETY: a word for each page, there as long as the engine, and all accesses are atomic.
        let words =
            unsafe { std::slice::from_raw_parts(base(TableKind::Map) as *const AtomicU64, MILLION as usize) };
        Self { words, objects: base(TableKind::Objects) }
    }

    /// Linux's `get_page_unless_zero` and `put_page` on the state of the object that the page's word names.
    #[inline]
    fn get_and_put(&self, pfn: u64) -> bool {
        let word = self.words[pfn as usize].load(Ordering::Acquire);
        // SAFETY: every page has a word, which names an object of 64 bytes that begins with its state.
        let state = unsafe { &*((self.objects + (word >> 4) * 64) as *const AtomicU64) };
        let mut now = state.load(Ordering::Relaxed);
        loop {
            if now as u32 == 0 {
                return false;
            }
            match state.compare_exchange(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = other,
            }
        }
        if state.fetch_sub(1, Ordering::Release) as u32 == 1 {
            black_box(());
        }
        true
    }
}

#[inline]
fn try_get_and_put<D: Descriptors>(walker: &Walker<'_, Machine<D>>, pfn: u64) -> bool {
    walker.try_get(Pfn(pfn)).is_ok()
}

fn random(n: usize, below: u64) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..n).map(|_| rng.u64(0..below)).collect()
}

fn gets(rows: &mut Vec<Row>) {
    let (page, memdesc) = (full::<Page64>(), full::<Memdesc>());
    let bare = Bare::of(&memdesc);
    let (walker_of_page, walker) = (page.walker().expect("a walker"), memdesc.walker().expect("a walker"));
    let sets = [
        ("one page", vec![12_345; 1 << 12], 50, 1.15),
        ("4,096 pages", (0..4096).collect::<Vec<_>>(), 50, 1.3),
        ("random over a million pages", random(1 << 19, MILLION), 1, 1.6),
    ];
    for (name, pages, repeats, most) in &sets {
        let run = |each: &dyn Fn(&[u64])| time(|| (0..*repeats).for_each(|_| each(pages)));
        let what = format!("`try_get` + put, {name}");
        let mut ours = || run(&|pages| pages.iter().for_each(|&pfn| assert!(try_get_and_put(&walker, pfn))));
        let operations = pages.len() as u64 * repeats;
        rows.push(pair(
            &what,
            &mut ours,
            "bare: word, CAS-unless-zero + sub on its object",
            &mut || run(&|pages| pages.iter().for_each(|&pfn| assert!(bare.get_and_put(pfn)))),
            operations,
            Bar::AtMost(*most),
        ));
        rows.push(pair(
            &what,
            &mut ours,
            "`page`",
            &mut || {
                run(&|pages| pages.iter().for_each(|&pfn| assert!(try_get_and_put(&walker_of_page, pfn))))
            },
            operations,
            Bar::None,
        ));
    }
    let (page, memdesc) = (engine::<Page64>(2 * MILLION), engine::<Memdesc>(2 * MILLION));
    fn huge<D: Descriptors>(engine: &BenchEngine<D>) -> Vec<u64> {
        (0..1024)
            .map(|_| engine.alloc(order(9), Kind::Anon).expect("a folio").share().into_raw().0.0)
            .collect()
    }
    let tails = |heads: Vec<u64>| -> Vec<u64> {
        random(1 << 16, 1024 * 511).into_iter().map(|n| heads[n as usize % 1024] + 1 + n / 1024).collect()
    };
    let (pages_of_page, pages) = (tails(huge(&page)), tails(huge(&memdesc)));
    let (walker_of_page, walker) = (page.walker().expect("a walker"), memdesc.walker().expect("a walker"));
    rows.push(pair(
        "`try_get` + put by tails of a thousand 2 MiB folios, all folded",
        &mut || time(|| pages.iter().for_each(|&pfn| assert!(try_get_and_put(&walker, pfn)))),
        "`page`",
        &mut || time(|| pages_of_page.iter().for_each(|&pfn| assert!(try_get_and_put(&walker_of_page, pfn)))),
        pages.len() as u64,
        Bar::None,
    ));
}

/// A scan in page order: what is each page, without a reference.
fn scans(rows: &mut Vec<Row>) {
    fn scan<D: Descriptors>(walker: &Walker<'_, Machine<D>>, pages: u64) -> u64 {
        (0..pages).filter(|&pfn| walker.peek(Pfn(pfn)).is_some_and(|peek| peek.head.is_some())).count() as u64
    }
    fn taking<D: Descriptors>(walker: &Walker<'_, Machine<D>>, pages: u64) -> u64 {
        (0..pages).filter(|&pfn| try_get_and_put(walker, pfn)).count() as u64
    }
    // Folios of 64 KiB: words are dense, and one object serves sixteen of them.
    fn of_order<D: Descriptors>(of: Order) -> BenchEngine<D> {
        let engine = engine::<D>(2 * MILLION);
        for pfn in (0..2 * MILLION).step_by(of.pages() as usize) {
            let _for_good = engine.alloc_at(Pfn(pfn), of, Kind::File).expect("a folio").share().into_raw();
        }
        engine
    }
    for (of, name, bar) in [
        (order(9), "2 MiB folios", Bar::Faster(2.0)),
        (order(4), "64 KiB folios", Bar::Faster(2.0)),
        (Order::ZERO, "single pages", Bar::None),
    ] {
        let (page, memdesc) = (of_order::<Page64>(of), of_order::<Memdesc>(of));
        let (walker_of_page, walker) =
            (page.walker().expect("a walker"), memdesc.walker().expect("a walker"));
        rows.push(pair(
            &format!("a scan of 8 GiB in page order, {name}: `peek`"),
            &mut || time(|| assert_eq!(scan(&walker, 2 * MILLION), 2 * MILLION)),
            "`page`",
            &mut || time(|| assert_eq!(scan(&walker_of_page, 2 * MILLION), 2 * MILLION)),
            2 * MILLION,
            bar,
        ));
        rows.push(pair(
            &format!("the same, {name}: `try_get` + put"),
            &mut || time(|| assert_eq!(taking(&walker, 2 * MILLION), 2 * MILLION)),
            "`page`",
            &mut || time(|| assert_eq!(taking(&walker_of_page, 2 * MILLION), 2 * MILLION)),
            2 * MILLION,
            Bar::None,
        ));
    }
}

fn allocations(rows: &mut Vec<Row>) {
    const TIMES: u64 = 4096;
    let (page, memdesc) = (engine::<Page64>(MILLION), engine::<Memdesc>(MILLION));
    fn run<D: Descriptors>(engine: &BenchEngine<D>, of: Order) -> std::time::Duration {
        time(|| (0..TIMES).for_each(|_| drop(black_box(engine.alloc(of, Kind::Anon).expect("a folio")))))
    }
    for (of, name, bar) in [
        (order(9), "allocate + free of 2 MiB", Bar::AtMost(1.0)),
        (order(4), "allocate + free of 64 KiB", Bar::None),
        (Order::ZERO, "allocate + free of a page", Bar::None),
    ] {
        rows.push(pair(name, &mut || run(&memdesc, of), "`page`", &mut || run(&page, of), TIMES, bar));
    }
    // All of a machine at once, out of memory whose descriptors are folded.
    fn all<D: Descriptors>(engine: &BenchEngine<D>, of: Order, count: usize) -> [std::time::Duration; 2] {
        let mut folios: Vec<Frozen<'_, Machine<D>>> = Vec::with_capacity(count);
        let made =
            time(|| (0..count).for_each(|_| folios.push(engine.alloc(of, Kind::Anon).expect("a folio"))));
        let freed = time(|| folios.clear());
        engine.folder(512).expect("a folder").fold_all();
        [made, freed]
    }
    for (of, count, name) in [(order(9), 1024, "2 MiB folios"), (Order::ZERO, 1 << 16, "pages")] {
        for (which, did) in [(0, "allocate"), (1, "free")] {
            rows.push(pair(
                &format!("{did} {count} {name}, all folded before"),
                &mut || all(&memdesc, of, count)[which],
                "`page`",
                &mut || all(&page, of, count)[which],
                count as u64,
                Bar::None,
            ));
        }
    }
}

fn reshapes(rows: &mut Vec<Row>) {
    const FOLIOS: usize = 128;
    let (page, memdesc) = (engine::<Page64>(MILLION), engine::<Memdesc>(MILLION));
    /// Split into that order, and collapsed again: the time of each.
    fn run<D: Descriptors>(engine: &BenchEngine<D>, to: Order) -> [std::time::Duration; 2] {
        let folios: Vec<_> =
            (0..FOLIOS).map(|_| engine.alloc(order(9), Kind::Anon).expect("a folio")).collect();
        let mut pieces: Vec<Vec<_>> = (0..FOLIOS).map(|_| Vec::with_capacity(512)).collect();
        let split = time(|| {
            for (folio, pieces) in folios.into_iter().zip(&mut pieces) {
                pieces.extend(folio.split(to).expect("pieces"));
            }
        });
        let mut whole = Vec::with_capacity(FOLIOS);
        let collapsed = time(|| {
            whole.extend(pieces.drain(..).map(|pieces| Frozen::collapse(pieces).expect("a folio")));
        });
        drop(whole);
        engine.folder(512).expect("a folder").fold_all();
        [split, collapsed]
    }
    for (to, name) in [(Order::ZERO, "512 pages"), (order(4), "32 folios of 64 KiB")] {
        for (which, did) in [(0, "split of 2 MiB into"), (1, "collapse of 2 MiB out of")] {
            rows.push(pair(
                &format!("{did} {name}"),
                &mut || run(&memdesc, to)[which],
                "`page`",
                &mut || run(&page, to)[which],
                FOLIOS as u64,
                Bar::None,
            ));
        }
    }
}

fn folds(rows: &mut Vec<Row>) {
    const FOLIOS: usize = 512;
    let (page, memdesc) = (engine::<Page64>(MILLION), engine::<Memdesc>(MILLION));
    /// Unfolded and folded again, in one batch: the time of each.
    fn run<D: Descriptors>(engine: &BenchEngine<D>) -> [std::time::Duration; 2] {
        let mut batch = engine.fold_batch(FOLIOS).expect("a batch");
        let mut folios: Vec<_> =
            (0..FOLIOS).map(|_| engine.alloc(order(9), Kind::Hugetlb).expect("a folio")).collect();
        let unfolded = time(|| folios.iter_mut().for_each(|folio| folio.unfold().expect("descriptors")));
        let folded = time(|| {
            folios.drain(..).for_each(|folio| assert!(batch.push(folio).is_ok()));
            batch.commit()
        });
        [unfolded, folded]
    }
    for (which, name) in [(0, "unfold of a 2 MiB folio"), (1, "fold of a 2 MiB folio, 512 a batch")] {
        rows.push(pair(
            name,
            &mut || run(&memdesc)[which],
            "`page`",
            &mut || run(&page)[which],
            FOLIOS as u64,
            Bar::None,
        ));
    }
}
