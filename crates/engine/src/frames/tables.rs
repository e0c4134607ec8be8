//! What the frame allocator consists of: its tables, the CPUs' slots, and the count of areas on the move.

use super::error::AllocError;
use super::lanes::{Area, Lanes};
use crate::geometry::{AREA_ORDER, AREAS_PER_TREE};
use crate::mapping::Mapping;
use crate::sync::{AtomicU64, CachePadded, Ordering, fence, spin_loop};
use crate::table::Table;

/// CPUs that get a slot of their own; more share.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
/// How many trees a search looks at for the best fit before it takes any.
pub(super) const NEAR: u64 = 32;
pub(super) const AREA_PAGES: u64 = 1 << AREA_ORDER;
/// How often to look for a lane that a count has promised, while others move lanes under our eyes.
pub(super) const TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// Where a CPU takes its small pages.
pub(super) struct CpuSlot {
    /// Row it took from last, plus one; 0 for none. Its area is `RESERVED`, or was.
    ///
    /// Stored with Release by the CPU that reserved the area, and loaded with Acquire by CPUs that take pages there: a
    /// CPU that did not open the area (CPUs may share a slot) must know that its rows can be written.
    pub(super) row: AtomicU64,
    /// Area where its searches begin: where it took memory last. Others begin elsewhere, and go on from there, so CPUs meet
    /// neither in a tree's word nor in a word of lanes before memory is short.
    home: AtomicU64,
}

impl CpuSlot {
    pub(super) fn home(&self) -> Area {
        // Relaxed: only where to look first.
        Area(self.home.load(Ordering::Relaxed))
    }

    pub(super) fn set_home(&self, area: Area) {
        // Not written where it says so already: CPUs may share a slot.
        if self.home() != area {
            self.home.store(area.0, Ordering::Relaxed);
        }
    }
}

/// The frame allocator over its tables.
pub(crate) struct Frames<M> {
    pub(super) rows: Table<AtomicU64, M>,
    pub(super) lanes: Lanes<M>,
    pub(super) slots: [CachePadded<CpuSlot>; SLOTS],
    /// Areas opened and closed: how many such moves have begun and ended. In between, free pages look taken. All CPUs write
    /// them, once for 512 pages that they take or give back one by one; nobody else's words lie beside them.
    moves: CachePadded<[AtomicU64; 2]>,
}

impl<M: Mapping> Frames<M> {
    pub(crate) fn new(
        rows: Table<AtomicU64, M>,
        words: Table<AtomicU64, M>,
        trees: Table<crate::sync::AtomicU32, M>,
    ) -> Self {
        let lanes = Lanes::new(words, trees);
        let areas = lanes.trees().max(1) * AREAS_PER_TREE;
        let slot = |index: usize| {
            // As far from each other as they can be, however few CPUs there are: their numbers' bits, reversed.
            let place = (index as u64).reverse_bits() >> (u64::BITS - SLOTS.ilog2());
            let home = areas / (SLOTS as u64) * place;
            CachePadded(CpuSlot { row: AtomicU64::new(0), home: AtomicU64::new(home) })
        };
        let moves = CachePadded([AtomicU64::new(0), AtomicU64::new(0)]);
        Self { rows, lanes, slots: core::array::from_fn(slot), moves }
    }

    pub(crate) fn mappings(&self) -> [&M; 3] {
        let [lanes, trees] = self.lanes.mappings();
        [self.rows.mapping(), lanes, trees]
    }

    /// Runs `attempt` again for as long as it fails while some area was being opened or closed: its pages are free, and
    /// only look taken for a moment.
    pub(super) fn despite_moves<T>(
        &self,
        attempt: impl Fn() -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        let [begun, ended] = &self.moves.0;
        loop {
            let before = ended.load(Ordering::Acquire);
            let done = attempt();
            let failed = matches!(done, Err(AllocError::NoBlock | AllocError::Busy));
            if !failed {
                return done;
            }
            // Acquire: with the Release of `swap_row`, a page that was found taken by a move shows its beginning.
            fence(Ordering::Acquire);
            if begun.load(Ordering::Acquire) == before {
                return done;
            }
            spin_loop();
        }
    }

    /// Counts an opening or a closing while it is under way.
    pub(super) fn move_area<T>(&self, change: impl FnOnce() -> T) -> T {
        let [begun, ended] = &self.moves.0;
        // AcqRel: a search that finds a page taken by this sees the beginning; one that looks again sees the end.
        begun.fetch_add(1, Ordering::AcqRel);
        let done = change();
        ended.fetch_add(1, Ordering::AcqRel);
        done
    }
}

/// All of `0..n` once, beginning at `start`.
pub(super) fn around(start: u64, n: u64) -> impl Iterator<Item = u64> {
    let start = if start < n { start } else { 0 };
    (start..n).chain(0..start)
}
