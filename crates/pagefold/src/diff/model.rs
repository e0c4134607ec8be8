//! The comparison, for people and for scripts.

use std::time::{Duration, UNIX_EPOCH};

use pagefold_machine::PageState;
use pagefold_picture::amount::Units;
use serde::Serialize;

use super::compare::Compared;
use crate::source::Found;

/// What a state is called where a machine has no memory.
pub const NOT_THERE: &str = "not there";

/// Everything a comparison found. The JSON is this, with `schema` raised whenever a field changes its meaning.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold diff"))]
pub struct DiffReport {
    pub schema: u32,
    pub page_bytes: u64,
    pub a: Side,
    pub b: Side,
    /// Pages that are in another state, or that only one of the two has (counted).
    pub changed_pages: u64,
    /// Pages in the same state, but in folios of another order (counted).
    pub regrouped_pages: u64,
    /// Pages that only one of the two has memory for (counted).
    pub only_in_a: u64,
    pub only_in_b: u64,
    pub states: Vec<DiffStateRow>,
    /// What became what: the most pages first.
    pub changes: Vec<ChangeRow>,
    pub orders: Vec<OrderRow>,
}

/// One of the two.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Side {
    pub origin: String,
    pub kernel: String,
    pub note: String,
    /// Seconds since 1970; 0 where nothing tells.
    pub recorded: u64,
    pub pages: u64,
    pub memory_bytes: u64,
}

/// A state: pages then, pages now, and what came and went.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiffStateRow {
    pub state: &'static str,
    pub a_pages: u64,
    pub b_pages: u64,
    pub gained_pages: u64,
    pub lost_pages: u64,
}

/// Pages that were one thing, and are another.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChangeRow {
    pub from: &'static str,
    pub to: &'static str,
    pub pages: u64,
    pub memory_bytes: u64,
}

/// Folios of one order.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OrderRow {
    pub order: u32,
    pub folio_bytes: u64,
    pub a_pages: u64,
    pub b_pages: u64,
}

impl DiffReport {
    pub fn new(a: &Found, b: &Found, page_bytes: u64, compared: &Compared) -> DiffReport {
        let sum = |wanted: &dyn Fn(Option<PageState>, Option<PageState>) -> bool| -> u64 {
            compared.pages.iter().filter(|&(&(from, to), _)| wanted(from, to)).map(|(_, pages)| pages).sum()
        };
        let states = PageState::ALL.into_iter().map(Some).chain([None]).map(|state| DiffStateRow {
            state: name(state),
            a_pages: sum(&|from, _| from == state),
            b_pages: sum(&|_, to| to == state),
            gained_pages: sum(&|from, to| to == state && from != state),
            lost_pages: sum(&|from, to| from == state && to != state),
        });
        let mut changes: Vec<ChangeRow> = compared
            .pages
            .iter()
            .filter(|&(&(from, to), _)| from != to)
            .map(|(&(from, to), &pages)| {
                let memory_bytes = pages.saturating_mul(page_bytes);
                ChangeRow { from: name(from), to: name(to), pages, memory_bytes }
            })
            .collect();
        changes.sort_by_key(|change| std::cmp::Reverse(change.pages));
        let [of_a, of_b] = compared.orders;
        let orders = (0..).zip(of_a.into_iter().zip(of_b)).map(|(order, (a_pages, b_pages))| OrderRow {
            order,
            folio_bytes: page_bytes << order,
            a_pages,
            b_pages,
        });
        DiffReport {
            schema: 1,
            page_bytes,
            a: Side::new(a, page_bytes),
            b: Side::new(b, page_bytes),
            changed_pages: sum(&|from, to| from != to),
            regrouped_pages: compared.regrouped,
            only_in_a: sum(&|from, to| from.is_some() && to.is_none()),
            only_in_b: sum(&|from, to| from.is_none() && to.is_some()),
            states: states.filter(|row| row.a_pages + row.b_pages > 0).collect(),
            changes,
            orders: orders.filter(|row| row.a_pages + row.b_pages > 0).collect(),
        }
    }
}

impl Side {
    fn new(found: &Found, page_bytes: u64) -> Side {
        let header = &found.machine.header;
        let pages = found.machine.pages();
        Side {
            origin: found.origin.clone(),
            kernel: header.kernel.clone(),
            note: header.note.clone(),
            recorded: header.recorded,
            pages,
            memory_bytes: pages.saturating_mul(page_bytes),
        }
    }

    /// Which it is, in a line.
    pub fn line(&self, letter: &str, units: Units) -> String {
        let mut line = format!("{letter}: {}, {}", self.origin, units.words(self.memory_bytes));
        if !self.kernel.is_empty() {
            line += &format!(", Linux {}", self.kernel);
        }
        if let Some(time) = time(self.recorded) {
            line += &format!(", {time}");
        }
        if !self.note.is_empty() {
            line += &format!(" ({})", self.note);
        }
        line
    }
}

/// Seconds since 1970 as a date and a time; `None` where nothing tells, or before or after all calendars.
fn time(seconds: u64) -> Option<String> {
    // The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    let time =
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).filter(|_| (1..=LAST).contains(&seconds))?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

fn name(state: Option<PageState>) -> &'static str {
    state.map_or(NOT_THERE, PageState::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_of_calendars_are_left_out() {
        assert_eq!(time(1_700_000_000).as_deref(), Some("2023-11-14T22:13:20Z"));
        assert_eq!((time(0), time(u64::MAX), time(253_402_300_800)), (None, None, None));
    }
}
