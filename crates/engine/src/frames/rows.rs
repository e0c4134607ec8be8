//! Bits of one row: a 64-bit word, one bit a page, set when the page is taken.

use crate::geometry::{ROW_ORDER, Row};

/// `2^order` adjacent bits, the lowest at `bit`.
#[inline]
pub(crate) const fn mask(bit: u32, order: u32) -> u64 {
    if order >= ROW_ORDER { Row::ALL } else { ((1 << (1u32 << order)) - 1) << bit }
}

/// The lowest naturally aligned run of `2^order` clear bits, for orders up to a row's.
#[inline]
pub(crate) const fn find(row: u64, order: u32) -> Option<u32> {
    if order == 0 {
        return if row & Row::ALL == Row::ALL { None } else { Some(row.trailing_ones()) };
    }
    if order >= ROW_ORDER {
        return if row & Row::ALL == 0 { Some(0) } else { None };
    }
    // Fold the row onto itself until a bit at an aligned place says that its whole run is clear.
    let mut clear = !row & Row::ALL;
    let mut step = 0;
    while step < order {
        clear &= clear >> (1u32 << step);
        step += 1;
    }
    clear &= aligned(order);
    if clear == 0 { None } else { Some(clear.trailing_zeros()) }
}

/// A bit at each multiple of `2^order`.
const fn aligned(order: u32) -> u64 {
    match order {
        0 => u64::MAX,
        1 => 0x5555_5555_5555_5555,
        2 => 0x1111_1111_1111_1111,
        3 => 0x0101_0101_0101_0101,
        4 => 0x0001_0001_0001_0001,
        5 => 0x0000_0001_0000_0001,
        _ => 1,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find_slowly(row: u64, order: u32) -> Option<u32> {
        (0..64).step_by(1 << order).find(|&bit| row & mask(bit, order) == 0)
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(row: u64, sparse: u64, order in 0u32..=6) {
            for row in [row, row & sparse, row | sparse, 0, u64::MAX] {
                prop_assert_eq!(find(row, order), find_slowly(row, order));
            }
        }
    }
}
