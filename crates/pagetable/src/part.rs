//! Ranges of addresses, cut where tables end.

use core::ops::Range;

use crate::{LARGE, PAGE};

/// Which entry of a table of `level` (1 for page tables, 4 at the top) leads to an address.
pub(crate) fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1)) & 511) as usize
}

/// The first multiple of `unit`, a power of two, above an address.
pub(crate) fn end_of(address: u64, unit: u64) -> u64 {
    (address | (unit - 1)).wrapping_add(1)
}

/// The whole unit that an address is in.
pub(crate) fn around(address: u64, unit: u64) -> Range<u64> {
    address & !(unit - 1)..end_of(address, unit)
}

/// The parts of a range that are under one page table each.
pub(crate) fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        let part = at..end_of(at, LARGE).min(range.end);
        at = part.end;
        (part.start < part.end).then_some(part)
    })
}

/// Its pages.
pub(crate) fn pages(range: Range<u64>) -> impl Iterator<Item = u64> {
    range.step_by(PAGE as usize)
}

/// The smallest range that has both.
pub(crate) fn join(one: Range<u64>, other: Range<u64>) -> Range<u64> {
    match (one.is_empty(), other.is_empty()) {
        (true, _) => other,
        (_, true) => one,
        _ => one.start.min(other.start)..one.end.max(other.end),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn parts_end_where_tables_do() {
        let all: Vec<_> = parts(LARGE - 2 * PAGE..2 * LARGE + PAGE).collect();
        assert_eq!(all, [LARGE - 2 * PAGE..LARGE, LARGE..2 * LARGE, 2 * LARGE..2 * LARGE + PAGE]);
        assert_eq!(parts(PAGE..PAGE).count(), 0);
        assert_eq!(around(LARGE + 1, LARGE), LARGE..2 * LARGE);
        assert_eq!((index(LARGE, 1), index(LARGE, 2), index(0xffff_8000_0000_0000, 4)), (0, 1, 256));
        assert_eq!((join(0..0, 3..4), join(1..2, 3..4)), (3..4, 1..4));
    }
}
