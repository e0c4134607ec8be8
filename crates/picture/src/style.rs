//! The colours, margins and text of everything around a map.

use crate::palette::Color;
use crate::scene::{Anchor, Text, Weight};

pub(crate) const INK: Color = Color(0x1f, 0x26, 0x2d);
pub(crate) const SOFT: Color = Color(0x5b, 0x66, 0x70);
pub(crate) const HAIR: Color = Color(0xc3, 0xca, 0xd1);

/// Pixels at the edges.
pub(crate) const MARGIN: u32 = 32;

/// A line of regular text.
pub(crate) fn text(x: u32, y: u32, size: u32, color: Color, text: impl Into<String>) -> Text {
    Text { x, y, size, weight: Weight::Regular, anchor: Anchor::Start, color, text: text.into() }
}
