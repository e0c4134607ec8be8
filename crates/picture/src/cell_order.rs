//! Where slots lie: line by line, or along a Hilbert curve.

/// How addresses run through the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellOrder {
    /// Line by line, from left to right.
    Linear,
    /// Along a Hilbert curve: near addresses lie near each other in all directions.
    Hilbert,
}

impl CellOrder {
    /// Column and row of `slot` in a picture with so many columns (for a Hilbert curve: a power of two).
    pub fn place(self, slot: u64, columns: u32) -> (u32, u32) {
        match self {
            CellOrder::Linear => {
                let columns = u64::from(columns.max(1));
                ((slot % columns) as u32, u32::try_from(slot / columns).unwrap_or(u32::MAX))
            }
            CellOrder::Hilbert => fast_hilbert::h2xy::<u32>(slot, columns.max(1).ilog2() as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_bijections_of_the_square() {
        for layout in [CellOrder::Linear, CellOrder::Hilbert] {
            for side in [1u32, 2, 4, 8, 64] {
                let mut seen = vec![false; (side * side) as usize];
                for slot in 0..u64::from(side * side) {
                    let (x, y) = layout.place(slot, side);
                    assert!(x < side && y < side, "{layout:?} {side} {slot}: {x} {y}");
                    let place = &mut seen[(y * side + x) as usize];
                    assert!(!*place, "{layout:?} {side} {slot}: taken");
                    *place = true;
                }
            }
        }
    }

    #[test]
    fn the_curve_never_jumps_and_fills_quadrants_one_after_the_other() {
        for side in [2u32, 8, 32, 128] {
            let mut last = CellOrder::Hilbert.place(0, side);
            assert_eq!(last, (0, 0));
            for slot in 1..u64::from(side * side) {
                let next = CellOrder::Hilbert.place(slot, side);
                assert_eq!(last.0.abs_diff(next.0) + last.1.abs_diff(next.1), 1, "{side} {slot}");
                last = next;
            }
            let quadrant = |slot| {
                let (x, y) = CellOrder::Hilbert.place(slot, side);
                (x * 2 / side, y * 2 / side)
            };
            let quarter = u64::from(side * side) / 4;
            assert!((0..4 * quarter).all(|slot| quadrant(slot) == quadrant(slot / quarter * quarter)));
        }
    }
}
