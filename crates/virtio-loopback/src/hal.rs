//! The driver's way to DMA memory.

use std::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::arena::{Arena, NOWHERE};

/// The `Hal` of every loopback in the process: rings in the arena, buffers bounced through it.
#[derive(Clone, Copy, Debug)]
pub enum LoopbackHal {}

// SAFETY: `dma_alloc` returns pages of the arena that no other caller has until `dma_dealloc`, zeroed and page-aligned: the
// region begins at a page boundary in both address spaces. They are mapped for the life of the process, and only raw
// pointers and volatile accesses reach them.
unsafe impl Hal for LoopbackHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let piece = Arena::get().zip(pages.checked_mul(PAGE_SIZE)).and_then(|(arena, len)| {
            let (address, pointer) = arena.alloc(len, PAGE_SIZE as u64)?;
            // SAFETY: the piece has `len` bytes, and belongs to this caller alone.
            unsafe { pointer.write_bytes(0, len) };
            Some((address, pointer))
        });
        // Address 0 is how a failure is told.
        piece.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let freed = Arena::get().is_some_and(|arena| arena.free_piece(paddr, pages * PAGE_SIZE));
        if freed { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("only a PCI transport asks for registers, and a loopback is none")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let Some((address, bounce)) = Arena::get().and_then(|arena| arena.alloc(buffer.len(), 1)) else {
            return NOWHERE;
        };
        if direction == BufferDirection::DeviceToDriver {
            // SAFETY: the piece has at least as many bytes, and belongs to this caller alone. What was in it before is not read.
            unsafe { bounce.write_bytes(0, buffer.len()) };
        } else {
            // SAFETY: the caller vouches for the buffer; the piece has at least as many bytes, and belongs to this caller alone.
            unsafe { bounce.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        address
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let Some(arena) = Arena::get() else { return };
        if direction != BufferDirection::DriverToDevice
            && let Some(bounce) = arena.pointer(paddr)
        {
            // SAFETY: `paddr` comes from `share` with the same buffer, so the piece has as many bytes; the caller vouches
            // for the buffer.
            unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(bounce, buffer.len()) };
        }
        // A buffer that found no room has no piece to free.
        let freed = arena.free_piece(paddr, buffer.len());
        debug_assert!(freed || paddr == NOWHERE, "a piece is freed once");
    }
}
