//! What colours mean, and how much there is of each.

use crate::amount::{Units, Whole};
use crate::grid::Grid;
use crate::palette::{Color, Ground, Look, Strength};
use crate::scene::{Anchor, Scene, Text, Weight};
use crate::style::{INK, MARGIN, SOFT, text};
use crate::subject::Subject;
use crate::text::Share;

const LINE: u32 = 20;

/// How much a cell is.
pub fn unit_line(subject: &Subject<'_>, grid: &Grid) -> String {
    let unit = grid.axis.unit();
    let bytes = subject.words_of(unit);
    let pages = if unit == 1 { "page".into() } else { format!("{} pages", Whole(unit)) };
    format!("One cell: {pages} ({bytes})")
}

/// What colours mean, and how much there is of it. Returns where it ends.
pub fn legend(scene: &mut Scene, subject: &Subject<'_>, grid: &Grid, top: u32) -> u32 {
    const COLUMN: u32 = 532;
    // Where amounts end. Plain bytes have up to 16 digits: they take the room of two columns.
    let (columns, bytes_to, share_to, extra_to) = match subject.units {
        Units::Bytes => (1, 384, 448, 584),
        Units::Iec | Units::Si => (2, 284, 348, 484),
    };
    let totals = grid.cells.totals();
    let all: u64 = totals.iter().sum();
    let right = |x: u32, y: u32, color: Color, words: String| Text {
        anchor: Anchor::End,
        ..text(x, y, 13, color, words)
    };
    let shown: Vec<usize> = (0..totals.len()).filter(|&category| totals[category] > 0).collect();
    let lines = (shown.len() + 1).div_ceil(columns) as u32;
    for column in 0..columns as u32 {
        let x = MARGIN + column * COLUMN;
        let small = |to: u32, words: &str| Text { size: 11, ..right(x + to, top, SOFT, words.into()) };
        scene.text(small(bytes_to, "memory"));
        scene.text(small(share_to, "share"));
        if let Some(extra) = &subject.extra {
            scene.text(small(extra_to, extra.title));
        }
    }
    for (at, &category) in (0..).zip(&shown) {
        let (x, y) = (MARGIN + at / lines * COLUMN, top + (at % lines + 1) * LINE);
        swatches(scene, subject, category, x, y - 11);
        let name = subject.palette.categories[category].name;
        scene.text(text(x + 54, y, 13, INK, name));
        let pages = totals[category];
        let bytes = subject.memory_of(pages);
        scene.text(right(x + bytes_to, y, INK, bytes));
        scene.text(right(x + share_to, y, INK, Share(pages, all).to_string()));
        if let Some(extra) = &subject.extra {
            scene.text(right(x + extra_to, y, INK, subject.units.show(extra.bytes[category])));
        }
    }
    let at = shown.len() as u32;
    let (x, y) = (MARGIN + at / lines.max(1) * COLUMN, top + (at % lines.max(1) + 1) * LINE);
    let strong = |item: Text| Text { weight: Weight::Medium, ..item };
    scene.text(strong(text(x + 54, y, 13, INK, "total")));
    let bytes = subject.memory_of(all);
    scene.text(strong(right(x + bytes_to, y, INK, bytes)));
    if let Some(extra) = &subject.extra {
        scene.text(strong(right(x + extra_to, y, INK, subject.units.show(extra.bytes.iter().sum()))));
    }
    let y = top + (lines + 1) * LINE + 8;
    scene.text(text(MARGIN, y, 11, SOFT, rule_line(subject, false)));
    y + 8
}

/// How a cell that holds several categories is coloured, and what is blank.
pub fn rule_line(subject: &Subject<'_>, is_text: bool) -> String {
    let holes = match subject.hole_pages() {
        0 => String::new(),
        pages => format!(" Blank: no memory, {}.", subject.words_of(pages)),
    };
    subject.palette.rule(is_text) + &holes
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
