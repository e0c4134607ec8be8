//! A scene as SVG 1.1.

use std::fmt::{self, Write};

use crate::scene::{Anchor, Item, Rect, Scene, Text, Weight};

/// Fonts of about the same width, the one that was measured first.
const FONTS: &str = "Roboto,Inter,'Helvetica Neue',Arial,'Liberation Sans',sans-serif";

/// Writes `scene`.
pub fn svg(scene: &Scene) -> String {
    let mut to = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut to, scene);
    to
}

fn write(to: &mut String, scene: &Scene) -> fmt::Result {
    let (width, height) = (scene.width, scene.height);
    writeln!(
        to,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONTS}" role="img">"#
    )?;
    writeln!(to, "<title>{}</title>", escaped(&scene.title))?;
    for item in &scene.items {
        match item {
            Item::Fill(color, rects) => {
                write!(
                    to,
                    r##"<path shape-rendering="crispEdges" fill="#{:02x}{:02x}{:02x}" d=""##,
                    color.0, color.1, color.2
                )?;
                let mut at = (0, 0);
                for rect in rects {
                    at = step(to, at, rect)?;
                }
                writeln!(to, r#""/>"#)?;
            }
            Item::Text(text) => text_element(to, text)?,
        }
    }
    writeln!(to, "</svg>")
}

/// A rectangle, relative to where the last one began. Returns where this one does.
fn step(to: &mut String, from: (i64, i64), rect: &Rect) -> Result<(i64, i64), fmt::Error> {
    let (x, y) = (i64::from(rect.x), i64::from(rect.y));
    // A minus separates as well as a blank does.
    let (dx, dy) = (x - from.0, y - from.1);
    let blank = if dy < 0 { "" } else { " " };
    let (width, height) = (rect.width, rect.height);
    write!(to, "m{dx}{blank}{dy}h{width}v{height}h-{width}z")?;
    Ok((x, y))
}

fn text_element(to: &mut String, text: &Text) -> fmt::Result {
    let Text { x, y, size, color, .. } = text;
    write!(
        to,
        r##"<text x="{x}" y="{y}" font-size="{size}" fill="#{:02x}{:02x}{:02x}""##,
        color.0, color.1, color.2
    )?;
    if text.weight == Weight::Medium {
        to.push_str(r#" font-weight="500""#);
    }
    match text.anchor {
        Anchor::Start => {}
        Anchor::Middle => to.push_str(r#" text-anchor="middle""#),
        Anchor::End => to.push_str(r#" text-anchor="end""#),
    }
    writeln!(to, ">{}</text>", escaped(&text.text))
}

/// Text as it may stand in a document.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::{BLACK, BLUE};

    #[test]
    fn rectangles_follow_each_other_relatively() {
        let mut scene = Scene { width: 10, height: 20, title: "a <b> & c".into(), ..Scene::default() };
        let rect = |x, y| Rect { x, y, width: 2, height: 3 };
        scene.items.push(Item::Fill(BLUE, vec![rect(1, 2), rect(5, 2), rect(0, 1)]));
        let text = Text {
            x: 1,
            y: 2,
            size: 12,
            weight: Weight::Medium,
            anchor: Anchor::End,
            color: BLACK,
            text: "<&>".into(),
        };
        scene.text(text);
        let svg = svg(&scene);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let path = document.descendants().find(|node| node.has_tag_name("path")).unwrap();
        assert_eq!(path.attribute("fill"), Some("#0072b2"));
        assert_eq!(path.attribute("d"), Some("m1 2h2v3h-2zm4 0h2v3h-2zm-5-1h2v3h-2z"));
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(texts.contains(&"a <b> & c") && texts.contains(&"<&>"), "{texts:?}");
    }
}
