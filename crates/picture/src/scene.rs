//! A drawing: filled rectangles and lines of text, whole pixels. SVG and PNG show the same one.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};

use crate::palette::Color;

/// A rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Pixels from the left.
    pub x: u32,
    /// Pixels from the top.
    pub y: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// Which face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// The face of most text.
    Regular,
    /// The face of headings.
    Medium,
}

impl Weight {
    /// The font: Roboto, cut down to Latin (Apache-2.0; see the directory `font`).
    pub fn font(self) -> Option<FontRef<'static>> {
        let bytes: &[u8] = match self {
            Weight::Regular => include_bytes!("../font/Roboto-Regular.ttf"),
            Weight::Medium => include_bytes!("../font/Roboto-Medium.ttf"),
        };
        FontRef::try_from_slice(bytes).ok()
    }
}

/// Which point of a line of text lies at its x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The first.
    Start,
    /// The one in the middle.
    Middle,
    /// The last.
    End,
}

/// A line of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Pixels from the left to the anchor.
    pub x: u32,
    /// Pixels from the top to the baseline.
    pub y: u32,
    /// Pixels from baseline to baseline.
    pub size: u32,
    /// The face.
    pub weight: Weight,
    /// What lies at `x`.
    pub anchor: Anchor,
    /// The colour.
    pub color: Color,
    /// The words.
    pub text: String,
}

/// Something drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Rectangles of one colour.
    Fill(Color, Vec<Rect>),
    /// A line of text.
    Text(Text),
}

/// A drawing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// A description for screen readers.
    pub title: String,
    /// What is drawn, in this order.
    pub items: Vec<Item>,
}

impl Scene {
    /// Draws one rectangle.
    pub fn rect(&mut self, color: Color, x: u32, y: u32, width: u32, height: u32) {
        self.items.push(Item::Fill(color, vec![Rect { x, y, width, height }]));
    }

    /// Draws text.
    pub fn text(&mut self, text: Text) {
        self.items.push(Item::Text(text));
    }
}

/// Pixels per em of a font of `size`: what CSS calls its font size.
pub fn em(font: &FontRef<'_>, size: f32) -> PxScale {
    let units = font.units_per_em().unwrap_or(2048.0);
    PxScale::from(size * font.height_unscaled() / units)
}

/// How wide `text` is.
pub fn text_width(text: &str, size: u32, weight: Weight) -> u32 {
    let Some(font) = weight.font() else { return 0 };
    let font = font.as_scaled(em(&font, size as f32));
    text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum::<f32>().ceil() as u32
}

/// `text`, or as much of it as fits into `width` and three dots.
pub fn fitted(text: &str, size: u32, weight: Weight, width: u32) -> String {
    if text_width(text, size, weight) <= width {
        return text.to_owned();
    }
    let mut cut: String = text.to_owned();
    while cut.pop().is_some() {
        let dotted = format!("{}…", cut.trim_end());
        if text_width(&dotted, size, weight) <= width {
            return dotted;
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_to_fit() {
        let text = "a line that is much too long to fit into anything";
        let cut = fitted(text, 12, Weight::Regular, 100);
        assert!(cut.ends_with('…') && text_width(&cut, 12, Weight::Regular) <= 100, "{cut}");
        assert_eq!(fitted("short", 12, Weight::Regular, 100), "short");
    }

    #[test]
    fn digits_are_equally_wide() {
        let width = |text| text_width(text, 100, Weight::Regular);
        assert_eq!(width("1111"), width("8888"));
    }
}
