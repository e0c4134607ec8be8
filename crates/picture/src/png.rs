//! A scene as PNG.

use std::io::{self, Write};

use ab_glyph::{Font, ScaleFont, point};

use crate::palette::{Color, WHITE};
use crate::scene::{Anchor, Item, Rect, Scene, Text, em, text_width};

/// Pixels of the file for each pixel of the scene, in both directions: text stays sharp on fine screens.
pub const SCALE: u32 = 2;

/// Writes `scene`.
///
/// # Errors
/// What `to` says.
pub fn png(scene: &Scene, to: impl Write) -> io::Result<()> {
    let mut canvas = Canvas::new(scene.width * SCALE, scene.height * SCALE);
    for item in &scene.items {
        match item {
            Item::Fill(color, rects) => rects.iter().for_each(|rect| canvas.fill(*color, rect)),
            Item::Text(text) => canvas.text(text),
        }
    }
    let mut encoder = png::Encoder::new(to, canvas.width, canvas.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.add_text_chunk("Title".into(), scene.title.chars().filter(char::is_ascii).collect())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&canvas.bytes)?;
    writer.finish()?;
    Ok(())
}

struct Canvas {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
}

impl Canvas {
    fn new(width: u32, height: u32) -> Canvas {
        Canvas { width, height, bytes: vec![WHITE.0; width as usize * height as usize * 3] }
    }

    fn fill(&mut self, color: Color, rect: &Rect) {
        let right = ((rect.x + rect.width) * SCALE).min(self.width);
        let bottom = ((rect.y + rect.height) * SCALE).min(self.height);
        for y in rect.y * SCALE..bottom {
            for x in rect.x * SCALE..right {
                self.put(x, y, color, 1.0);
            }
        }
    }

    fn text(&mut self, text: &Text) {
        let Some(font) = text.weight.font() else { return };
        let scaled = font.as_scaled(em(&font, (text.size * SCALE) as f32));
        let width = (text_width(&text.text, text.size, text.weight) * SCALE) as f32;
        let left = (text.x * SCALE) as f32;
        let mut x = match text.anchor {
            Anchor::Start => left,
            Anchor::Middle => left - width / 2.0,
            Anchor::End => left - width,
        };
        for c in text.text.chars() {
            let id = scaled.glyph_id(c);
            let glyph = id.with_scale_and_position(scaled.scale(), point(x, (text.y * SCALE) as f32));
            x += scaled.h_advance(id);
            let Some(outline) = font.outline_glyph(glyph) else { continue };
            let bounds = outline.px_bounds();
            outline.draw(|dx, dy, covered| {
                let (x, y) = (bounds.min.x as i64 + i64::from(dx), bounds.min.y as i64 + i64::from(dy));
                if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) {
                    self.put(x, y, text.color, f64::from(covered.clamp(0.0, 1.0)));
                }
            });
        }
    }

    fn put(&mut self, x: u32, y: u32, color: Color, part: f64) {
        if x >= self.width || y >= self.height {
            return;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        let Some(bytes) = self.bytes.get_mut(at..at + 3) else { return };
        let Color(red, green, blue) = color.mixed(Color(bytes[0], bytes[1], bytes[2]), part);
        bytes.copy_from_slice(&[red, green, blue]);
    }
}
