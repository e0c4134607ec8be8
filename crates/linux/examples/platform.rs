//! A kernel's platform, of one's own: what `pagefold-engine` asks of a machine, written against `mmap` in a page.
//!
//! A kernel does the same with page tables: `reserve` maps the zero frame read-only, `materialise` maps frames, `fold` maps
//! the zero frame again, flushes the TLB once, and frees the frames. `pagefold-linux` is this with errors, limits and
//! measurements.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use pagefold_engine::platform::{Barrier, FoldRange, Mapping, Platform, TableKind};
use pagefold_engine::protocol::Fold;
use pagefold_engine::{Config, Engine, Kind, Order, OutOfMemory};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A table's address space.
struct Reservation {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone; the engine lets threads at it by the rules of `Mapping`.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

// SAFETY: a private anonymous mapping of its own, aligned to pages, that lives until `drop`. What was never written or was
// given back reads as zero. After MADV_POPULATE_WRITE writes need no memory any more, unless the machine swaps.
unsafe impl Mapping for Reservation {
    // The kernel shows the zero page or a frame, and nothing else in between.
    const HAS_GAP: bool = false;

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> u64 {
        self.len as u64
    }

    unsafe fn materialise(&self, bytes: Range<u64>) -> Result<(), OutOfMemory> {
        let (start, end) = (bytes.start / 4096 * 4096, bytes.end.next_multiple_of(4096));
        let at = self.base.as_ptr().wrapping_add(start as usize);
        // SAFETY: inside the mapping; this makes pages writable in fact, and changes no byte.
        unsafe { madvise(at.cast(), (end - start) as usize, Advice::LinuxPopulateWrite) }
            .map_err(|_| OutOfMemory)
    }

    unsafe fn fold(&self, ranges: &[FoldRange]) -> usize {
        let fold = |range: &&FoldRange| {
            let at = self.base.as_ptr().wrapping_add(range.bytes.start as usize);
            let len = (range.bytes.end - range.bytes.start) as usize;
            // SAFETY: inside the mapping; the caller owns the range, and no reader can be led there any more.
            unsafe { madvise(at.cast(), len, Advice::LinuxDontNeed) }.is_ok()
        };
        ranges.iter().take_while(fold).count()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: mapped in `reserve`, and nothing has it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Fences on both sides. A kernel sends an interrupt to all processors in `heavy`, and `light` is free.
struct BothSides;

// SAFETY: two sequentially consistent fences have an order that all threads agree on.
unsafe impl Barrier for BothSides {
    fn light(&self) {
        fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        fence(Ordering::SeqCst);
    }
}

struct Host;

impl Platform for Host {
    type Mapping = Reservation;
    type Barrier = BothSides;
    type Owner = [u64; 7];
    type Rules = Fold;
    type Descriptors = pagefold_engine::Page64;
    type Error = io::Error;

    fn reserve(&self, _kind: TableKind, bytes: u64) -> io::Result<Reservation> {
        let len = (bytes as usize).next_multiple_of(4096);
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping where the kernel likes touches nothing that exists.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, rights, flags) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Reservation { base, len })
    }

    fn barrier(&self) -> BothSides {
        BothSides
    }

    fn cpu(&self) -> usize {
        rustix::thread::sched_getcpu()
    }
}

#[cfg_attr(test, test)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // 1 TiB: 16 GiB of descriptors, of which none is there yet.
    let pages = 1 << 28;
    let mut engine: Engine<Host> =
        Engine::new(Host, Config::new(pages)).map_err(|error| format!("{error:?}"))?;
    engine.online(0..pages)?;
    let folios = (0..1000).map(|_| Ok(engine.alloc(Order::AREA, Kind::Anon)?.share()));
    let folios = folios.collect::<Result<Vec<_>, pagefold_engine::AllocError>>()?;
    assert_eq!(engine.materialised_map_pages(), 1000);
    drop(folios);
    // What is free again folds when it is asked for.
    engine.folder(64)?.fold_all();
    assert_eq!(engine.materialised_map_pages(), 0);
    println!("1 TiB on a platform of one's own: 1000 huge pages came and went, and no descriptor is left");
    Ok(())
}
