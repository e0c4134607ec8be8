//! A grid, drawn: headline, map, axis, zones and legend.

use std::collections::BTreeMap;

use super::Subject;
use super::grid::Grid;
use super::layout::Layout;
use super::palette::{Color, GREY, Ground, Look, Strength};
use super::scene::{Anchor, Item, Rect, Scene, Text, Weight, fitted};
use super::text::{Address, Share, printable};
use super::zones::{Label, borders, lanes};
use crate::size::Bytes;

const INK: Color = Color(0x1f, 0x26, 0x2d);
const SOFT: Color = Color(0x5b, 0x66, 0x70);
const HAIR: Color = Color(0xc3, 0xca, 0xd1);

const MARGIN: u32 = 32;
/// Width of the whole, and of the map in it.
const WIDTH: u32 = 1080;
const MAP: u32 = 768;
/// Room for addresses left of a linear map.
const AXIS: u32 = 84;
/// Height of a line that stands for a hole.
const HOLE: u32 = 20;
const LINE: u32 = 20;

/// Draws `grid`.
pub fn draw(subject: &Subject<'_>, grid: &Grid) -> Scene {
    let mut scene = Scene { width: WIDTH, title: printable(&subject.title), ..Scene::default() };
    let top = headline(&mut scene, subject, grid);
    let map = Map::new(grid, top);
    map.draw(&mut scene, subject, grid);
    let bottom = match grid.layout {
        Layout::Linear => {
            addresses(&mut scene, subject, grid, &map);
            zone_lanes(&mut scene, subject, grid, &map);
            map.bottom()
        }
        Layout::Hilbert => key(&mut scene, subject, grid, &map).max(map.bottom()),
    };
    scene.height = legend(&mut scene, subject, grid, bottom + 28) + MARGIN - 8;
    // Under everything.
    let ground = Rect { x: 0, y: 0, width: scene.width, height: scene.height };
    scene.items.insert(0, Item::Fill(Ground::Paper.color(), vec![ground]));
    scene
}

fn text(x: u32, y: u32, size: u32, color: Color, text: impl Into<String>) -> Text {
    Text { x, y, size, weight: Weight::Regular, anchor: Anchor::Start, color, text: text.into() }
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

/// How much a cell is.
pub fn unit_line(subject: &Subject<'_>, grid: &Grid) -> String {
    let unit = grid.axis.unit();
    let bytes = Bytes(unit.saturating_mul(subject.page_bytes));
    let pages = if unit == 1 { "page".into() } else { format!("{} pages", crate::size::Whole(unit)) };
    format!("One cell: {pages} ({bytes})")
}

/// Where the cells of a map lie on the drawing.
struct Map {
    left: u32,
    cell: u32,
    /// Tops of all rows, and the bottom of the last.
    rows: Vec<u32>,
}

impl Map {
    fn new(grid: &Grid, top: u32) -> Map {
        let cell = (MAP / grid.columns.max(1)).max(1);
        let left = if grid.layout == Layout::Linear { MARGIN + AXIS } else { MARGIN };
        let mut rows = vec![top];
        let mut y = top;
        for row in 0..grid.used.1 {
            y += if hole_in_row(grid, row).is_some() { HOLE } else { cell };
            rows.push(y);
        }
        Map { left, cell, rows }
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
        if grid.layout == Layout::Hilbert {
            self.sixteenths(scene, grid);
        }
        let lines = borders(subject.zones, grid).into_iter().map(|border| {
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
            Layout::Linear => (0..grid.used.1).filter(|&row| hole_in_row(grid, row).is_some()).collect(),
            Layout::Hilbert => Vec::new(),
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
fn hole_in_row(grid: &Grid, row: u32) -> Option<(u64, u64)> {
    if grid.layout != Layout::Linear {
        return None;
    }
    let slot = u64::from(row) * u64::from(grid.columns);
    let span = grid.axis.spans().iter().find(|span| span.slots.contains(&slot))?;
    span.is_hole.then(|| (span.cells.start * grid.axis.unit(), span.cells.end * grid.axis.unit()))
}

/// Addresses left of a linear map, and what holes leave out.
fn addresses(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Map) {
    const APART: u32 = 18;
    let address = |pfn| Address::of(pfn, subject.page_bytes);
    // Lines at multiples of this power of two are labelled.
    let every = u64::from(APART.div_ceil(map.cell).next_power_of_two().max(4));
    let mut free_from = 0;
    let mut begins = true;
    for row in 0..grid.used.1 {
        let (top, height) = map.row(row);
        if let Some((start, end)) = hole_in_row(grid, row) {
            let bytes = Bytes((end - start).saturating_mul(subject.page_bytes));
            let words = format!("no memory for {bytes}: {} to {}", address(start), address(end));
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
fn zone_lanes(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Map) {
    const LANE: u32 = 9;
    const APART: u32 = 14;
    let (lanes, count) = lanes(subject.zones, grid);
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
fn key(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, map: &Map) -> u32 {
    const SIDE: u32 = 58;
    let left = map.left + MAP + 28;
    let mut y = map.row(0).0 + 10;
    scene.text(Text { weight: Weight::Medium, ..text(left, y, 13, INK, "Addresses along the curve") });
    y += 12;
    let block = u64::from(grid.columns) * u64::from(grid.columns) / 16;
    let place = |at: u64| {
        let (column, row) = Layout::Hilbert.place(at, 4);
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
    let (zones, _) = lanes(subject.zones, grid);
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

/// What colours mean, and how much there is of it. Returns where it ends.
fn legend(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, top: u32) -> u32 {
    const COLUMN: u32 = 508;
    const BYTES: u32 = 270;
    const SHARE: u32 = 345;
    const EXTRA: u32 = 450;
    let totals = grid.cells.totals();
    let all: u64 = totals.iter().sum();
    let right = |x: u32, y: u32, color: Color, words: String| Text {
        anchor: Anchor::End,
        ..text(x, y, 13, color, words)
    };
    let shown: Vec<usize> = (0..totals.len()).filter(|&category| totals[category] > 0).collect();
    let lines = (shown.len() + 1).div_ceil(2) as u32;
    for column in 0..2 {
        let x = MARGIN + column * COLUMN;
        let small = |to: u32, words: &str| Text { size: 11, ..right(x + to, top, SOFT, words.into()) };
        scene.text(small(BYTES, "memory"));
        scene.text(small(SHARE, "share"));
        if let Some(extra) = &subject.extra {
            scene.text(small(EXTRA, extra.title));
        }
    }
    for (at, &category) in (0..).zip(&shown) {
        let (x, y) = (MARGIN + at / lines * COLUMN, top + (at % lines + 1) * LINE);
        swatches(scene, subject, category, x, y - 11);
        let name = subject.palette.categories[category].name;
        scene.text(text(x + 54, y, 13, INK, name));
        let pages = totals[category];
        let bytes = Bytes(pages.saturating_mul(subject.page_bytes));
        scene.text(right(x + BYTES, y, INK, bytes.to_string()));
        scene.text(right(x + SHARE, y, INK, Share(pages, all).to_string()));
        if let Some(extra) = &subject.extra {
            scene.text(right(x + EXTRA, y, INK, Bytes(extra.bytes[category]).to_string()));
        }
    }
    let at = shown.len() as u32;
    let (x, y) = (MARGIN + at / lines.max(1) * COLUMN, top + (at % lines.max(1) + 1) * LINE);
    let strong = |item: Text| Text { weight: Weight::Medium, ..item };
    scene.text(strong(text(x + 54, y, 13, INK, "total")));
    let bytes = Bytes(all.saturating_mul(subject.page_bytes));
    scene.text(strong(right(x + BYTES, y, INK, bytes.to_string())));
    if let Some(extra) = &subject.extra {
        scene.text(strong(right(x + EXTRA, y, INK, Bytes(extra.bytes.iter().sum()).to_string())));
    }
    let y = top + (lines + 1) * LINE + 8;
    scene.text(text(MARGIN, y, 11, SOFT, rule_line(subject)));
    y + 8
}

/// How a cell that holds several categories is coloured.
pub fn rule_line(subject: &Subject<'_>) -> String {
    let palette = subject.palette;
    let quiet = palette.categories.first().map_or("", |category| category.name);
    let alarm = palette.alarm.map_or(String::new(), |alarm| {
        format!(" One {} page colours its cell.", palette.categories[alarm].name)
    });
    let holes = match subject.hole_pages() {
        0 => String::new(),
        pages => format!(" Blank: no memory, {}.", Bytes(pages.saturating_mul(subject.page_bytes))),
    };
    format!(
        "A cell shows what most of it is, \u{201c}{quiet}\u{201d} aside. {}.{alarm}{holes}",
        palette.rule()
    )
}

fn swatches(scene: &mut Scene, subject: &Subject<'_>, category: usize, x: u32, y: u32) {
    let palette = subject.palette;
    let one_look = category < palette.quiet || Some(category) == palette.alarm;
    let strengths: &[Strength] = match one_look {
        true => &[Strength::Full],
        false => &[Strength::Full, Strength::Medium, Strength::Pale],
    };
    for (at, &strength) in (0..).zip(strengths) {
        let color = palette.color(Look { category, strength }, Ground::Paper);
        scene.rect(color, x + at * 14, y, 13, 13);
    }
}
