//! A grid, drawn: headline, map, axis, zones and legend.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::cell_order::CellOrder;
use crate::grid::Grid;
use crate::legend::{legend, unit_line};
use crate::palette::{Color, GREY, Ground, Look};
use crate::scene::{Anchor, Item, Rect, Scene, Text, Weight, fitted};
use crate::style::{HAIR, INK, MARGIN, SOFT, text};
use crate::subject::Subject;
use crate::text::{Address, printable};
use crate::zones::{Label, borders, lanes};

/// Width of the whole, and of the map in it.
const WIDTH: u32 = 1080;
const MAP: u32 = 768;
/// Room for addresses left of a linear map.
const AXIS: u32 = 84;
/// Height of a line that stands for a hole.
const HOLE: u32 = 20;

/// Draws `grid`.
pub fn draw(subject: &Subject<'_>, grid: &Grid) -> Scene {
    let mut scene = Scene { width: WIDTH, title: printable(&subject.title), ..Scene::default() };
    let top = headline(&mut scene, subject, grid);
    let map = Placed::new(grid, top);
    map.draw(&mut scene, subject, grid);
    let bottom = match grid.layout {
        CellOrder::Linear => {
            addresses(&mut scene, subject, grid, &map);
            zone_lanes(&mut scene, subject, grid, &map);
            map.bottom()
        }
        CellOrder::Hilbert => key(&mut scene, subject, grid, &map).max(map.bottom()),
    };
    scene.height = legend(&mut scene, subject, grid, bottom + 28) + MARGIN - 8;
    // Under everything.
    let ground = Rect { x: 0, y: 0, width: scene.width, height: scene.height };
    scene.items.insert(0, Item::Fill(Ground::Paper.color(), vec![ground]));
    scene
}

/// Returns where the map may begin.
fn headline(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid) -> u32 {
    let width = WIDTH - 2 * MARGIN;
    let title = fitted(&printable(&subject.title), 22, Weight::Medium, width);
    scene.text(Text { weight: Weight::Medium, ..text(MARGIN, 46, 22, INK, title) });
    let mut y = 70;
    for note in subject.notes.iter().filter(|note| !note.is_empty()) {
        scene.text(text(MARGIN, y, 13, SOFT, fitted(&printable(note), 13, Weight::Regular, width)));
        y += 18;
    }
    scene.text(text(MARGIN, y, 13, SOFT, unit_line(subject, grid)));
    y + 22
}

/// Where the cells of a map lie on the drawing.
struct Placed {
    left: u32,
    cell: u32,
    /// Tops of all rows, and the bottom of the last.
    rows: Vec<u32>,
}

impl Placed {
    fn new(grid: &Grid, top: u32) -> Placed {
        let cell = (MAP / grid.columns.max(1)).max(1);
        let left = if grid.layout == CellOrder::Linear { MARGIN + AXIS } else { MARGIN };
        let mut rows = vec![top];
        let mut y = top;
        for row in 0..grid.used.1 {
            y += if hole_in_row(grid, row).is_some() { HOLE } else { cell };
            rows.push(y);
        }
        Placed { left, cell, rows }
    }

    fn row(&self, row: u32) -> (u32, u32) {
        let at = |row: u32| self.rows.get(row as usize).or(self.rows.last()).copied().unwrap_or(0);
        (at(row), at(row + 1) - at(row))
    }

    fn bottom(&self) -> u32 {
        self.rows.last().copied().unwrap_or(0)
    }

    fn width(&self, grid: &Grid) -> u32 {
        self.cell * grid.used.0
    }

    /// How far down a page lies, in a linear map.
    fn y_of(&self, grid: &Grid, pfn: u64) -> Option<u32> {
        let slot = grid.axis.slot_of(pfn)?;
        let (_, row) = grid.layout.place(slot, grid.columns);
        let (top, height) = self.row(row);
        let column = slot % u64::from(grid.columns);
        Some(top + (column * u64::from(height) / u64::from(grid.columns)) as u32)
    }

    fn draw(&self, scene: &mut Scene, subject: &Subject<'_>, grid: &Grid) {
        // Neighbours in a row that look alike become one rectangle.
        let mut looks = vec![None; grid.used.0 as usize * grid.used.1 as usize];
        for slot in grid.cells.slots() {
            let (x, y) = grid.layout.place(slot, grid.columns);
            looks[(y * grid.used.0 + x) as usize] = grid.look(slot);
        }
        let mut fills: BTreeMap<Look, Vec<Rect>> = BTreeMap::new();
        for (row, looks) in (0..).zip(looks.chunks(grid.used.0.max(1) as usize)) {
            let (y, height) = self.row(row);
            let mut x = self.left;
            for alike in looks.chunk_by(|a, b| a == b) {
                let width = alike.len() as u32 * self.cell;
                if let Some(look) = alike[0] {
                    fills.entry(look).or_default().push(Rect { x, y, width, height });
                }
                x += width;
            }
        }
        for (look, rects) in fills {
            scene.items.push(Item::Fill(subject.palette.color(look, Ground::Paper), rects));
        }
        self.frame(scene, grid);
        if grid.layout == CellOrder::Hilbert {
            self.sixteenths(scene, grid);
        }
        let lines = borders(&subject.zones, grid).into_iter().map(|border| {
            let (top, height) = self.row(border.row);
            let x = self.left + border.column * self.cell;
            match border.is_upright {
                true => Rect { x: x - 1, y: top, width: 2, height },
                false => Rect { x, y: top - 1, width: self.cell, height: 2 },
            }
        });
        scene.items.push(Item::Fill(INK, lines.collect()));
    }

    /// A line around the map, open at holes.
    fn frame(&self, scene: &mut Scene, grid: &Grid) {
        let (left, width) = (self.left, self.width(grid));
        let mut lines = Vec::new();
        let mut line = |x, y, width, height| lines.push(Rect { x, y, width, height });
        let holes: Vec<u32> = match grid.layout {
            CellOrder::Linear => (0..grid.used.1).filter(|&row| hole_in_row(grid, row).is_some()).collect(),
            CellOrder::Hilbert => Vec::new(),
        };
        let mut first = 0;
        for end in holes.into_iter().chain([grid.used.1]) {
            if first < end {
                let (top, bottom) = (self.row(first).0, self.row(end).0);
                line(left - 1, top - 1, width + 2, 1);
                line(left - 1, bottom, width + 2, 1);
                line(left - 1, top, 1, bottom - top);
                line(left + width, top, 1, bottom - top);
            }
            first = end + 1;
        }
        scene.items.push(Item::Fill(HAIR, lines));
    }

    /// White lines between the sixteenths of the curve.
    fn sixteenths(&self, scene: &mut Scene, grid: &Grid) {
        let step = grid.columns / 4;
        if step < 4 {
            return;
        }
        let (width, top, bottom) = (self.width(grid), self.row(0).0, self.bottom());
        let upright = (step..grid.used.0).step_by(step as usize).map(|column| Rect {
            x: self.left + column * self.cell - 1,
            y: top,
            width: 2,
            height: bottom - top,
        });
        let level = (step..grid.used.1).step_by(step as usize).map(|row| Rect {
            x: self.left,
            y: self.row(row).0 - 1,
            width,
            height: 2,
        });
        scene.items.push(Item::Fill(Ground::Paper.color(), upright.chain(level).collect()));
    }
}

/// The pages of the hole that a row stands for.
fn hole_in_row(grid: &Grid, row: u32) -> Option<Range<u64>> {
    if grid.layout != CellOrder::Linear {
        return None;
    }
    let slot = u64::from(row) * u64::from(grid.columns);
    let span = grid.axis.spans().iter().find(|span| span.slots.contains(&slot))?;
    span.is_hole.then(|| span.cells.start * grid.axis.unit()..span.cells.end * grid.axis.unit())
}

/// Addresses left of a linear map, and what holes leave out.
fn addresses(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Placed) {
    const APART: u32 = 18;
    let address = |pfn| Address::of(pfn, subject.page_bytes);
    // Lines at multiples of this power of two are labelled.
    let every = u64::from(APART.div_ceil(map.cell).next_power_of_two().max(4));
    let mut free_from = 0;
    let mut begins = true;
    for row in 0..grid.used.1 {
        let (top, height) = map.row(row);
        if let Some(hole) = hole_in_row(grid, row) {
            let hole = subject.hole_around(hole);
            let bytes = subject.words_of(hole.end - hole.start);
            let words = format!("no memory for {bytes}: {} to {}", address(hole.start), address(hole.end));
            let middle = map.left + map.width(grid) / 2;
            let label = text(middle, top + height / 2 + 4, 11, SOFT, words);
            scene.text(Text { anchor: Anchor::Middle, ..label });
            begins = true;
            continue;
        }
        let slot = u64::from(row) * u64::from(grid.columns);
        let Some(pfn) = grid.axis.first_pfn(slot) else { continue };
        let line = pfn / grid.axis.unit() / u64::from(grid.columns);
        if (begins || line.is_multiple_of(every)) && top >= free_from {
            let label = text(map.left - 10, top + 4, 11, SOFT, address(pfn).to_string());
            scene.text(Text { anchor: Anchor::End, ..label });
            scene.rect(HAIR, map.left - 6, top, 5, 1);
            free_from = top + if begins { APART } else { 12 };
        }
        begins = false;
    }
}

/// Bars right of a linear map: which zone is where.
fn zone_lanes(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Placed) {
    const LANE: u32 = 9;
    const APART: u32 = 14;
    let (lanes, count) = lanes(&subject.zones, grid);
    let left = map.left + map.width(grid) + 12;
    let x = left + count * LANE + 4;
    let mut free_from = map.row(0).0;
    for Label { zone, lane, first, last, name } in lanes {
        let (Some(top), Some(bottom)) = (map.y_of(grid, first), map.y_of(grid, last)) else { continue };
        let color = if zone % 2 == 0 { GREY } else { Color(0xa9, 0xb2, 0xba) };
        scene.rect(color, left + lane * LANE, top, 5, (bottom - top).max(2));
        let y = free_from.max(top) + 10;
        if y <= map.bottom() + 4 {
            scene.text(text(x, y, 11, SOFT, fitted(&printable(&name), 11, Weight::Regular, WIDTH - 8 - x)));
            free_from = y - 10 + APART;
        }
    }
}

/// Right of a Hilbert map: where addresses run, and zones. Returns where it ends.
fn key(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Placed) -> u32 {
    const SIDE: u32 = 58;
    let left = map.left + map.width(grid) + 28;
    let mut y = map.row(0).0 + 10;
    scene.text(Text { weight: Weight::Medium, ..text(left, y, 13, INK, "Addresses along the curve") });
    y += 12;
    let block = u64::from(grid.columns) * u64::from(grid.columns) / 16;
    let place = |at: u64| {
        let (column, row) = CellOrder::Hilbert.place(at, 4);
        (left + column * SIDE, y + row * SIDE)
    };
    let blocks = grid.axis.slots().div_ceil(block.max(1)).min(16);
    let mut rows = 0;
    for at in 0..blocks {
        let (x, top) = place(at);
        rows = rows.max(top - y + SIDE);
        scene.rect(HAIR, x, top, SIDE - 2, SIDE - 2);
        scene.rect(Color(0xf5, 0xf7, 0xf8), x + 1, top + 1, SIDE - 4, SIDE - 4);
    }
    // Doors from each block to the next.
    for at in 1..blocks {
        let ((ax, ay), (bx, by)) = (place(at - 1), place(at));
        let middle = |a: u32, b: u32| (a + b) / 2 + SIDE / 2 - 1;
        let (x, y) = (middle(ax, bx), middle(ay, by));
        let (width, height) = if ax == bx { (12, 6) } else { (6, 12) };
        scene.rect(GREY, x - width / 2, y - height / 2, width, height);
    }
    for at in 0..blocks {
        let (x, top) = place(at);
        let Some(pfn) = grid.axis.first_pfn(at * block) else { continue };
        let label =
            text(x + SIDE / 2 - 1, top + 18, 10, INK, Address::of(pfn, subject.page_bytes).to_string());
        scene.text(Text { anchor: Anchor::Middle, ..label });
    }
    y += rows + 22;
    let (zones, _) = lanes(&subject.zones, grid);
    if !zones.is_empty() {
        scene.text(Text { weight: Weight::Medium, ..text(left, y, 13, INK, "Zones (dark lines)") });
        for Label { first, last, name, .. } in zones.iter().take(16) {
            y += 18;
            let address = |pfn| Address::of(pfn, subject.page_bytes);
            scene.text(text(left, y, 11, SOFT, fitted(&printable(name), 11, Weight::Regular, 90)));
            scene.text(text(left + 96, y, 11, SOFT, format!("{} to {}", address(*first), address(last + 1))));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::Units;
    use crate::grid::GridSize;
    use crate::palette::{BLACK, BLUE, Category, Palette, WHITE};
    use crate::scene::text_width;
    use crate::subject::{Extra, Piece, ZoneSpan};

    static PALETTE: Palette = Palette {
        categories: &[
            Category::two_toned("free", '.', WHITE, BLACK),
            Category::new("a category with a long name", 'U', BLUE),
            Category::two_toned("poisoned", '!', BLACK, WHITE),
        ],
        quiet: 1,
        alarm: Some(2),
        rule: "A cell shows most of it",
        steps: [10, 33, 66],
    };

    /// Left, top, right, bottom, and what it says.
    fn place(text: &Text) -> (u32, u32, u32, u32, &str) {
        let width = text_width(&text.text, text.size, text.weight);
        let left = match text.anchor {
            Anchor::Start => text.x,
            Anchor::Middle => text.x.checked_sub(width / 2).unwrap(),
            Anchor::End => text.x.checked_sub(width).unwrap(),
        };
        // Capitals and digits are less than three quarters of the size high.
        (left, text.y - text.size * 3 / 4, left + width, text.y, &text.text)
    }

    fn check(memory: &[std::ops::Range<u64>], zones: &[ZoneSpan], layout: CellOrder) {
        [Units::Iec, Units::Bytes].into_iter().for_each(|units| check_in(units, memory, zones, layout));
    }

    fn check_in(units: Units, memory: &[std::ops::Range<u64>], zones: &[ZoneSpan], layout: CellOrder) {
        let pieces = |visit: &mut dyn FnMut(Piece)| {
            for range in memory {
                let pages = range.end - range.start;
                let first = pages / 3;
                visit(Piece { start: range.start, pages: first, category: 1 });
                visit(Piece { start: range.start + first, pages: pages - first, category: 2 });
            }
        };
        let subject = Subject {
            title: "A machine with a name that goes on and on ".repeat(9),
            notes: vec!["A note that somebody wrote who had a lot to say. ".repeat(9), String::new()],
            memory: memory.to_vec(),
            zones: zones.to_vec(),
            page_bytes: 4096,
            units,
            palette: &PALETTE,
            extra: Some(Extra { title: "descriptors (computed)", bytes: vec![1023 << 30; 3] }),
            repeated: None,
            pieces: &pieces,
        };
        let scene = draw(&subject, &Grid::new(&subject, layout, GridSize { columns: 128, rows: 160 }));
        let texts = scene.items.iter().filter_map(|item| match item {
            Item::Text(text) => Some(place(text)),
            Item::Fill(..) => None,
        });
        let texts: Vec<_> = texts.collect();
        assert!(texts.len() > 10);
        for (at, a) in texts.iter().enumerate() {
            assert!(a.2 <= scene.width && a.3 < scene.height, "{a:?}");
            for b in &texts[at + 1..] {
                let apart = a.2 < b.0 || b.2 < a.0 || a.3 < b.1 || b.3 < a.1;
                assert!(apart, "{layout:?}: {a:?} {b:?}");
            }
        }
        for item in &scene.items {
            let Item::Fill(_, rects) = item else { continue };
            for rect in rects {
                let inside = rect.x + rect.width <= scene.width && rect.y + rect.height <= scene.height;
                assert!(inside, "{rect:?}");
            }
        }
    }

    #[test]
    fn no_words_overlap_or_leave_the_picture() {
        let zone =
            |node, name: &str, start, spanned| ZoneSpan { node, name: name.into(), start, pages: spanned };
        let gib = 1 << 18;
        let small =
            [zone(0, "DMA", 1, 4095), zone(0, "DMA32", 4096, gib), zone(0, "Normal", 4 * gib, 21 * gib)];
        let nodes: Vec<_> =
            (0..64).map(|node| zone(node, "Movable", u64::from(node) * gib, 3 * gib)).collect();
        for layout in [CellOrder::Linear, CellOrder::Hilbert] {
            check(&[1..3 * gib, 4 * gib..25 * gib], &small, layout);
            check(&[1..3 * gib, 400 * gib..(25000 * gib) + 77], &nodes, layout);
            check(std::slice::from_ref(&(0..1)), &nodes, layout);
            check(std::slice::from_ref(&(0..1 << 40)), &[], layout);
            check(
                &(0..200).map(|n| n * 40_000_001..n * 40_000_001 + 7777).collect::<Vec<_>>(),
                &small,
                layout,
            );
        }
    }
}
