//! A machine's layout, repeated until it has as much memory as was asked for.

use std::ops::Range;

use pagefold_machine::geometry::MAX_PAGES;
use pagefold_machine::{Extent, Machine, PageState, described_pages};

use crate::covered::Covered;

/// A tile begins at a multiple of this: 1 GiB, so that every folio stays aligned.
const ALIGNMENT: u64 = 1 << 18;

/// The machine to build.
pub struct Tiles<'a> {
    machine: &'a Machine,
    /// Page numbers from one tile to the next.
    span: u64,
    /// Whole tiles.
    whole: u64,
    /// Page number within the last tile where it is cut off; 0 if there is no part of a tile.
    cut: u64,
    pages: u64,
}

impl<'a> Tiles<'a> {
    /// `pages` of memory, or just as much as the machine has; `None` if that is more than page numbers can name.
    pub fn new(machine: &'a Machine, pages: Option<u64>) -> Option<Self> {
        let span = machine.end().checked_next_multiple_of(ALIGNMENT)?.max(ALIGNMENT);
        let tile = machine.pages();
        let pages = pages.unwrap_or(tile);
        let (whole, rest) = (pages.checked_div(tile)?, pages.checked_rem(tile)?);
        let mut cut = 0;
        let mut left = rest;
        for range in &machine.header.memory {
            let taken = left.min(range.end - range.start);
            if taken == 0 {
                break;
            }
            cut = range.start + taken;
            left -= taken;
        }
        let tiles = Self { machine, span, whole, cut, pages };
        (tiles.end() <= MAX_PAGES && whole.checked_mul(span)? <= MAX_PAGES).then_some(tiles)
    }

    /// Pages of memory.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Page numbers end here.
    pub fn end(&self) -> u64 {
        if self.cut > 0 {
            return self.whole * self.span + self.cut;
        }
        (self.whole.max(1) - 1) * self.span + self.machine.end()
    }

    /// Page numbers from one tile to the next.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// Tiles, the cut one included.
    pub fn count(&self) -> u64 {
        self.whole + u64::from(self.cut > 0)
    }

    /// Pages that Linux would have descriptors for.
    pub fn described_pages(&self) -> u64 {
        described_pages(self.memory())
    }

    /// Tiles that are whole: [`tile`](Self::tile), again and again.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The first tile alone.
    pub fn tile(&self) -> impl Iterator<Item = Extent> + '_ {
        Covered::new(self.memory_of(self.first()), self.extents_of(self.first()))
    }

    /// The part of a tile at the end, if there is one.
    pub fn rest(&self) -> impl Iterator<Item = Extent> + '_ {
        let last = (self.cut > 0).then(|| (self.whole * self.span, self.cut));
        Covered::new(self.memory_of(last.into_iter()), self.extents_of(last.into_iter()))
    }

    fn first(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        (self.whole > 0).then_some((0, u64::MAX)).into_iter()
    }

    fn shifts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..self.count()).map(|tile| (tile * self.span, if tile < self.whole { u64::MAX } else { self.cut }))
    }

    /// Where memory is.
    pub fn memory(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.memory_of(self.shifts())
    }

    fn memory_of(&self, tiles: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = Range<u64>> {
        tiles.flat_map(|(shift, cut)| {
            let ranges = self.machine.header.memory.iter();
            ranges
                .map(move |range| range.start + shift..range.end.min(cut) + shift)
                .filter(|range| range.start < range.end)
        })
    }

    /// What is in it. A folio that does not fit in at the end is left out: its pages are free.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents_of(self.shifts())
    }

    fn extents_of(&self, tiles: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = Extent> {
        tiles.flat_map(|(shift, cut)| {
            self.machine.extents().filter_map(move |extent| {
                let fitting = extent.pages.min(cut.saturating_sub(extent.start));
                let pages = fitting >> extent.order << extent.order;
                (pages > 0).then_some(Extent { start: extent.start + shift, pages, ..extent })
            })
        })
    }

    /// Stretches of whole map pages that are offline, or have no page at all. `described`: pages that a map page describes.
    pub fn gaps(&self, described: u64) -> Vec<(Range<u64>, PageState)> {
        let is_gap = |extent: &Extent| matches!(extent.state, PageState::Offline | PageState::NoPage);
        self.extents()
            .filter(is_gap)
            .map(move |extent| {
                let end = extent.start + extent.pages;
                (extent.start.next_multiple_of(described)..end / described * described, extent.state)
            })
            .filter(|(range, _)| range.start < range.end)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefold_machine::{Flags, Header, MemoryRange, Run, flags};

    fn machine() -> Machine {
        let memory = vec![MemoryRange { start: 16, end: 1016 }, MemoryRange { start: 4096, end: 8192 }];
        let head = flags::ANON | flags::COMPOUND_HEAD;
        let run = |start, len, flags| Run { start, len, flags: Flags(flags), count: 0 };
        let runs = vec![
            run(16, 1000, flags::BUDDY),
            run(4096, 1, head),
            run(4097, 511, flags::COMPOUND_TAIL),
            run(4608, 3584, flags::OFFLINE),
        ];
        Machine { header: Header { memory, ..Header::default() }, runs }
    }

    #[test]
    fn one_tile_is_the_machine() {
        let machine = machine();
        let tiles = Tiles::new(&machine, None).unwrap();
        assert_eq!((tiles.pages(), tiles.end(), tiles.count()), (5096, 8192, 1));
        assert_eq!(tiles.memory().collect::<Vec<_>>(), [16..1016, 4096..8192]);
        assert_eq!(tiles.gaps(64), [(4608..8192, PageState::Offline)]);
    }

    #[test]
    fn the_last_tile_is_cut_to_size() {
        let machine = machine();
        let tiles = Tiles::new(&machine, Some(2 * 5096 + 1300)).unwrap();
        assert_eq!(tiles.count(), 3);
        assert_eq!(tiles.memory().map(|range| range.end - range.start).sum::<u64>(), 2 * 5096 + 1300);
        let last = 2 * ALIGNMENT;
        assert_eq!(tiles.end(), last + 4396);
        // The huge folio of the last tile does not fit in.
        let heads: Vec<_> =
            tiles.extents().filter(|extent| extent.order == 9).map(|extent| extent.start).collect();
        assert_eq!(heads, [4096, ALIGNMENT + 4096]);
        let less = Tiles::new(&machine, Some(1)).unwrap();
        assert_eq!(less.memory().collect::<Vec<_>>(), vec![16..17]);
    }

    #[test]
    fn too_large_is_refused() {
        let machine = machine();
        assert!(Tiles::new(&machine, Some(1 << 40)).is_none());
        assert!(Tiles::new(&Machine::default(), Some(1)).is_none());
    }
}
