//! What gauges were, and how fast they move.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Readings that are kept.
const KEPT: usize = 240;

/// Values of gauges over time.
#[derive(Clone, Debug, Default)]
pub struct History {
    times: VecDeque<Duration>,
    /// By gauge; the last value is of the last time, those before of the times before.
    values: BTreeMap<String, VecDeque<u64>>,
}

impl History {
    /// Adds the values of all gauges at a time. Gauges that are gone are forgotten.
    pub fn add(&mut self, at: Duration, values: impl Iterator<Item = (String, u64)>) {
        self.times.push_back(at);
        let mut before = std::mem::take(&mut self.values);
        for (key, value) in values {
            let mut past = before.remove(&key).unwrap_or_default();
            past.push_back(value);
            if past.len() > KEPT {
                past.pop_front();
            }
            self.values.insert(key, past);
        }
        if self.times.len() > KEPT {
            self.times.pop_front();
        }
    }

    /// By how much a gauge moves in a second, from the last two readings; `None` before there are two.
    pub fn rate(&self, key: &str) -> Option<f64> {
        let values = self.values.get(key)?;
        let (last, before) = (values.len().checked_sub(1)?, values.len().checked_sub(2)?);
        let (to, from) = (self.times.len().checked_sub(1)?, self.times.len().checked_sub(2)?);
        let seconds = self.times.get(to)?.saturating_sub(*self.times.get(from)?).as_secs_f64();
        let change = *values.get(last)? as f64 - *values.get(before)? as f64;
        (seconds > 0.0).then(|| change / seconds)
    }

    /// The last values of a gauge as bars, `width` characters: the lowest is lowest, the highest highest.
    pub fn sparkline(&self, key: &str, width: usize) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let empty = VecDeque::new();
        let values = self.values.get(key).unwrap_or(&empty);
        let shown: Vec<u64> = values.iter().copied().skip(values.len().saturating_sub(width)).collect();
        let (low, high) =
            (shown.iter().min().copied().unwrap_or(0), shown.iter().max().copied().unwrap_or(0));
        let bar = |value: u64| {
            let steps = u128::from(value - low) * (BARS.len() as u128 - 1);
            BARS[(steps / u128::from((high - low).max(1))) as usize]
        };
        let bars: String = shown.iter().map(|&value| bar(value)).collect();
        format!("{:>width$}", bars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(values: &[u64]) -> History {
        let mut history = History::default();
        for (at, &value) in (0..).zip(values) {
            history.add(Duration::from_secs(2 * at), [("a".to_owned(), value)].into_iter());
        }
        history
    }

    #[test]
    fn rates_are_by_the_second() {
        assert_eq!(history(&[5]).rate("a"), None);
        assert_eq!(history(&[5, 9]).rate("a"), Some(2.0));
        assert_eq!(history(&[0, 9, 5]).rate("a"), Some(-2.0));
        assert_eq!(history(&[0, 9]).rate("b"), None);
        // Two readings at one moment say nothing.
        let mut twice = history(&[1]);
        twice.add(Duration::ZERO, [("a".to_owned(), 9)].into_iter());
        assert_eq!(twice.rate("a"), None);
    }

    #[test]
    fn bars_reach_from_the_lowest_to_the_highest() {
        assert_eq!(history(&[0, 50, 100]).sparkline("a", 5), "  ▁▄█");
        assert_eq!(history(&[7, 7, 7]).sparkline("a", 3), "▁▁▁");
        assert_eq!(history(&[9, 0, u64::MAX]).sparkline("a", 2), "▁█");
        assert_eq!(history(&[1]).sparkline("b", 3), "   ");
        assert_eq!(history(&[1]).sparkline("a", 0), "");
    }

    #[test]
    fn it_forgets() {
        let values: Vec<u64> = (0..1000).collect();
        let mut history = history(&values);
        assert_eq!(history.times.len(), KEPT);
        assert_eq!(history.values["a"].len(), KEPT);
        assert_eq!(history.rate("a"), Some(0.5));
        history.add(Duration::from_secs(2000), [("b".to_owned(), 1)].into_iter());
        assert_eq!(history.rate("a"), None);
        assert!(!history.values.contains_key("a"));
    }
}
