//! The reservations behind tables: what the kernel is told, what is counted, what is trapped.

mod common;

use common::{TestEngine, folded, host, order};
use pagefold_engine::platform::{FoldRange, Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Kind, Order, OutOfMemory, Pfn};
use pagefold_linux::{Membarrier, Region};

fn region(pages: u64) -> Region {
    host().reserve(TableKind::Map, pages * 4096).unwrap()
}

fn byte(region: &Region, offset: u64) -> *mut u8 {
    region.base().as_ptr().wrapping_add(offset as usize)
}

fn range(pages: std::ops::Range<u64>) -> FoldRange {
    FoldRange { backed: pages.end - pages.start, bytes: pages.start * 4096..pages.end * 4096 }
}

/// The lines of smaps for the region.
fn smaps(region: &Region) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", region.addresses().start);
    let from = text.find(&start).expect("a mapping of its own");
    let rest = &text[from..];
    rest[..rest.find("VmFlags").unwrap() + 120.min(rest.len() - rest.find("VmFlags").unwrap())].to_owned()
}

fn materialise(region: &Region, bytes: std::ops::Range<u64>) -> Result<(), OutOfMemory> {
    // SAFETY: nobody else knows of the region.
    unsafe { region.materialise(bytes) }
}

#[test]
fn the_kernel_is_kept_from_being_helpful() {
    let text = smaps(&region(1000));
    let flags = text.lines().find(|line| line.starts_with("VmFlags")).unwrap();
    // nh: no huge pages over folded parts. dc: not copied on fork. nr: not reserved.
    for flag in [" nh", " dc", " nr"] {
        assert!(flags.contains(flag), "{flags}");
    }
    assert!(!flags.contains(" lo"), "{flags}");
}

#[test]
fn what_is_folded_reads_as_zero_and_costs_nothing() {
    let region = region(64);
    materialise(&region, 0..64 * 4096).unwrap();
    for page in 0..64 {
        // SAFETY: materialised just above.
        unsafe { byte(&region, page * 4096).write_volatile(page as u8 + 1) };
    }
    assert_eq!((region.measured_pages().unwrap(), region.counted_pages()), (64, 64));
    // SAFETY: nobody else knows of the region.
    let done = unsafe { region.fold(&[range(1..8), range(20..21), range(40..64)]) };
    assert_eq!(done, 3);
    assert_eq!((region.measured_pages().unwrap(), region.counted_pages()), (32, 32));
    for page in 0..64 {
        let is_folded = (1..8).contains(&page) || page == 20 || page >= 40;
        // SAFETY: the region is always readable.
        let value = unsafe { byte(&region, page * 4096).read_volatile() };
        assert_eq!(value, if is_folded { 0 } else { page as u8 + 1 }, "page {page}");
    }
    // Reading folded pages has put zero pages there, which are nobody's memory.
    assert_eq!(region.measured_pages().unwrap(), 32);
}

#[test]
fn a_range_may_include_what_is_folded_already() {
    let region = region(1024);
    materialise(&region, 7 * 4096..9 * 4096).unwrap();
    // SAFETY: nobody else knows of the region.
    let done = unsafe { region.fold(&[FoldRange { bytes: 0..1024 * 4096, backed: 2 }]) };
    assert_eq!((done, region.counted_pages(), region.measured_pages().unwrap()), (1, 0, 0));
}

#[test]
fn tables_count_every_page_once() {
    let host = host();
    let region = host.reserve(TableKind::Rows, 100 * 4096).unwrap();
    materialise(&region, 0..1).unwrap();
    materialise(&region, 0..4096).unwrap();
    materialise(&region, 4095..4097).unwrap();
    assert_eq!((region.counted_pages(), host.budget().used()), (2, 2));
    assert_eq!(region.measured_pages().unwrap(), 2);
    host.budget().set_limit(3);
    materialise(&region, 0..5 * 4096).unwrap_err();
    materialise(&region, 2 * 4096..3 * 4096).unwrap();
    assert_eq!((region.counted_pages(), host.budget().used()), (3, 3));
    drop(region);
    assert_eq!(host.budget().used(), 0);
}

#[cfg_attr(feature = "memdesc", ignore = "strict mode traps writes to descriptors of 64 bytes")]
#[test]
fn strict_mode_traps_a_stray_write_and_names_the_thread() {
    let host = common::TestPlatform::<Fold>::new(Membarrier::register().unwrap()).unwrap().strict().unwrap();
    let mut engine: TestEngine = Engine::new(host, Config::new(1 << 15)).unwrap();
    engine.online(0..1 << 15).unwrap();
    // Everything the engine does itself is allowed: unfold, fold, unfold again.
    let mut folder = engine.folder(8).unwrap();
    for _ in 0..3 {
        drop(engine.alloc(order(9), Kind::Anon).unwrap());
        drop(engine.alloc(Order::ZERO, Kind::Anon).unwrap());
        folder.fold_all();
    }
    let strict = engine.platform().strict_mode().unwrap();
    assert_eq!(strict.stray_writes().0, 0);
    // A write behind its back is not.
    let (_, map) = engine.tables().next().unwrap();
    let victim = Pfn(4321);
    // SAFETY: the map is readable and writable memory of this process; the write is what is tested.
    unsafe { byte(map, victim.0 * 64).cast::<u64>().write_volatile(0) };
    let (total, writes) = strict.stray_writes();
    assert_eq!(total, 1);
    assert_eq!(writes[0].offset / 4096, victim.0 / 64);
    assert_eq!(writes[0].thread, rustix::thread::gettid().as_raw_nonzero().get());
    // And it is seen by the measurement: one page that the engine does not know of.
    assert_eq!(map.measured_pages().unwrap(), engine.materialised_map_pages() + 1);
}

#[test]
fn a_thousand_engines_leave_nothing_behind() {
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("pagefold").count();
    for _ in 0..1000 {
        drop(folded(1 << 15).alloc(Order::ZERO, Kind::Anon).unwrap());
    }
    // Other tests of this process have engines of their own, a few.
    assert!(maps() < 200, "{}", maps());
}
