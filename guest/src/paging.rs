//! The kernel's page tables: image, direct map, device registers, stacks. (The engine's tables have page tables of their
//! own kind: see [`tables`](crate::tables).)

use core::ops::Range;

pub use pagefold_pagetable::map::MapError;
use pagefold_pagetable::map::Root;
use pagefold_pagetable::{Access, HUGE};
use spin::Mutex;

use crate::layout::{DEVICES, DIRECT, MAX_PHYSICAL, PAGE, STACK_STRIDE, STACKS, image};
use crate::mmu::{self, GuestMmu};
use crate::{arch, frames};

struct KernelMap {
    root: Root,
    next_device: u64,
    next_stack: u64,
    /// Frames of stacks.
    stacks: u64,
}

static KERNEL: Mutex<Option<KernelMap>> = Mutex::new(None);

/// Does something with the kernel's tables; there are some once [`init`] is over.
fn with<T>(action: impl FnOnce(&mut KernelMap) -> Result<T, MapError>) -> Result<T, MapError> {
    KERNEL.lock().as_mut().ok_or(MapError::NoFrames).and_then(action)
}

impl KernelMap {
    fn map_direct(&mut self, memory: Range<u64>) -> Result<(), MapError> {
        if memory.end > MAX_PHYSICAL {
            return Err(MapError::Taken);
        }
        self.root.map_direct(&GuestMmu, DIRECT, memory, arch::has_huge_pages())
    }
}

/// Makes the kernel's own page tables, and switches to them. `memory` is what the direct map has at first.
pub fn init(memory: impl Iterator<Item = Range<u64>>) -> Result<(), MapError> {
    let mut kernel =
        KernelMap { root: Root::new(&GuestMmu)?, next_device: DEVICES, next_stack: STACKS, stacks: 0 };
    for range in memory {
        kernel.map_direct(range)?;
    }
    let [start, text_end, rodata_end, end] = image();
    let access = |page| match page {
        _ if page < text_end => Access::Code,
        _ if page < rodata_end => Access::ReadOnly,
        _ => Access::Data,
    };
    kernel.root.map_pages(&GuestMmu, start..end, Ok, access)?;
    for &device in arch::EARLY_DEVICES {
        kernel.root.map(&GuestMmu, device, device, 1, Access::Device)?;
    }
    // SAFETY: the new tables map the image where it runs, its data with the boot stack in it, and all memory.
    unsafe { arch::activate(kernel.root.top()) };
    mmu::note_top(kernel.root.top());
    *KERNEL.lock() = Some(kernel);
    Ok(())
}

/// The top table, for processors that start.
pub fn root() -> u64 {
    KERNEL.lock().as_ref().map_or(0, |kernel| kernel.root.top())
}

/// Makes the tables whose entries lead to a GiB each, for these addresses: [`GuestMmu`] finds them there.
pub fn make_upper(addresses: Range<u64>) -> Result<(), MapError> {
    with(|kernel| {
        for gib in addresses.step_by(HUGE as usize) {
            kernel.root.slot(&GuestMmu, gib, 3)?;
        }
        Ok(())
    })
}

/// Frames taken for what this module maps.
pub fn frames_taken() -> u64 {
    KERNEL.lock().as_ref().map_or(0, |kernel| kernel.root.frames() + kernel.stacks)
}

/// Puts memory into the direct map. Nothing may have been mapped there that is not memory.
pub fn map_direct(memory: Range<u64>) -> Result<(), MapError> {
    with(|kernel| kernel.map_direct(memory))
}

/// Maps device registers, uncached; where they are now.
pub fn map_device(physical: u64, bytes: u64) -> Result<u64, MapError> {
    with(|kernel| {
        let first = physical & !(PAGE - 1);
        let end = physical.checked_add(bytes).filter(|&end| end <= 1 << 48).ok_or(MapError::Taken)?;
        let at = kernel.next_device;
        let pages = at..at + (end - first).next_multiple_of(PAGE);
        kernel.next_device = pages.end;
        kernel.root.map_pages(&GuestMmu, pages, |page| Ok(first + (page - at)), |_| Access::Device)?;
        Ok(at + (physical - first))
    })
}

/// A stack of that many bytes: the address of its end. Below it is a page without access.
pub fn map_stack(bytes: u64) -> Result<u64, MapError> {
    with(|kernel| {
        let end = kernel.next_stack + STACK_STRIDE;
        kernel.next_stack = end;
        let frame = |_| frames::take().ok_or(MapError::NoFrames);
        kernel.root.map_pages(&GuestMmu, end - bytes..end, frame, |_| Access::Data)?;
        kernel.stacks += bytes / PAGE;
        Ok(end)
    })
}
