//! Moving folios out of a memory block that goes offline, beside a bare copy of the same pages between the same files. See
//! `docs/benchmarks.md`.

mod pairs;
// The command's own memory, as in `pagefold run`.
#[path = "../src/run/contents.rs"]
#[allow(dead_code, unused_imports, reason = "its tests are the command's")]
mod contents;

use std::cell::RefCell;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

use contents::SparseMemory;
use pagefold_engine::hotplug::{BlockId, Group, Hotplug, HotplugConfig, OnlineTo};
use pagefold_engine::{Config, Engine, Order, Zone};
use pagefold_linux::{Linux, Membarrier};
use pagefold_workload::{Change, Index, Population, Stamp, Use, Workload, slots};
use pairs::{Bar, Row, pair, print, time};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

type BenchPlatform = Linux<Membarrier, Stamp>;

const PAGE: u64 = 4096;
/// A memory block. Two of them are added: folios move from one to the other, and back.
const BLOCK: u64 = 512 << 20;
/// The boot memory is the first block.
const BLOCKS: [BlockId; 2] = [BlockId(1), BlockId(2)];

fn main() -> ExitCode {
    let mut rows = Vec::new();
    let (small, large) = ([(Order::ZERO, 1.0)], [(Order::AREA, 1.0)]);
    // As anonymous memory of the scenario `elastic`.
    let mixed = [(Order::ZERO, 0.4), (Order::AREA, 0.6)];
    moved(&mut rows, "a touched 2 MiB folio", &large, true, 256 << 20, Bar::AtMost(1.1));
    moved(&mut rows, "a touched 4 KiB folio", &small, true, 64 << 20, Bar::AtMost(1.5));
    moved(&mut rows, "an untouched folio, 4 KiB or 2 MiB", &mixed, false, 256 << 20, Bar::AtMost(1.0));
    moved(&mut rows, "an untouched 2 MiB folio", &large, false, 256 << 20, Bar::None);
    if print(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What an untouched folio may take.
const UNTOUCHED: Duration = Duration::from_micros(2);

/// Moves `bytes` in folios of `orders` there and back.
fn moved(rows: &mut Vec<Row>, what: &str, orders: &[(Order, f64)], touches: bool, bytes: u64, bar: Bar) {
    let host = Linux::new(Membarrier::register().expect("membarrier")).expect("a platform");
    let engine: Engine<BenchPlatform> = Engine::new(host, Config::new(3 * BLOCK / PAGE)).expect("an engine");
    let config = HotplugConfig { block_pages: BLOCK / PAGE, ..HotplugConfig::default() };
    let mut hotplug = engine.hotplug(config).expect("hotplug");
    hotplug.boot(0..BLOCK / PAGE, 0).expect("boot memory");
    hotplug.add(BLOCK / PAGE..3 * BLOCK / PAGE, 0, Group::NONE).expect("two blocks");
    online(&mut hotplug, BLOCKS[0]);
    let file = File::from(memfd_create("two blocks", MemfdFlags::CLOEXEC).expect("a memfd"));
    ftruncate(file.as_fd(), 2 * BLOCK).expect("a length");
    let mut memory = SparseMemory::boot(BLOCK).expect("a memfd");
    memory.add(BLOCK, 2 * BLOCK, file.try_clone().expect("a descriptor"));

    let mut workload = Workload::new(Use::Anonymous, orders, 0.0, touches).expect("a workload");
    workload.allow(bytes);
    let workloads = [workload];
    let index = Index::new(&engine, slots(&workloads), Vec::new(), 0).expect("an index");
    let mut population = Population::new(&index, &memory, &workloads, 1).expect("a population");
    let missing = population.change(0, Change::To(bytes), &[], |_| ControlFlow::Continue(()));
    assert_eq!(missing, 0);
    let folios = population.folios();

    let places = || index.shared().filter_map(|slot| index.load(slot)).map(|entry| entry.head().0 * PAGE);
    let places = || places().collect::<Vec<u64>>();
    // Where the folios were before they moved, and where they are.
    let moves = RefCell::new((places(), places()));
    let mut from = 0;
    let mut there_or_back = || {
        online(&mut hotplug, BLOCKS[1 - from]);
        let took = time(|| hotplug.offline(BLOCKS[from], &mut population).expect("all of it moves"));
        from = 1 - from;
        let (before, now) = &mut *moves.borrow_mut();
        *before = std::mem::replace(now, places());
        took
    };
    let step = orders.first().map_or(Order::ZERO, |&(order, _)| order).pages() * PAGE;
    let mut bare = || copy(&file, &moves.borrow(), step);
    let mut most = || UNTOUCHED * folios as u32;
    let (name, peer): (_, pairs::Side) =
        if touches { ("a bare copy", &mut bare) } else { ("2 µs each", &mut most) };
    rows.push(pair(&format!("move {what}"), &mut there_or_back, name, peer, folios, bar));
    assert_eq!((population.lost(), population.folios()), (0, folios));
    for slot in index.shared() {
        drop(index.take(slot));
    }
}

fn online(hotplug: &mut Hotplug<'_, BenchPlatform>, block: BlockId) {
    hotplug.online(block, OnlineTo::Zone(Zone::Movable)).expect("an offline block");
}

/// The copy alone, of the same folios from where they were to where they are, so that nobody's contents change: by pieces as
/// large as [`SparseMemory`] takes them.
fn copy(file: &File, (before, now): &(Vec<u64>, Vec<u64>), step: u64) -> Duration {
    let mut chunk = vec![0; step.min(256 << 10) as usize];
    let mut moves: Vec<_> = before.iter().zip(now).map(|(from, to)| (from - BLOCK, to - BLOCK)).collect();
    moves.sort();
    time(|| {
        for (from, to) in moves {
            for at in (0..step).step_by(chunk.len()) {
                file.read_exact_at(&mut chunk, from + at).expect("read");
                file.write_all_at(&chunk, to + at).expect("written");
            }
        }
    })
}
