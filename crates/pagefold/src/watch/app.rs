//! What is shown, and what keys do to it. No terminal is needed to know.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::gauges::{Gauge, GaugeSection, Reading, TABS};
use super::history::History;

/// Intervals that `+` and `-` step through, in milliseconds.
const INTERVALS: [u64; 9] = [100, 250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Stop for a while, as a shell's job.
    Suspend,
    /// Read now.
    Read,
    /// The interval has changed.
    Interval,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct App {
    reading: Option<Reading>,
    history: History,
    pub error: Option<String>,
    pub interval: Duration,
    pub is_paused: bool,
    pub has_help: bool,
    pub tab: usize,
    /// Lines that each tab is scrolled down by.
    scrolled: [u16; TABS.len()],
}

impl App {
    /// Nothing yet.
    pub fn new(interval: Duration) -> App {
        App {
            reading: None,
            history: History::default(),
            error: None,
            interval,
            is_paused: false,
            has_help: false,
            tab: 0,
            scrolled: [0; TABS.len()],
        }
    }

    /// Takes a reading, at a time since the beginning.
    pub fn read(&mut self, reading: Reading, at: Duration) {
        let values = (0..).zip(&reading.tabs).flat_map(|(tab, sections)| {
            sections.iter().flat_map(move |section| {
                section.gauges.iter().map(move |gauge| (key(tab, section, gauge), gauge.value.number()))
            })
        });
        self.history.add(at, values);
        self.reading = Some(reading);
        self.error = None;
    }

    /// A reading failed; the last one stays.
    pub fn failed(&mut self, error: String) {
        self.error = Some(error);
    }

    /// What a key does.
    pub fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if self.has_help && !matches!(key.code, KeyCode::Char('q' | 'c')) {
            // Any key closes it.
            self.has_help = false;
            return None;
        }
        let page = 10;
        match key.code {
            KeyCode::Char('c' | 'd') if has_control => return Some(Action::Quit),
            KeyCode::Char('z') if has_control => return Some(Action::Suspend),
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Some(Action::Quit),
            KeyCode::Char('?' | 'h' | 'H') | KeyCode::F(1) => self.has_help = true,
            KeyCode::Char('p' | 'P' | ' ') => {
                self.is_paused = !self.is_paused;
                return (!self.is_paused).then_some(Action::Read);
            }
            KeyCode::Char('r' | 'R') => return Some(Action::Read),
            KeyCode::Char('+' | '=') => return self.step(true),
            KeyCode::Char('-' | '_') => return self.step(false),
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.tab = (self.tab + 1) % TABS.len(),
            KeyCode::BackTab | KeyCode::Left => self.tab = (self.tab + TABS.len() - 1) % TABS.len(),
            KeyCode::Char(digit @ '1'..='5') => self.tab = digit as usize - '1' as usize,
            KeyCode::Down | KeyCode::Char('j') => self.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll(-1),
            KeyCode::PageDown => self.scroll(page),
            KeyCode::PageUp => self.scroll(-page),
            KeyCode::Home | KeyCode::Char('g') => self.scrolled[self.tab] = 0,
            KeyCode::End | KeyCode::Char('G') => self.scroll(i32::from(u16::MAX)),
            _ => {}
        }
        None
    }

    /// Lines of the tab that is shown, without those of the screen.
    fn scroll(&mut self, lines: i32) {
        let last = i32::from(self.lines().saturating_sub(1));
        let to = (i32::from(self.scrolled[self.tab]) + lines).clamp(0, last);
        self.scrolled[self.tab] = u16::try_from(to).unwrap_or(0);
    }

    /// Lines that the tab's sections take: a headline, gauges, notes, a blank.
    fn lines(&self) -> u16 {
        let lines: usize =
            self.sections().iter().map(|section| section.gauges.len() + section.notes.len() + 2).sum();
        u16::try_from(lines).unwrap_or(u16::MAX)
    }

    fn step(&mut self, longer: bool) -> Option<Action> {
        let now = self.interval.as_millis() as u64;
        let next = match longer {
            true => INTERVALS.into_iter().find(|&other| other > now),
            false => INTERVALS.into_iter().rfind(|&other| other < now),
        };
        self.interval = Duration::from_millis(next?);
        Some(Action::Interval)
    }

    /// Which machine.
    pub fn title(&self) -> &str {
        self.reading.as_ref().map_or("", |reading| &reading.title)
    }

    /// What the tab shows.
    pub fn sections(&self) -> &[GaugeSection] {
        self.reading.as_ref().map_or(&[], |reading| &reading.tabs[self.tab])
    }

    /// Lines it is scrolled down by, where `height` lines fit: no further than its end.
    pub fn scrolled(&self, height: u16) -> u16 {
        self.scrolled[self.tab].min((self.lines().saturating_sub(1)).saturating_sub(height))
    }

    /// A gauge's change in a second.
    pub fn rate(&self, section: &GaugeSection, gauge: &Gauge) -> Option<f64> {
        self.history.rate(&key(self.tab, section, gauge))
    }

    /// A gauge's past.
    pub fn sparkline(&self, section: &GaugeSection, gauge: &Gauge, width: usize) -> String {
        self.history.sparkline(&key(self.tab, section, gauge), width)
    }
}

/// A gauge's name among all.
fn key(tab: usize, section: &GaugeSection, gauge: &Gauge) -> String {
    // HVO's state stands in its headline, and may change.
    let title = section.title.split(':').next().unwrap_or_default();
    format!("{tab}/{title}/{}", gauge.name)
}

#[cfg(test)]
mod tests {
    use super::super::gauges::GaugeValue;
    use super::*;

    fn app() -> App {
        let section = |title: &str, gauges: u64| GaugeSection {
            title: title.into(),
            gauges: (0..gauges)
                .map(|n| Gauge { name: n.to_string(), value: GaugeValue::Count(n), how: "counted" })
                .collect(),
            notes: Vec::new(),
        };
        let mut app = App::new(Duration::from_secs(2));
        let tabs = [vec![section("a", 30), section("b", 10)], vec![section("c", 1)], vec![], vec![], vec![]];
        app.read(Reading { title: "a host".into(), tabs }, Duration::ZERO);
        app
    }

    fn press(app: &mut App, code: KeyCode) -> Option<Action> {
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn ways_out() {
        for code in [KeyCode::Char('q'), KeyCode::Char('Q'), KeyCode::Esc] {
            assert_eq!(press(&mut app(), code), Some(Action::Quit));
        }
        for letter in ['c', 'd'] {
            let key = KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
            assert_eq!(app().key(key), Some(Action::Quit));
            assert_eq!(press(&mut app(), KeyCode::Char(letter)), None);
        }
        let suspend = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::CONTROL);
        assert_eq!(app().key(suspend), Some(Action::Suspend));
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(app().key(released), None);
    }

    #[test]
    fn pausing_and_going_on() {
        let mut app = app();
        assert_eq!(press(&mut app, KeyCode::Char('p')), None);
        assert!(app.is_paused);
        // Still there: a reading on request, and the other keys.
        assert_eq!(press(&mut app, KeyCode::Char('r')), Some(Action::Read));
        assert_eq!(press(&mut app, KeyCode::Char(' ')), Some(Action::Read));
        assert!(!app.is_paused);
    }

    #[test]
    fn intervals_have_ends() {
        let mut app = app();
        assert_eq!(press(&mut app, KeyCode::Char('+')), Some(Action::Interval));
        assert_eq!(app.interval, Duration::from_secs(5));
        for _ in 0..20 {
            press(&mut app, KeyCode::Char('-'));
        }
        assert_eq!(app.interval, Duration::from_millis(100));
        assert_eq!(press(&mut app, KeyCode::Char('-')), None);
        for _ in 0..20 {
            press(&mut app, KeyCode::Char('='));
        }
        assert_eq!(app.interval, Duration::from_secs(60));
        // From one of its own it goes to the next.
        let mut app = App::new(Duration::from_millis(700));
        press(&mut app, KeyCode::Char('-'));
        assert_eq!(app.interval, Duration::from_millis(500));
    }

    #[test]
    fn tabs_go_round() {
        let mut app = app();
        press(&mut app, KeyCode::BackTab);
        assert_eq!(app.tab, TABS.len() - 1);
        press(&mut app, KeyCode::Tab);
        press(&mut app, KeyCode::Right);
        assert_eq!(app.tab, 1);
        press(&mut app, KeyCode::Left);
        assert_eq!(app.tab, 0);
        press(&mut app, KeyCode::Char('5'));
        assert_eq!(app.tab, 4);
        press(&mut app, KeyCode::Char('6'));
        assert_eq!(app.tab, 4);
    }

    #[test]
    fn scrolling_stays_within_the_tab_and_each_tab_keeps_its_place() {
        let mut app = app();
        press(&mut app, KeyCode::Up);
        assert_eq!(app.scrolled(10), 0);
        press(&mut app, KeyCode::PageDown);
        assert_eq!(app.scrolled(10), 10);
        press(&mut app, KeyCode::Tab);
        assert_eq!(app.scrolled(10), 0);
        press(&mut app, KeyCode::BackTab);
        assert_eq!(app.scrolled(10), 10);
        press(&mut app, KeyCode::End);
        // 44 lines, the last of them blank.
        assert_eq!(app.scrolled(10), 33);
        assert_eq!(app.scrolled(100), 0);
        press(&mut app, KeyCode::Home);
        assert_eq!(app.scrolled(10), 0);
    }

    #[test]
    fn any_key_closes_the_help() {
        let mut app = app();
        press(&mut app, KeyCode::Char('?'));
        assert!(app.has_help);
        assert_eq!(press(&mut app, KeyCode::Esc), None);
        assert!(!app.has_help);
        press(&mut app, KeyCode::Char('h'));
        assert_eq!(press(&mut app, KeyCode::Char('q')), Some(Action::Quit));
    }

    #[test]
    fn a_failed_reading_leaves_the_last_one() {
        let mut app = app();
        app.failed("gone".into());
        assert_eq!((app.error.as_deref(), app.title()), (Some("gone"), "a host"));
        assert_eq!(app.sections().len(), 2);
    }
}
