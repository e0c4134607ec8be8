//! Rows of guests as a Markdown table.

use std::fmt::Write;

use super::{ResizeOutcome, Source};
use crate::{GIB, MIB};

const HEAD: &str = "\
| guest | asked of the device | plugged then | million instructions (+ repetitions) | wall s | descriptors | total | free |
|---|---|---|---|---|---|---|---|
";

/// A table, of guests one after the other.
pub fn table(rows: &[ResizeOutcome]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let asked = match row.pins {
            0 => format!("{} → {}", bytes(row.from), bytes(row.asked)),
            pins => format!("{} → {}, {pins} pages pinned", bytes(row.from), bytes(row.asked)),
        };
        let settled = match &row.settled {
            Some(settled) => format!(
                "{}{} | {:.2} (+{:.0}) | {:.2}",
                bytes(settled.plugged),
                share(row, settled.plugged),
                settled.executed.instructions as f64 / 1e6,
                settled.executed.repetitions as f64 / 1e6,
                settled.wall.as_secs_f64(),
            ),
            None => "| |".to_owned(),
        };
        let account = match &row.account {
            Ok(account) => format!(
                "{} ({}) | {} | {}",
                bytes(account.descriptors),
                source(account.source),
                bytes(account.total),
                bytes(account.free),
            ),
            Err(reason) => format!("**the guest ended**: {reason} | |"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {asked} | {settled} | {account} |", row.guest);
    }
    text
}

/// Of a request that was not met, how much of it was.
fn share(row: &ResizeOutcome, plugged: u64) -> String {
    let (asked, done) = (row.from.abs_diff(row.asked), row.from.abs_diff(plugged));
    if plugged == row.asked || asked == 0 {
        return String::new();
    }
    format!(": {:.1} % of it", done as f64 * 100.0 / asked as f64)
}

/// How a table calls it.
pub(super) fn source(source: Source) -> &'static str {
    match source {
        Source::Counted => "counted",
        Source::Computed => "computed",
        Source::Measured => "measured",
    }
}

/// Whole GiB, or MiB.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        _ if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ if bytes < MIB => format!("{} KiB", bytes / 1024),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pagefold_qemu::{Executed, ResizeFigures};

    use super::*;
    use crate::beside::Account;

    #[test]
    fn a_request_not_met_says_how_much_of_it_was() {
        let executed = Executed { instructions: 12_340_000, repetitions: 7_000_000 };
        let settled = ResizeFigures { plugged: 64 * MIB, wall: Duration::from_millis(1250), executed };
        let account =
            Account { descriptors: 64 * MIB + 512 * 1024, source: Source::Computed, total: GIB, free: 0 };
        let row = ResizeOutcome {
            guest: "a guest".into(),
            from: 4 * GIB,
            asked: 0,
            pins: 32,
            settled: Some(settled),
            account: Ok(account),
        };
        let line = |row: &ResizeOutcome| table(std::slice::from_ref(row)).lines().last().unwrap().to_owned();
        assert_eq!(
            line(&row),
            "| a guest | 4 GiB → 0, 32 pages pinned | 64 MiB: 98.4 % of it | 12.34 (+7) | 1.25 | 64.5 MiB (computed) | \
             1 GiB | 0 |"
        );
        let met = ResizeOutcome {
            pins: 0,
            settled: Some(ResizeFigures { plugged: 0, ..settled }),
            account: Ok(Account { source: Source::Counted, ..account }),
            ..row.clone()
        };
        assert_eq!(
            line(&met),
            "| a guest | 4 GiB → 0 | 0 | 12.34 (+7) | 1.25 | 64.5 MiB (counted) | 1 GiB | 0 |"
        );
        let ended = ResizeOutcome { settled: None, account: Err("kernel panic".into()), ..met };
        assert_eq!(line(&ended), "| a guest | 4 GiB → 0 | | | | **the guest ended**: kernel panic | | |");
        let columns = |line: &str| line.matches('|').count();
        assert_eq!(columns(&line(&ended)), columns(HEAD.lines().next().unwrap()));
    }
}
