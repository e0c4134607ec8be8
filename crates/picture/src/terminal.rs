//! A grid as text: half blocks in colour, or letters.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{Ansi256Color, RgbColor, Style};

use crate::cell_order::CellOrder;
use crate::grid::{Grid, GridSize};
use crate::legend::{rule_line, unit_line};
use crate::palette::{Color, Ground, Look, Strength};
use crate::subject::Subject;
use crate::text::{Address, Share, printable};
use crate::zones::lanes;

/// Colours that a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    /// None: letters stand in.
    None,
    /// The 256 of xterm.
    Fixed,
    /// All.
    All,
}

impl Colors {
    fn color(self, color: Color) -> Option<anstyle::Color> {
        match self {
            Colors::None => None,
            Colors::Fixed => Some(nearest(color).into()),
            Colors::All => Some(RgbColor(color.0, color.1, color.2).into()),
        }
    }
}

/// The nearest of xterm's 6×6×6 cube and its greys.
fn nearest(color: Color) -> Ansi256Color {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |a: Color, b: Color| {
        let part = |a: u8, b: u8| u32::from(a.abs_diff(b)).pow(2);
        part(a.0, b.0) + part(a.1, b.1) + part(a.2, b.2)
    };
    let cube = (0..216u8).map(|at| {
        let level = |divisor: u8| LEVELS[usize::from(at / divisor % 6)];
        (16 + at, Color(level(36), level(6), level(1)))
    });
    let greys = (0..24u8).map(|at| (232 + at, Color(8 + 10 * at, 8 + 10 * at, 8 + 10 * at)));
    let nearest = cube.chain(greys).min_by_key(|&(_, other)| distance(color, other));
    Ansi256Color(nearest.map_or(15, |(at, _)| at))
}

/// What a terminal is like.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Characters in a line: at least 20.
    pub width: u16,
    /// Its colours.
    pub colors: Colors,
    /// Whether it shows more than ASCII.
    pub is_utf8: bool,
}

/// Characters left of a linear map, for addresses, at most.
const AXIS: u16 = 9;

impl Terminal {
    /// The size of a grid that fits.
    pub fn size(&self, layout: CellOrder) -> GridSize {
        let below = |width: u16| 1 << width.max(1).ilog2();
        let is_text = self.colors == Colors::None;
        match layout {
            // Two rows of half blocks share a line.
            CellOrder::Linear => GridSize {
                columns: below(self.width.saturating_sub(AXIS)).min(256),
                rows: if is_text { 36 } else { 64 },
            },
            CellOrder::Hilbert => {
                // Characters are about twice as high as wide: two of them, or a half block, are a square.
                let columns = if is_text { below(self.width / 2).min(32) } else { below(self.width).min(64) };
                GridSize { columns, rows: columns }
            }
        }
    }

    /// Writes headline, map and legend.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write(&self, to: &mut impl Write, subject: &Subject<'_>, grid: &Grid) -> io::Result<()> {
        let bold = if self.colors == Colors::None { Style::new() } else { Style::new().bold() };
        for line in self.wrapped(&printable(&subject.title)) {
            writeln!(to, "{bold}{line}{bold:#}")?;
        }
        for note in subject.notes.iter().filter(|note| !note.is_empty()) {
            self.paragraph(to, &printable(note))?;
        }
        writeln!(to, "{}\n", unit_line(subject, grid))?;
        match grid.layout {
            CellOrder::Linear => self.linear(to, subject, grid)?,
            CellOrder::Hilbert => self.hilbert(to, subject, grid)?,
        }
        writeln!(to)?;
        self.legend(to, subject, grid)?;
        self.zones(to, subject, grid)?;
        self.paragraph(to, &rule_line(subject, self.colors == Colors::None))
    }

    fn linear(&self, to: &mut impl Write, subject: &Subject<'_>, grid: &Grid) -> io::Result<()> {
        let columns = u64::from(grid.columns);
        let address = |pfn: u64| Address::of(pfn, subject.page_bytes).short();
        let rows_a_line = if self.colors == Colors::None { 1 } else { 2 };
        let mut lines = Vec::new();
        for span in grid.axis.spans() {
            if span.is_hole {
                let unit = grid.axis.unit();
                let hole = subject.hole_around(span.cells.start * unit..span.cells.end * unit);
                let bytes = subject.words_of(hole.end - hole.start);
                lines.push((String::new(), format!("no memory for {bytes}"), None));
                continue;
            }
            let mut slot = span.slots.start;
            while slot < span.slots.end {
                let pfn = span.cells.start + (slot - span.slots.start);
                let line = pfn / (columns * rows_a_line);
                let label = slot == span.slots.start || line.is_multiple_of(4);
                let label = if label { address(pfn * grid.axis.unit()) } else { String::new() };
                let next = (slot + columns * rows_a_line).min(span.slots.end);
                let row = |first: u64| {
                    (first..first + columns).map(|slot| (slot < next).then(|| grid.look(slot)).flatten())
                };
                let text = self.line(subject, row(slot), row(slot + columns), 1);
                let first = pfn * grid.axis.unit();
                let pages = first..(pfn + (next - slot)) * grid.axis.unit();
                lines.push((label, text, Some(pages)));
                slot = next;
            }
        }
        let axis = lines.iter().map(|(label, ..)| label.len()).max().unwrap_or(0);
        let room = usize::from(self.width).saturating_sub(axis + 1 + grid.columns as usize + 1);
        let (zones, _) = lanes(&subject.zones, grid);
        for (label, text, pages) in lines {
            let begin =
                zones.iter().filter(|zone| pages.as_ref().is_some_and(|pages| pages.contains(&zone.first)));
            let names: Vec<_> = begin.map(|zone| printable(&zone.name)).collect();
            let mut names = names.join("+");
            if names.chars().count() > room {
                names = names
                    .chars()
                    .take(room.saturating_sub(1))
                    .chain([if self.is_utf8 { '…' } else { '.' }])
                    .collect();
            }
            let names = if room < 4 { "" } else { &names };
            writeln!(to, "{}", format!("{label:>axis$} {text} {names}").trim_end())?;
        }
        Ok(())
    }

    fn hilbert(&self, to: &mut impl Write, subject: &Subject<'_>, grid: &Grid) -> io::Result<()> {
        let (width, height) = grid.used;
        let mut looks = vec![None; width as usize * height as usize];
        for slot in grid.cells.slots() {
            let (x, y) = grid.layout.place(slot, grid.columns);
            looks[(y * width + x) as usize] = grid.look(slot);
        }
        let row = |row: u32| {
            (0..width).map({
                let looks = &looks;
                move |x| looks.get((row * width + x) as usize).copied().flatten()
            })
        };
        let (rows_a_line, wide) = if self.colors == Colors::None { (1, 2) } else { (2, 1) };
        for y in (0..height).step_by(rows_a_line) {
            writeln!(to, "{}", self.line(subject, row(y), row(y + 1), wide).trim_end())?;
        }
        writeln!(to)?;
        let block = u64::from(grid.columns).pow(2) / 16;
        if block > 0 {
            writeln!(to, "Where the sixteenths of the square begin:")?;
            let mut addresses = vec![String::new(); 16];
            for at in 0..16 {
                let (x, y) = grid.layout.place(at, 4);
                let pfn = grid.axis.first_pfn(at * block);
                let address = pfn.map(|pfn| Address::of(pfn, subject.page_bytes).short());
                addresses[(y * 4 + x) as usize] = address.unwrap_or_else(|| "-".into());
            }
            for line in addresses.chunks(4).filter(|line| line.iter().any(|address| address != "-")) {
                writeln!(
                    to,
                    "  {}",
                    line.iter().fold(String::new(), |text, address| text + &format!("{address:>9}"))
                )?;
            }
        }
        Ok(())
    }

    /// One line of text: two rows of half blocks, or one row of letters, each `wide` times.
    fn line(
        &self,
        subject: &Subject<'_>,
        upper: impl Iterator<Item = Option<Look>>,
        lower: impl Iterator<Item = Option<Look>>,
        wide: usize,
    ) -> String {
        let palette = subject.palette;
        let mut text = String::new();
        if self.colors == Colors::None {
            upper.for_each(|look| {
                text.extend(std::iter::repeat_n(look.map_or(' ', |look| palette.letter(look)), wide));
            });
            return text;
        }
        let color = |look: Look| self.colors.color(palette.color(look, Ground::Dark));
        let mut last = Style::new();
        for (upper, lower) in upper.zip(lower) {
            let (upper, lower) = (upper.and_then(color), lower.and_then(color));
            let (block, style) = match (upper, lower) {
                (None, None) => (' ', Style::new()),
                (None, lower) => ('▄', Style::new().fg_color(lower)),
                (upper, None) => ('▀', Style::new().fg_color(upper)),
                (upper, lower) if upper == lower => ('█', Style::new().fg_color(upper)),
                (upper, lower) => ('▀', Style::new().fg_color(upper).bg_color(lower)),
            };
            if style != last {
                // Writing to a string does not fail.
                let _ = write!(text, "{last:#}{style}");
                last = style;
            }
            text.push(block);
        }
        let _ = write!(text, "{last:#}");
        text
    }

    fn legend(&self, to: &mut impl Write, subject: &Subject<'_>, grid: &Grid) -> io::Result<()> {
        let totals = grid.cells.totals();
        let all: u64 = totals.iter().sum();
        let bytes = |pages: u64| subject.memory_of(pages);
        let memory = (bytes(all).len() + 1).max(10);
        let name = subject.palette.categories.iter().map(|category| category.name.len()).max().unwrap_or(0);
        let extra = subject.extra.as_ref().filter(|_| usize::from(self.width) >= name + 3 + memory + 9 + 25);
        let title = extra.map_or("", |extra| extra.title);
        writeln!(
            to,
            "{}",
            format!("   {:name$}{:>memory$}{:>9}{title:>25}", "", "memory", "share").trim_end()
        )?;
        for (category, &pages) in totals.iter().enumerate().filter(|&(_, &pages)| pages > 0) {
            let look = Look { category, strength: Strength::Full };
            let letter = subject.palette.letter(look);
            let swatch = match self.colors.color(subject.palette.color(look, Ground::Dark)) {
                Some(color) => {
                    let style = Style::new().fg_color(Some(color));
                    format!("{style}██{style:#}")
                }
                None => format!("{letter} "),
            };
            let extra = extra.map_or(String::new(), |extra| subject.units.show(extra.bytes[category]));
            let Some(category) = subject.palette.categories.get(category) else { continue };
            let line = format!(
                "{swatch} {:name$}{:>memory$}{:>9}{extra:>25}",
                category.name,
                bytes(pages),
                Share(pages, all)
            );
            writeln!(to, "{}", line.trim_end())?;
        }
        let extra = extra.map_or(String::new(), |extra| subject.units.show(extra.bytes.iter().sum()));
        writeln!(
            to,
            "{}",
            format!("   {:name$}{:>memory$}{:>9}{extra:>25}", "total", bytes(all), "").trim_end()
        )
    }

    fn zones(&self, to: &mut impl Write, subject: &Subject<'_>, grid: &Grid) -> io::Result<()> {
        let (zones, _) = lanes(&subject.zones, grid);
        if zones.is_empty() {
            return Ok(());
        }
        let address = |pfn: u64| Address::of(pfn, subject.page_bytes).short();
        let zones = zones.iter().map(|zone| {
            format!("{} {} to {}", printable(&zone.name), address(zone.first), address(zone.last + 1))
        });
        self.paragraph(to, &format!("Zones: {}.", zones.collect::<Vec<_>>().join(", ")))
    }

    /// Words, in lines that fit.
    fn paragraph(&self, to: &mut impl Write, words: &str) -> io::Result<()> {
        self.wrapped(words).iter().try_for_each(|line| writeln!(to, "{line}"))
    }

    fn wrapped(&self, words: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        for word in words.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > usize::from(self.width) {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fit_the_width() {
        for width in [20, 40, 73, 80, 81, 132, 400] {
            for colors in [Colors::None, Colors::Fixed, Colors::All] {
                let terminal = Terminal { width, colors, is_utf8: true };
                let linear = terminal.size(CellOrder::Linear);
                assert!(linear.columns + u32::from(AXIS) <= u32::from(width) && linear.columns >= 8);
                let hilbert = terminal.size(CellOrder::Hilbert).columns;
                let wide = if colors == Colors::None { 2 } else { 1 };
                assert!(hilbert * wide <= u32::from(width) && hilbert >= 8, "{width} {hilbert}");
            }
        }
    }

    #[test]
    fn colours_go_to_their_nearest_fixed_ones() {
        assert_eq!(nearest(Color(0, 0, 0)), Ansi256Color(16));
        assert_eq!(nearest(Color(255, 255, 255)), Ansi256Color(231));
        assert_eq!(nearest(Color(0, 95, 135)), Ansi256Color(24));
        assert_eq!(nearest(Color(118, 118, 118)), Ansi256Color(243));
    }
}
