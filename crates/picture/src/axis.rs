//! From page numbers to a row of slots, holes made short.

use std::ops::Range;

/// How page numbers lie in slots: one slot is one cell of the picture, and stands for `unit` pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    unit: u64,
    spans: Vec<Span>,
    slots: u64,
}

/// Adjacent cells that lie in adjacent slots; or a hole that was made short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Cells: page numbers divided by the unit.
    pub cells: Range<u64>,
    /// The slots they lie in.
    pub slots: Range<u64>,
    /// No memory in any of them, and fewer slots than cells.
    pub is_hole: bool,
}

/// What an axis must fit into.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Slots there are.
    pub slots: u64,
    /// Spans begin and end at multiples of so many cells.
    pub grain: u64,
    /// Slots of a hole, at least. One that would not take more cells than that is shown cell by cell.
    pub hole: u64,
    /// Holes are made short by multiples of so many cells, so that what follows keeps its alignment.
    pub align: u64,
}

impl Axis {
    /// The finest axis on which `memory` (ascending, without overlap) fits into `room`.
    ///
    /// There always is one: with a unit that is large enough, all memory is one cell.
    pub fn fit(memory: &[Range<u64>], room: Room) -> Axis {
        let pages: u64 = memory.iter().map(|range| range.end - range.start).sum();
        // Finer than this, even memory without holes does not fit.
        let mut unit = (pages / room.slots.max(1)).max(1).next_power_of_two() / 2;
        loop {
            unit = (unit * 2).max(1);
            if let Some(axis) = Axis::with_unit(memory, unit, room)
                && (axis.slots <= room.slots || unit >= 1 << 62)
            {
                return axis;
            }
        }
    }

    /// The axis with `unit`; `None` if it is seen early that it does not fit.
    fn with_unit(memory: &[Range<u64>], unit: u64, room: Room) -> Option<Axis> {
        let grain = room.grain.max(1);
        let mut axis = Axis { unit, spans: Vec::new(), slots: 0 };
        for range in memory.iter().filter(|range| range.start < range.end) {
            let first = range.start / unit / grain * grain;
            let end = ((range.end - 1) / unit + 1).next_multiple_of(grain);
            let (cells, slots) = match axis.spans.last_mut() {
                Some(last) if first.saturating_sub(last.cells.end) <= room.hole => {
                    axis.slots += end.saturating_sub(last.cells.end);
                    last.cells.end = last.cells.end.max(end);
                    last.slots.end = axis.slots;
                    continue;
                }
                Some(last) => {
                    let hole = last.cells.end..first;
                    let align = room.align.max(1);
                    let less = (hole.end - hole.start - room.hole) / align * align;
                    let slots = axis.slots..axis.slots + (hole.end - hole.start - less);
                    axis.slots = slots.end;
                    axis.spans.push(Span { cells: hole, slots, is_hole: true });
                    (first..end, axis.slots..axis.slots + (end - first))
                }
                None => (first..end, 0..end - first),
            };
            axis.slots = slots.end;
            axis.spans.push(Span { cells, slots, is_hole: false });
            if axis.slots > room.slots && unit < 1 << 62 {
                return None;
            }
        }
        Some(axis)
    }

    /// Pages in a cell: a power of two.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// The spans, in ascending order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Slots used.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The slot of `pfn`; in a hole, that of its part of it. `None` before the first cell and after the last.
    pub fn slot_of(&self, pfn: u64) -> Option<u64> {
        let cell = pfn / self.unit;
        let span = self.spans.get(self.spans.partition_point(|span| span.cells.end <= cell))?;
        let offset = cell.checked_sub(span.cells.start)?;
        Some(match span.is_hole {
            false => span.slots.start + offset,
            true => {
                let (slots, cells) = (span.slots.end - span.slots.start, span.cells.end - span.cells.start);
                span.slots.start + (u128::from(offset) * u128::from(slots) / u128::from(cells)) as u64
            }
        })
    }

    /// The first page of a slot (in a hole: of the hole).
    pub fn first_pfn(&self, slot: u64) -> Option<u64> {
        let span = self.spans.get(self.spans.partition_point(|span| span.slots.end <= slot))?;
        let cell = if span.is_hole { 0 } else { slot.checked_sub(span.slots.start)? };
        Some((span.cells.start + cell) * self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room { slots: 64, grain: 8, hole: 8, align: 8 };

    #[test]
    fn holes_are_made_short() {
        let axis = Axis::fit(&[1..24, 30..40, 1000..1010], ROOM);
        assert_eq!(axis.unit(), 1);
        let spans: Vec<_> =
            axis.spans().iter().map(|span| (span.cells.clone(), span.slots.clone(), span.is_hole)).collect();
        assert_eq!(spans, [(0..40, 0..40, false), (40..1000, 40..48, true), (1000..1016, 48..64, false)]);
        assert_eq!(axis.slot_of(1000), Some(48));
        assert_eq!(axis.slot_of(999), Some(47));
        assert_eq!(axis.slot_of(40), Some(40));
        assert_eq!(axis.slot_of(1016), None);
        assert_eq!(axis.first_pfn(49), Some(1001));
        assert_eq!(axis.first_pfn(45), Some(40));
    }

    #[test]
    fn the_unit_grows_until_it_fits() {
        let axis = Axis::fit(std::slice::from_ref(&(0..1 << 40)), ROOM);
        assert_eq!((axis.unit(), axis.slots()), (1 << 34, 64));
        let axis = Axis::fit(&[0..1, (1 << 40) - 1..1 << 40], ROOM);
        assert_eq!(axis.unit(), 1);
    }

    #[test]
    fn what_follows_a_hole_keeps_its_alignment() {
        let axis = Axis::fit(&[0..100, 1003..1010], Room { slots: 512, grain: 1, hole: 20, align: 64 });
        let slot = axis.slot_of(1003).unwrap();
        assert_eq!((slot % 64, slot < 100 + 20 + 64), (1003 % 64, true));
    }

    #[test]
    fn no_memory_is_no_slots() {
        assert_eq!(Axis::fit(&[], ROOM).slots(), 0);
        assert_eq!(Axis::fit(&[], ROOM).slot_of(0), None);
    }

    #[test]
    fn a_million_scattered_pages_take_no_time() {
        let memory: Vec<_> = (0..1 << 20).map(|n| n << 20..(n << 20) + 1).collect();
        let axis = Axis::fit(&memory, Room { slots: 1 << 14, grain: 1, hole: 64, align: 256 });
        assert!(axis.slots() <= 1 << 14 && axis.slots() > 1 << 12, "{}", axis.slots());
    }

    proptest! {
        #[test]
        fn every_page_of_memory_has_a_slot_of_its_own_unit(
            parts in prop::collection::vec((0u64..5000, 1u64..5000), 1..40),
            grain in 1u64..20, align in 1u64..30, slots in 64u64..400,
        ) {
            let mut at = 0;
            let memory: Vec<_> = parts
                .into_iter()
                .map(|(gap, pages)| {
                    let range = at + gap..at + gap + pages;
                    at = range.end;
                    range
                })
                .collect();
            let axis = Axis::fit(&memory, Room { slots, grain, hole: grain, align });
            prop_assert!(axis.slots() <= slots);
            let mut last = None;
            for pfn in memory.into_iter().flatten() {
                let slot = axis.slot_of(pfn).unwrap();
                prop_assert!(slot < axis.slots());
                prop_assert!(last <= Some(slot));
                last = Some(slot);
                prop_assert_eq!(axis.first_pfn(slot), Some(pfn / axis.unit() * axis.unit()));
            }
        }
    }
}
