//! The kernel's page tables: image, direct map, device registers, stacks. (The engine's tables have page tables of their
//! own kind: see [`tables`](crate::tables).)

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::{PageTableFlags, PhysFrame};

use crate::frames;
use crate::layout::{DEVICES, DIRECT, MAX_PHYSICAL, PAGE, STACK_STRIDE, STACKS, direct, image};

/// A page table: 512 entries that the processor may write to as well.
pub type Entries = [AtomicU64; 512];

/// The bits of an entry that are an address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Present, writable, not executable.
pub const DATA: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::NO_EXECUTE);
/// What an entry that leads to another table has: the leaf decides.
pub const BRANCH: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// No frame was left for a page table, or there is no such address.
#[derive(Clone, Copy, Debug)]
pub struct MapError;

struct Root {
    /// The top table; 0 before there is one.
    pml4: u64,
    next_device: u64,
    next_stack: u64,
    frames: u64,
}

static ROOT: Mutex<Root> = Mutex::new(Root { pml4: 0, next_device: DEVICES, next_stack: STACKS, frames: 0 });

/// The table at a physical address.
///
/// # Safety
/// There is a page table there, for as long as `'a`.
pub unsafe fn entries<'a>(table: u64) -> &'a Entries {
    // SAFETY: the caller's promise; the direct map covers all memory, and entries are only used as atomics.
    unsafe { &*direct::<Entries>(table) }
}

/// Which entry of a table of `level` (4 at the top) leads to an address.
pub fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1)) & 511) as usize
}

impl Root {
    fn take(&mut self) -> Result<u64, MapError> {
        self.frames += 1;
        frames::take().ok_or(MapError)
    }

    /// The table of `level` that an address is in, made if it is missing.
    fn table(&mut self, address: u64, level: u32) -> Result<&'static Entries, MapError> {
        let mut table = self.pml4;
        for above in (level + 1..=4).rev() {
            // SAFETY: a table of ours; they are never given back.
            let entry = &unsafe { entries(table) }[index(address, above)];
            // Relaxed: the lock around the root orders all writers.
            let mut word = entry.load(Ordering::Relaxed);
            if word == 0 {
                word = self.take()? | BRANCH.bits();
                entry.store(word, Ordering::Relaxed);
            } else if word & PageTableFlags::HUGE_PAGE.bits() != 0 {
                return Err(MapError);
            }
            table = word & ADDRESS;
        }
        // SAFETY: as above.
        Ok(unsafe { entries(table) })
    }

    /// Maps a page of 4 KiB (`level` 1), 2 MiB (2) or 1 GiB (3).
    fn map(
        &mut self,
        address: u64,
        physical: u64,
        level: u32,
        flags: PageTableFlags,
    ) -> Result<(), MapError> {
        let large = if level > 1 { PageTableFlags::HUGE_PAGE } else { PageTableFlags::empty() };
        let entry = &self.table(address, level)?[index(address, level)];
        entry.store(physical | (flags | large).bits(), Ordering::Relaxed);
        Ok(())
    }

    fn map_direct(&mut self, memory: Range<u64>) -> Result<(), MapError> {
        const LARGE: u64 = 2 << 20;
        const HUGE: u64 = 1 << 30;
        if memory.end > MAX_PHYSICAL {
            return Err(MapError);
        }
        let has_huge = raw_cpuid::CpuId::new()
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|features| features.has_1gib_pages());
        let mut at = memory.start & !(LARGE - 1);
        while at < memory.end {
            let level = if has_huge && at.is_multiple_of(HUGE) && at + HUGE <= memory.end { 3 } else { 2 };
            // Memory next to other memory may share a large page with it.
            if level == 2 && self.is_mapped(DIRECT + at) {
                at += LARGE;
                continue;
            }
            self.map(DIRECT + at, at, level, DATA)?;
            at += if level == 3 { HUGE } else { LARGE };
        }
        Ok(())
    }

    fn is_mapped(&self, address: u64) -> bool {
        let mut table = self.pml4;
        for level in (2..=4).rev() {
            // SAFETY: a table of ours.
            let word = unsafe { entries(table) }[index(address, level)].load(Ordering::Relaxed);
            if word == 0 {
                return false;
            }
            if word & PageTableFlags::HUGE_PAGE.bits() != 0 {
                return true;
            }
            table = word & ADDRESS;
        }
        true
    }
}

/// Makes the kernel's own page tables, and switches to them. `memory` is what the direct map has at first.
pub fn init(memory: impl Iterator<Item = Range<u64>>) -> Result<(), MapError> {
    let mut root = ROOT.lock();
    root.pml4 = root.take()?;
    for range in memory {
        root.map_direct(range)?;
    }
    let [start, text_end, rodata_end, end] = image();
    for page in (start..end).step_by(PAGE as usize) {
        let flags = match page {
            _ if page < text_end => PageTableFlags::PRESENT,
            _ if page < rodata_end => PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE,
            _ => DATA,
        };
        root.map(page, page, 1, flags)?;
    }
    let frame = PhysFrame::containing_address(PhysAddr::new(root.pml4));
    // SAFETY: the new tables map the image where it runs, its data with the boot stack in it, and all memory.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    Ok(())
}

/// The top table, for processors that start, and for the engine's tables.
pub fn root() -> u64 {
    ROOT.lock().pml4
}

/// The table whose entries lead to a GiB each, around an address, made if it is missing.
pub fn upper_table(address: u64) -> Result<&'static Entries, MapError> {
    ROOT.lock().table(address, 3)
}

/// Frames taken for what this module maps.
pub fn frames_taken() -> u64 {
    ROOT.lock().frames
}

/// Puts memory into the direct map. Nothing may have been mapped there that is not memory.
pub fn map_direct(memory: Range<u64>) -> Result<(), MapError> {
    ROOT.lock().map_direct(memory)
}

/// Maps device registers, uncached; where they are now.
pub fn map_device(physical: u64, bytes: u64) -> Result<u64, MapError> {
    let mut root = ROOT.lock();
    let first = physical & !(PAGE - 1);
    let end = physical.checked_add(bytes).filter(|&end| end <= 1 << 52).ok_or(MapError)?;
    let at = root.next_device;
    let flags = DATA | PageTableFlags::NO_CACHE | PageTableFlags::WRITE_THROUGH;
    for page in (first..end).step_by(PAGE as usize) {
        let address = root.next_device;
        root.map(address, page, 1, flags)?;
        root.next_device += PAGE;
    }
    Ok(at + (physical - first))
}

/// A stack of that many bytes: the address of its end. Below it is a page without access.
pub fn map_stack(bytes: u64) -> Result<u64, MapError> {
    let mut root = ROOT.lock();
    let end = root.next_stack + STACK_STRIDE;
    root.next_stack = end;
    for page in (end - bytes..end).step_by(PAGE as usize) {
        let frame = root.take()?;
        root.map(page, frame, 1, DATA)?;
    }
    Ok(end)
}
