//! Memory, counted into cells at their places.

use crate::axis::{Axis, Room};
use crate::cell_order::CellOrder;
use crate::cells::Cells;
use crate::palette::Look;
use crate::subject::Subject;

/// How large a grid may become.
#[derive(Clone, Copy, Debug)]
pub struct GridSize {
    /// Columns: a power of two. A Hilbert curve has as many rows.
    pub columns: u32,
    /// Rows of the linear layout, one for each hole included.
    pub rows: u32,
}

/// A grid of cells.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Which pages a cell stands for.
    pub axis: Axis,
    /// Where cells lie.
    pub layout: CellOrder,
    /// Columns of the layout.
    pub columns: u32,
    /// Columns and rows that are used.
    pub used: (u32, u32),
    /// What is in the cells.
    pub cells: Cells,
    looks: Vec<Option<Look>>,
}

impl Grid {
    /// Counts `subject` into the finest grid that `size` allows; into a smaller one where there are only few pages.
    pub fn new(subject: &Subject<'_>, layout: CellOrder, size: GridSize) -> Grid {
        let pages = subject.pages().max(1);
        let most = 1 << size.columns.max(1).ilog2();
        let square = |columns: u32| u64::from(columns) * u64::from(columns);
        let columns = match layout {
            // Few pages make a small grid, not one long line.
            CellOrder::Linear => {
                (3..32).map(|order| 1 << order).find(|&columns| square(columns) >= pages * 4)
            }
            CellOrder::Hilbert => (1..32).map(|order| 1 << order).find(|&columns| square(columns) >= pages),
        };
        let columns = columns.unwrap_or(most).min(most);
        let room = match layout {
            CellOrder::Linear => Room {
                slots: u64::from(columns) * u64::from(size.rows.max(1)),
                grain: u64::from(columns),
                hole: u64::from(columns),
                align: u64::from(columns),
            },
            CellOrder::Hilbert => Room {
                slots: square(columns),
                grain: 1,
                hole: (square(columns) / 256).max(1),
                align: (square(columns) / 64).max(1),
            },
        };
        let axis = Axis::fit(&subject.memory, room);
        let mut cells = Cells::new(&axis, subject.palette.categories.len());
        if let Some(repeated) = &subject.repeated {
            cells.add_repeated(&axis, repeated);
        }
        (subject.pieces)(&mut |piece| cells.add(&axis, piece));
        let looks = cells.slots().map(|slot| subject.palette.look(cells.pages(slot))).collect();
        let used = (0..axis.slots()).fold((0, 0), |(width, height), slot| {
            let (x, y) = layout.place(slot, columns);
            (width.max(x + 1), height.max(y + 1))
        });
        Grid { axis, layout, columns, used, cells, looks }
    }

    /// What a slot shows; `None` where there is no memory.
    pub fn look(&self, slot: u64) -> Option<Look> {
        self.looks.get(usize::try_from(slot).ok()?).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    use crate::palette::{BLACK, BLUE, Category, Palette, WHITE};
    use crate::subject::{Piece, Repeated};

    static PALETTE: Palette = Palette {
        categories: &[Category::two_toned("free", '.', WHITE, BLACK), Category::new("used", 'U', BLUE)],
        quiet: 1,
        alarm: None,
        rule: "A cell shows most of it",
        steps: [10, 33, 66],
    };

    /// Every second `step` pages are used.
    fn check(memory: &[std::ops::Range<u64>], step: u64, layout: CellOrder, size: GridSize) -> Grid {
        let ranges = memory;
        let pieces = move |visit: &mut dyn FnMut(Piece)| {
            for range in ranges {
                let mut at = range.start;
                while at < range.end {
                    let pages = step.min(range.end - at);
                    visit(Piece { start: at, pages, category: (at / step % 2) as usize });
                    at += pages;
                }
            }
        };
        let subject = Subject {
            title: String::new(),
            notes: Vec::new(),
            memory: memory.to_vec(),
            zones: Vec::new(),
            page_bytes: 4096,
            units: crate::amount::Units::Iec,
            palette: &PALETTE,
            extra: None,
            repeated: None,
            pieces: &pieces,
        };
        let grid = Grid::new(&subject, layout, size);
        assert_eq!(grid.cells.totals().iter().sum::<u64>(), subject.pages(), "nothing is lost");
        let by_cell: u64 = grid.cells.slots().map(|slot| grid.cells.pages(slot).iter().sum::<u64>()).sum();
        assert_eq!(by_cell, subject.pages());
        let unit = grid.axis.unit();
        assert!(grid.cells.slots().all(|slot| grid.cells.pages(slot).iter().sum::<u64>() <= unit));
        assert!(grid.used.0 <= size.columns);
        grid
    }

    /// The same memory as one repeated tile, and piece by piece.
    #[test]
    fn what_repeats_itself_is_counted_as_if_it_did_not() {
        let tile: &[(u64, u64, usize)] = &[(3, 10, 1), (13, 40, 0), (60, 1, 1), (64, 63, 0), (200, 56, 1)];
        let ranges = [3..53, 60..61, 64..127, 200..256];
        for (span, times, rest) in [(256, 1, 0), (256, 7, 2), (300, 1000, 5), (1 << 18, 90, 1), (256, 0, 3)] {
            let visit = |number: u64, count: usize, visit: &mut dyn FnMut(Piece)| {
                for &(start, pages, category) in &tile[..count] {
                    visit(Piece { start: number * span + start, pages, category });
                }
            };
            let once = |to: &mut dyn FnMut(Piece)| visit(0, tile.len(), to);
            let cut = |to: &mut dyn FnMut(Piece)| visit(times, rest, to);
            let all = |to: &mut dyn FnMut(Piece)| {
                (0..times).for_each(|number| visit(number, tile.len(), to));
                cut(to);
            };
            let moved = |number: u64| {
                ranges.clone().map(move |range| range.start + number * span..range.end + number * span)
            };
            let subject = |repeated, pieces| Subject {
                title: String::new(),
                notes: Vec::new(),
                memory: (0..=times).flat_map(moved).collect(),
                zones: Vec::new(),
                page_bytes: 4096,
                units: crate::amount::Units::Iec,
                palette: &PALETTE,
                extra: None,
                repeated,
                pieces,
            };
            for layout in [CellOrder::Linear, CellOrder::Hilbert] {
                let repeated = Repeated { pieces: &once, span, times };
                let short = Grid::new(&subject(Some(repeated), &cut), layout, SIZE);
                let long = Grid::new(&subject(None, &all), layout, SIZE);
                let cells = |grid: &Grid| -> Vec<Vec<u64>> {
                    grid.cells.slots().map(|slot| grid.cells.pages(slot).to_vec()).collect()
                };
                assert_eq!(short.cells.totals(), long.cells.totals());
                assert_eq!(cells(&short), cells(&long), "{span} pages, {times} times");
            }
        }
    }

    const SIZE: GridSize = GridSize { columns: 64, rows: 48 };

    #[test]
    fn cells_sum_to_the_machine() {
        for layout in [CellOrder::Linear, CellOrder::Hilbert] {
            check(&[1..160, 256..(6 << 20) + 77], 999, layout, SIZE);
            // One page, and no page.
            let one = check(from_ref(&(1 << 39..(1 << 39) + 1)), 1, layout, SIZE);
            assert_eq!(one.axis.unit(), 1);
            assert_eq!(check(&[], 1, layout, SIZE).used, (0, 0));
            // 64 TiB in tiles of 24 GiB, a GiB of hole after each.
            let tiles: Vec<_> =
                (0..2730).map(|tile| tile * (25 << 18)..tile * (25 << 18) + (24 << 18)).collect();
            check(&tiles, 1 << 18, layout, SIZE);
            // The last page of an absurdly large machine, and its first.
            let ends = check(&[0..1, (1 << 40) - 1..1 << 40], 1, layout, SIZE);
            assert_eq!(ends.axis.unit(), 1);
            // Every 128th page.
            let scattered: Vec<_> = (0..4000).map(|n| n * 128..n * 128 + 1).collect();
            check(&scattered, 1, layout, SIZE);
        }
    }

    #[test]
    fn a_grid_with_few_pages_is_small() {
        let grid = check(from_ref(&(0..20)), 1, CellOrder::Linear, SIZE);
        assert_eq!((grid.columns, grid.axis.unit()), (16, 1));
        let grid = check(from_ref(&(0..20)), 1, CellOrder::Hilbert, SIZE);
        assert_eq!((grid.columns, grid.axis.unit()), (8, 1));
    }
}
