//! A picture of memory and metadata over time, as SVG. Every step is equally wide, since they take from microseconds to
//! seconds; within a step time runs evenly over its moments.

use std::fmt::Write;

use indicatif::BinaryBytes;
use pagefold_picture::svg::escaped;

use super::report::RunReport;
use super::sample::Moment;
use crate::lines::wrap;

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 660.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 930.0;

/// Of the Okabe–Ito palette, which people with any colour vision tell apart.
const BLUE: &str = "#0072b2";
const SKY: &str = "#56b4e9";
const GREEN: &str = "#009e73";
const ORANGE: &str = "#d55e00";
const GREY: &str = "#8a8f98";

/// One of the two coordinate systems.
struct Panel {
    title: &'static str,
    top: f64,
    bottom: f64,
    most: u64,
}

/// A line and what it is called.
struct Curve<'a> {
    name: &'a str,
    colour: &'static str,
    dashed: bool,
    filled: bool,
    value: fn(&Moment) -> u64,
}

impl Panel {
    fn y(&self, value: u64) -> f64 {
        self.bottom - (self.bottom - self.top) * value as f64 / self.most as f64
    }

    fn frame(&self, svg: &mut String) {
        text(svg, LEFT, self.top - 16.0, "start", "title", self.title);
        for quarter in 0..=4 {
            let value = self.most / 4 * quarter;
            let y = self.y(value);
            line(svg, [(LEFT, y), (RIGHT, y)], "grid");
            text(svg, LEFT - 10.0, y + 4.0, "end", "axis", &bytes(value));
        }
    }

    /// The curves, then their names at their right ends, kept apart.
    fn draw(&self, svg: &mut String, moments: &[(f64, Moment)], curves: &[Curve]) {
        let mut names = Vec::new();
        for curve in curves {
            let mut path = String::new();
            let mut before = None;
            for (x, moment) in moments {
                let y = self.y((curve.value)(moment));
                // A value holds until the next one.
                let _ = match before {
                    None => write!(path, "M{x:.1} {y:.1}"),
                    Some(_) => write!(path, "H{x:.1}V{y:.1}"),
                };
                before = Some(y);
            }
            let Some(last) = before else { continue };
            let _ = write!(path, "H{RIGHT:.1}");
            if curve.filled {
                let bottom = self.bottom;
                let _ = writeln!(
                    svg,
                    r#"<path d="{path}V{bottom:.1}H{LEFT:.1}Z" fill="{}" opacity="0.18"/>"#,
                    curve.colour
                );
            }
            let dashes = if curve.dashed { r#" stroke-dasharray="6 4""# } else { "" };
            let _ = writeln!(
                svg,
                r#"<path d="{path}" fill="none" stroke="{}" stroke-width="2"{dashes}/>"#,
                curve.colour
            );
            names.push((last, curve));
        }
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        // From the bottom up, each at least a line above the one before.
        let mut limit = self.bottom + 4.0;
        for (y, curve) in names.into_iter().rev() {
            let at = (y + 4.0).min(limit);
            limit = at - 17.0;
            let name = escaped(curve.name);
            let _ = writeln!(
                svg,
                r#"<text x="{:.1}" y="{at:.1}" class="name" fill="{}">{name}</text>"#,
                RIGHT + 10.0,
                curve.colour
            );
        }
    }
}

/// Draws the run.
pub fn draw(report: &RunReport) -> String {
    let steps = report.rows.len().max(1);
    let moments = place(&report.moments, steps);
    let most = |value: &dyn Fn(&Moment) -> u64| {
        nice(moments.iter().map(|(_, moment)| value(moment)).max().unwrap_or(0).max(1 << 20))
    };
    let memory = Panel {
        title: "Memory of the devices, and in use",
        top: 112.0,
        bottom: 330.0,
        most: most(&|m| m.requested.max(m.plugged).max(m.in_use.iter().sum())),
    };
    let metadata =
        Panel { title: "Metadata", top: 396.0, bottom: 560.0, most: most(&|m| m.metadata.max(m.linux)) };
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Inter, 'Helvetica Neue', Arial, sans-serif">
<style>.head{{font-size:20px;font-weight:600;fill:#1b1f24}}.sub{{font-size:13px;fill:#57606a}}.title{{font-size:14px;font-weight:600;fill:#1b1f24}}.axis{{font-size:12px;fill:#57606a}}.name{{font-size:13px;font-weight:600}}.grid{{stroke:#e3e6ea;stroke-width:1}}.step{{stroke:#c9ced6;stroke-width:1;stroke-dasharray:2 4}}</style>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
"##
    );
    text(&mut svg, LEFT, 40.0, "start", "head", &format!("pagefold run {}", report.scenario));
    text(&mut svg, LEFT, 62.0, "start", "sub", &report.about);
    memory.frame(&mut svg);
    metadata.frame(&mut svg);
    let width = (RIGHT - LEFT) / steps as f64;
    for (number, row) in report.rows.iter().enumerate() {
        let x = LEFT + width * number as f64;
        if number > 0 {
            line(&mut svg, [(x, memory.top), (x, metadata.bottom)], "step");
        }
        let mut y = metadata.bottom + 20.0;
        let name = wrap(&format!("{} {}", number + 1, row.name), ((width / 6.6) as usize).max(6));
        for words in name.lines() {
            text(&mut svg, x + width / 2.0, y, "middle", "axis", words);
            y += 15.0;
        }
    }
    let curve = |name, colour, dashed, filled, value| Curve { name, colour, dashed, filled, value };
    memory.draw(
        &mut svg,
        &moments,
        &[
            curve("plugged", BLUE, false, true, |m| m.plugged),
            curve("requested", GREY, true, false, |m| m.requested),
            curve("in use, movable", GREEN, false, false, |m| m.in_use[1]),
            curve("in use, normal", SKY, false, false, |m| m.in_use[0]),
        ],
    );
    metadata.draw(
        &mut svg,
        &moments,
        &[
            curve("Linux (computed)", ORANGE, true, false, |m| m.linux),
            curve("Pagefold", BLUE, false, true, |m| m.metadata),
        ],
    );
    svg.push_str("</svg>\n");
    svg
}

/// Moments with their place on the time axis.
fn place(moments: &[Moment], steps: usize) -> Vec<(f64, Moment)> {
    let width = (RIGHT - LEFT) / steps as f64;
    let mut placed = Vec::with_capacity(moments.len());
    for step in moments.chunk_by(|a, b| a.step == b.step) {
        for (at, moment) in step.iter().enumerate() {
            let x = LEFT + width * (moment.step as f64 + at as f64 / step.len() as f64);
            placed.push((x.min(RIGHT), *moment));
        }
    }
    placed
}

/// The next size that divides well by four.
fn nice(most: u64) -> u64 {
    let unit = 1u64 << most.ilog2();
    [4, 6, 8].into_iter().map(|quarters| unit / 4 * quarters).find(|&nice| nice >= most).unwrap_or(most)
}

fn bytes(value: u64) -> String {
    let text = BinaryBytes(value).to_string();
    text.replace(".00 ", " ")
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let words = escaped(words);
    let _ =
        writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{words}</text>"#);
}

fn line(svg: &mut String, [from, to]: [(f64, f64); 2], class: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#);
}
