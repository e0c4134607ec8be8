//! The process's DMA memory: one region of guest memory, handed out in pieces.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes of the arena: rings of 64-entry queues for some eight thousand devices. Address space until it is used.
const SIZE: u64 = 64 << 20;
/// Where it lies: in the upper half of 52 bits of physical address, where no machine has memory.
const BASE: u64 = 1 << 51;
/// Every piece is a multiple of this, and aligned to it.
const GRAIN: u64 = 64;

/// An address that is not memory: for a buffer that found no room.
pub(crate) const NOWHERE: u64 = !(GRAIN - 1);

pub(crate) struct Arena {
    memory: GuestMemoryMmap,
    /// Free pieces by offset, none touching the next.
    free: Mutex<BTreeMap<u64, u64>>,
}

impl Arena {
    /// The arena; nothing where the process has no address space for it.
    pub(crate) fn get() -> Option<&'static Self> {
        static ARENA: OnceLock<Option<Arena>> = OnceLock::new();
        ARENA
            .get_or_init(|| {
                let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), SIZE as usize)]).ok()?;
                Some(Arena { memory, free: Mutex::new(BTreeMap::from([(0, SIZE)])) })
            })
            .as_ref()
    }

    /// What a device sees of it.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// A piece of at least `len` bytes: the guest address, and where it is. No other caller gets it until it is freed.
    pub(crate) fn alloc(&self, len: usize, align: u64) -> Option<(u64, NonNull<u8>)> {
        let len = (len as u64).checked_next_multiple_of(GRAIN)?;
        let align = align.max(GRAIN);
        let mut free = self.free();
        let (hole, size, start) = free.iter().find_map(|(&hole, &size)| {
            let start = hole.next_multiple_of(align);
            (start.checked_add(len)? <= hole + size).then_some((hole, size, start))
        })?;
        free.remove(&hole);
        if start > hole {
            free.insert(hole, start - hole);
        }
        if start + len < hole + size {
            free.insert(start + len, hole + size - start - len);
        }
        drop(free);
        let address = GuestAddress(BASE + start);
        let pointer = self.memory.get_host_address(address).ok().and_then(NonNull::new);
        debug_assert!(pointer.is_some(), "a piece of the arena is memory");
        Some((address.0, pointer?))
    }

    /// Where a piece that [`Arena::alloc`] has given out is.
    pub(crate) fn pointer(&self, address: u64) -> Option<NonNull<u8>> {
        self.memory.get_host_address(GuestAddress(address)).ok().and_then(NonNull::new)
    }

    /// Takes back a piece of `len` bytes, as it was asked for. Returns whether it was one.
    pub(crate) fn free_piece(&self, address: u64, len: usize) -> bool {
        let len = (len as u64).next_multiple_of(GRAIN);
        let Some(start) = address.checked_sub(BASE).filter(|start| start + len <= SIZE) else { return false };
        let mut free = self.free();
        let before = free.range(..=start).next_back().map(|(&hole, &size)| (hole, size));
        let after = free.range(start..).next().map(|(&hole, &size)| (hole, size));
        if before.is_some_and(|(hole, size)| hole + size > start)
            || after.is_some_and(|(hole, _)| hole < start + len)
        {
            return false;
        }
        let (mut start, mut len) = (start, len);
        if let Some((hole, size)) = before.filter(|(hole, size)| hole + size == start) {
            (start, len) = (hole, len + size);
        }
        if let Some((hole, size)) = after.filter(|(hole, _)| *hole == start + len) {
            free.remove(&hole);
            len += size;
        }
        free.insert(start, len);
        true
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // The map is whole between any two statements that can panic.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), SIZE as usize)]).unwrap();
        Arena { memory, free: Mutex::new(BTreeMap::from([(0, SIZE)])) }
    }

    #[test]
    fn pieces_never_overlap_and_come_back_whole() {
        let arena = arena();
        let mut pieces: Vec<_> = (1..200usize)
            .map(|len| (arena.alloc(len * 7, if len % 3 == 0 { 4096 } else { 16 }).unwrap().0, len * 7))
            .collect();
        let mut sorted = pieces.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 as u64 <= pair[1].0));
        assert!(pieces.iter().all(|(address, len)| *len / 7 % 3 != 0 || address % 4096 == 0));
        // In an order that is neither first nor last first.
        pieces.sort_by_key(|(address, _)| address.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (address, len) in pieces {
            assert!(arena.free_piece(address, len));
        }
        assert_eq!(*arena.free(), BTreeMap::from([(0, SIZE)]));
    }

    #[test]
    fn a_full_arena_says_so_and_a_piece_is_freed_once() {
        let arena = arena();
        assert!(arena.alloc(SIZE as usize + 1, 64).is_none());
        let (address, _) = arena.alloc(SIZE as usize, 4096).unwrap();
        assert!(arena.alloc(1, 64).is_none());
        assert!(arena.free_piece(address, SIZE as usize));
        assert!(!arena.free_piece(address, 64));
        assert!(!arena.free_piece(NOWHERE, 64) && !arena.free_piece(0, 64));
    }
}
