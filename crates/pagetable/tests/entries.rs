//! What the bits mean, in both architectures.

use pagefold_pagetable::aarch64::ArmEntry;
use pagefold_pagetable::map::{MapError, Root};
use pagefold_pagetable::simulated::Simulated;
use pagefold_pagetable::x86_64::X86Entry;
use pagefold_pagetable::{Access, Entry, HUGE, LARGE, Level, Mmu, PAGE};
use proptest::prelude::*;

const FRAME: u64 = 0x12_3456_7000;

fn bits_that_hold_for<E: Entry>(format: E, count: u64, frame: u64) {
    let branch = format.branch(frame);
    let counted = format.with_count(branch, count);
    assert_eq!((format.count(counted), format.address(counted)), (count, frame));
    assert_eq!(format.with_count(counted, 0), branch);
    assert!(format.is_present(counted) && !format.is_large(counted));
    let broken = format.broken(counted);
    assert!(!format.is_present(broken) && format.mended(broken) == counted);
    assert_eq!((format.count(broken), format.address(broken)), (count, frame));
    let pages = [format.page(frame), format.read_only(frame), format.zero(frame)];
    for (page, is_writable) in pages.into_iter().zip([true, false, false]) {
        assert_eq!((format.address(page), format.is_present(page)), (frame, true));
        assert_eq!(format.is_writable(page), is_writable);
        assert!(!format.is_present(format.broken(page)) && !format.is_writable(format.broken(page)));
        assert!(!format.is_unused(format.used(page, Level::Page), Level::Page));
    }
    assert!(format.is_unused(format.zero(frame), Level::Page));
}

proptest! {
    #[test]
    fn entries_keep_what_is_put_into_them(count in 0..=512u64, frame in 1..1u64 << 36) {
        bits_that_hold_for(X86Entry, count, frame * PAGE);
        bits_that_hold_for(ArmEntry, count, frame * PAGE);
    }
}

#[test]
fn words_are_those_of_the_manuals() {
    // Present, writable, no execution; the accessed flag of entries to come is clear.
    assert_eq!(X86Entry.page(FRAME), FRAME | 0x8000_0000_0000_0003);
    assert_eq!(X86Entry.zero(FRAME), FRAME | 0x8000_0000_0000_0001);
    assert_eq!(X86Entry.leaf(HUGE, Access::Code, true), HUGE | 0x81);
    assert_eq!(X86Entry.leaf(LARGE, Access::Device, true), LARGE | 0x8000_0000_0000_009b);
    // UXN, PXN, AF, inner shareable, attribute 0; read-only is AP[2].
    assert_eq!(ArmEntry.page(FRAME), FRAME | 0x0060_0000_0000_0703);
    assert_eq!(ArmEntry.read_only(FRAME), FRAME | 0x0060_0000_0000_0783);
    assert_eq!(ArmEntry.zero(FRAME), FRAME | 0x0060_0000_0000_0383);
    assert_eq!(ArmEntry.branch(FRAME), FRAME | 3);
    assert_eq!(ArmEntry.leaf(HUGE, Access::Data, true), HUGE | 0x0060_0000_0000_0701);
    assert_eq!(ArmEntry.leaf(FRAME, Access::Code, false), FRAME | 0x0040_0000_0000_0783);
    assert_eq!(ArmEntry.leaf(FRAME, Access::Device, false), FRAME | 0x0060_0000_0000_0407);
    // Nothing tells whether a table was used; x86-64 says so of both.
    assert!(!ArmEntry.is_unused(ArmEntry.branch(FRAME), Level::Table));
    assert!(X86Entry.is_unused(X86Entry.branch(FRAME), Level::Table));
}

#[test]
fn a_kernels_map_is_made_once_and_never_changed() {
    let machine = Simulated::new(ArmEntry, 64);
    let mmu = &machine;
    let mut root = Root::new(&mmu).unwrap();
    const OFFSET: u64 = 0xffff_8000_0000_0000;
    root.map_direct(&mmu, OFFSET, HUGE - LARGE..2 * HUGE + LARGE / 2, true).unwrap();
    // 2 MiB below the GiB, the GiB as a whole, and 2 MiB above it, rounded up.
    let word = |root: &mut Root, address, level| mmu.load(root.slot(&mmu, address, level).unwrap());
    assert!(ArmEntry.is_large(word(&mut root, OFFSET + HUGE, 3)));
    assert_eq!(ArmEntry.address(word(&mut root, OFFSET + HUGE, 3)), HUGE);
    assert_eq!(ArmEntry.address(word(&mut root, OFFSET + HUGE - LARGE, 2)), HUGE - LARGE);
    assert_eq!(ArmEntry.address(word(&mut root, OFFSET + 2 * HUGE, 2)), 2 * HUGE);
    assert_eq!(word(&mut root, OFFSET + 2 * HUGE + LARGE, 2), 0);
    // Under a large page there is no table, and what is mapped stays.
    assert_eq!(root.slot(&mmu, OFFSET + HUGE, 1), Err(MapError::Taken));
    assert_eq!(root.map(&mmu, OFFSET + 2 * HUGE, 0, 2, Access::Data), Err(MapError::Taken));
    let before = machine.free();
    root.map_direct(&mmu, OFFSET, HUGE - LARGE..2 * HUGE, true).unwrap();
    assert_eq!((machine.free(), root.frames()), (before, 64 - before));
    let mut small = Simulated::new(X86Entry, 3);
    let mut root = Root::new(&&small).unwrap();
    assert_eq!(root.map(&&small, 0x1000, 0x1000, 1, Access::Code), Err(MapError::NoFrames));
    small = Simulated::new(X86Entry, 0);
    assert!(Root::new(&&small).is_err());
}
