//! Drawing.

use pagefold_picture::text::printable;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Tabs};

use super::app::App;
use super::gauges::{Gauge, GaugeSection, TABS};
use crate::lines::is_utf8;

/// Widths of columns; of names: at least, and at most.
const NAME: (usize, usize) = (12, 34);
const VALUE: usize = 21;
const RATE: usize = 13;
const HOW: usize = 8;
/// Bars are drawn where there is room for so many.
const BARS: usize = 6;

const HELP: [(&str, &str); 9] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("Tab, ← →, 1 to 5", "another tab"),
    ("↑ ↓, j k", "scroll"),
    ("PgUp PgDn, Home End", "scroll further"),
    ("p, Space", "pause, go on"),
    ("r", "read now"),
    ("+ -", "longer, shorter interval"),
    ("?, h", "this help"),
    ("", "Bars: from the lowest to the highest."),
];

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, app: &App) {
    let rows = [Constraint::Length(1), Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)];
    let [head, tabs, body, foot] = Layout::vertical(rows).areas(frame.area());
    headline(frame, app, head);
    let titles = TABS.iter().zip(1..).map(|(title, number)| format!("{number} {title}"));
    let style = Style::new().bold().reversed();
    frame.render_widget(Tabs::new(titles).select(app.tab).highlight_style(style), tabs);
    let lines: Vec<_> =
        app.sections().iter().flat_map(|section| lines(app, section, usize::from(body.width))).collect();
    frame.render_widget(Paragraph::new(lines).scroll((app.scrolled(body.height), 0)), body);
    footline(frame, app, foot);
    if app.has_help {
        help(frame, frame.area());
    }
    if !is_utf8() {
        ascii(frame.buffer_mut());
    }
}

/// Puts characters that everybody can read in place of others.
fn ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let plain = match cell.symbol().chars().next() {
            Some('\u{80}'..) => match cell.symbol() {
                "←" => "<",
                "→" => ">",
                "↑" => "^",
                "↓" => "v",
                "─" => "-",
                "│" => "|",
                "┌" | "┐" | "└" | "┘" => "+",
                "…" | "▂" => ".",
                "▁" => "_",
                "▃" => "-",
                "▄" => "=",
                "▅" => "o",
                "▆" => "O",
                "▇" => "8",
                "█" => "#",
                _ => "?",
            },
            _ => continue,
        };
        cell.set_symbol(plain);
    }
}

fn headline(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let state = if app.is_paused { "paused".to_owned() } else { every(app) };
    let columns = [Constraint::Min(0), Constraint::Length(state.chars().count() as u16)];
    let [left, right] = Layout::horizontal(columns).areas(area);
    frame.render_widget(Line::from(printable(app.title())).bold(), left);
    let state = if app.is_paused { Span::from(state).reversed() } else { Span::from(state) };
    frame.render_widget(Paragraph::new(Line::from(state)).alignment(Alignment::Right), right);
}

fn every(app: &App) -> String {
    format!("every {} s", app.interval.as_secs_f64())
}

fn footline(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let line = match app.error.as_deref() {
        Some(error) => Line::from(printable(&format!("cannot read: {error}"))).reversed(),
        None => {
            let keys = [
                ("q", "quit"),
                ("Tab", "next"),
                ("↑↓", "scroll"),
                ("p", "pause"),
                ("+-", "interval"),
                ("?", "help"),
            ];
            let spans = keys.into_iter().flat_map(|(key, does)| {
                [Span::from(format!(" {key} ")).reversed(), Span::from(format!(" {does}  "))]
            });
            Line::from(spans.collect::<Vec<_>>())
        }
    };
    frame.render_widget(line, area);
}

/// A section: its headline, its gauges, its notes, and a blank line.
fn lines(app: &App, section: &GaugeSection, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(printable(&section.title)).bold().fg(Color::Cyan)];
    lines.extend(section.gauges.iter().map(|gauge| line(app, section, gauge, width)));
    lines.extend(section.notes.iter().map(|note| Line::from(format!("  {}", printable(note)))));
    lines.push(Line::default());
    lines
}

/// A gauge. What is told last is left out first where there is no room.
fn line(app: &App, section: &GaugeSection, gauge: &Gauge, width: usize) -> Line<'static> {
    let others = 2 + VALUE + RATE + 2 + HOW + 1 + BARS;
    let name_width = width.saturating_sub(others).clamp(NAME.0, NAME.1);
    let name = shortened(&printable(&gauge.name), name_width);
    let mut spans = vec![Span::from(format!("  {name:<name_width$}{:>VALUE$}", gauge.value.text()))];
    let mut used = 2 + name_width + VALUE;
    if used + RATE <= width {
        let rate = app.rate(section, gauge);
        let text = rate.map_or(String::new(), |rate| gauge.value.rate_text(rate));
        let color = if text.starts_with('-') { Color::Green } else { Color::Yellow };
        spans.push(Span::from(format!("{text:>RATE$}")).fg(color));
        used += RATE;
    }
    if used + HOW + 2 <= width {
        spans.push(Span::from(format!("  {:<HOW$}", gauge.how)).dim());
        used += HOW + 2;
    }
    let room = width.saturating_sub(used + 1).min(60);
    if room >= BARS {
        spans.push(Span::from(format!(" {}", app.sparkline(section, gauge, room))).fg(Color::Blue));
    }
    Line::from(spans)
}

/// `text`, or as much of it as fits.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines: Vec<_> =
        HELP.into_iter().map(|(keys, does)| Line::from(format!(" {keys:<20} {does}"))).collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0) as u16 + 3;
    let height = lines.len() as u16 + 2;
    let (width, height) = (width.min(area.width), height.min(area.height));
    let middle =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), middle);
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::super::gauges::{self, Reading};
    use super::*;
    use crate::report::model::Report;
    use crate::survey::SurveyArgs;

    fn fixture(name: &str) -> SurveyArgs {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        SurveyArgs { root: Some(root), no_scan: true, ..SurveyArgs::default() }
    }

    /// A host, and two seconds later with less free memory.
    fn app(name: &str) -> App {
        let mut survey = fixture(name).survey().unwrap();
        survey.origin = "a host".into();
        let mut app = App::new(Duration::from_secs(2));
        let first = Reading::of(&Report::of(&survey), &survey.host);
        app.read(first, Duration::ZERO);
        for zone in &mut survey.host.zones {
            zone.free -= zone.free / 4;
        }
        for zone in &mut survey.host.free_blocks {
            zone.blocks[0] += 100;
        }
        app.read(Reading::of(&Report::of(&survey), &survey.host), Duration::from_secs(2));
        app
    }

    fn screen(app: &App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        terminal.backend().to_string()
    }

    fn press(app: &mut App, code: KeyCode) {
        app.key(KeyEvent::new(code, KeyModifiers::NONE));
    }

    #[test]
    fn tabs_show_a_host() {
        let mut app = app("host-hvo");
        insta::assert_snapshot!("overview", screen(&app, 110, 34));
        press(&mut app, KeyCode::Tab);
        insta::assert_snapshot!("nodes_and_zones", screen(&app, 110, 24));
        press(&mut app, KeyCode::Tab);
        insta::assert_snapshot!("huge_pages", screen(&app, 80, 16));
        press(&mut app, KeyCode::Tab);
        insta::assert_snapshot!("free_blocks", screen(&app, 80, 20));
        press(&mut app, KeyCode::Char('p'));
        press(&mut app, KeyCode::Char('?'));
        insta::assert_snapshot!("help", screen(&app, 80, 20));
    }

    #[test]
    fn all_of_it_can_be_ascii() {
        let mut app = app("host-hvo");
        press(&mut app, KeyCode::Char('?'));
        let mut terminal = Terminal::new(TestBackend::new(110, 34)).unwrap();
        terminal
            .draw(|frame| {
                draw(frame, &app);
                ascii(frame.buffer_mut());
            })
            .unwrap();
        let screen = terminal.backend().to_string();
        assert!(screen.is_ascii() && !screen.contains("??"), "{screen}");
    }

    #[test]
    fn what_went_wrong_is_said() {
        let mut app = app("numa");
        app.failed("nothing says how much memory there is".into());
        let screen = screen(&app, 80, 20);
        assert!(screen.contains("cannot read: nothing says"), "{screen}");
    }

    #[test]
    fn the_end_of_a_tab_can_be_reached() {
        let mut app = app("numa");
        press(&mut app, KeyCode::Char('2'));
        press(&mut app, KeyCode::End);
        let sections = app.sections();
        let last = sections.last().unwrap().gauges.last().unwrap().name.clone();
        let screen = screen(&app, 80, 12);
        assert!(screen.contains(&last), "{screen}");
    }

    #[test]
    fn every_size_is_drawn() {
        for name in ["host-hvo", "guest-virtio-mem", "numa", "arm64-64k"] {
            let mut app = app(name);
            for tab in 0..TABS.len() {
                for (width, height) in
                    [(1, 1), (2, 3), (20, 5), (39, 10), (60, 15), (80, 24), (300, 100), (500, 2)]
                {
                    press(&mut app, KeyCode::End);
                    let text = screen(&app, width, height);
                    assert_eq!(text.lines().count(), usize::from(height), "{name} {tab}");
                }
                press(&mut app, KeyCode::Char('?'));
                screen(&app, 10, 4);
                press(&mut app, KeyCode::Tab);
                press(&mut app, KeyCode::Tab);
            }
        }
    }

    #[test]
    fn roots_without_anything_are_refused_before_the_screen_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let args = SurveyArgs { root: Some(dir.path().into()), no_scan: true, ..SurveyArgs::default() };
        assert!(gauges::read(&args).is_err());
    }
}
