//! Rows of guests as a Markdown table.

use std::fmt::Write;

use super::{Row, Source};
use crate::{GIB, MIB};

const HEAD: &str = "\
| guest | asked of the device | plugged then | million instructions (+ repetitions) | wall s | descriptors | total | free |
|---|---|---|---|---|---|---|---|
";

/// A table, of guests one after the other.
pub fn table(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let pins = match row.pins {
            0 => String::new(),
            pins => format!(", {pins} pages pinned"),
        };
        let executed = row.settled.executed;
        let source = match row.account.source {
            Source::Counted => "counted",
            Source::Computed => "computed",
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} → {}{pins} | {}{} | {:.1} (+{:.0}) | {:.2} | {} ({source}) | {} | {} |",
            row.guest,
            bytes(row.from),
            bytes(row.asked),
            bytes(row.settled.plugged),
            share(row),
            executed.instructions as f64 / 1e6,
            executed.repetitions as f64 / 1e6,
            row.settled.wall.as_secs_f64(),
            bytes(row.account.descriptors),
            bytes(row.account.total),
            bytes(row.account.free),
        );
    }
    text
}

/// Of a request that was not met, how much of it was.
fn share(row: &Row) -> String {
    let (asked, done) = (row.from.abs_diff(row.asked), row.from.abs_diff(row.settled.plugged));
    if row.settled.plugged == row.asked || asked == 0 {
        return String::new();
    }
    format!(": {:.1} % of it", done as f64 * 100.0 / asked as f64)
}

/// Whole GiB, or MiB.
fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        _ if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pagefold_qemu::{Executed, Settled};

    use super::*;
    use crate::beside::Account;

    #[test]
    fn a_request_not_met_says_how_much_of_it_was() {
        let executed = Executed { instructions: 12_340_000, repetitions: 7_000_000 };
        let settled = Settled { plugged: 64 * MIB, wall: Duration::from_millis(1250), executed };
        let account =
            Account { descriptors: 64 * MIB + 512 * 1024, source: Source::Computed, total: GIB, free: 0 };
        let mut row = Row { guest: "a guest".into(), from: 4 * GIB, asked: 0, pins: 32, settled, account };
        let line = |row: &Row| table(std::slice::from_ref(row)).lines().last().unwrap().to_owned();
        assert_eq!(
            line(&row),
            "| a guest | 4 GiB → 0, 32 pages pinned | 64 MiB: 98.4 % of it | 12.3 (+7) | 1.25 | 64.5 MiB (computed) | \
             1 GiB | 0 |"
        );
        row.settled.plugged = 0;
        row.pins = 0;
        row.account.source = Source::Counted;
        assert_eq!(
            line(&row),
            "| a guest | 4 GiB → 0 | 0 | 12.3 (+7) | 1.25 | 64.5 MiB (counted) | 1 GiB | 0 |"
        );
    }
}
