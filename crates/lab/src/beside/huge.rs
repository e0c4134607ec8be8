//! What huge pages keep of their descriptors: HVO of Linux where it has that, and folding.

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::table::{bytes, source};
use super::{Account, MeasuredGuest, TailSaving};

/// Bytes of a huge page's descriptors: 512 of 64 bytes.
const DESCRIPTORS: u64 = 512 * 64;
const PAGE: u64 = 4096;

/// A guest before and after huge pages of 2 MiB were allocated.
#[derive(Clone, Debug)]
pub struct HugePages {
    /// The guest.
    pub guest: String,
    /// Huge pages.
    pub count: u64,
    /// Whether tails' descriptors are given back.
    pub hvo: TailSaving,
    /// What it said before.
    pub before: Account,
    /// And with them.
    pub after: Account,
}

impl HugePages {
    /// Bytes of descriptors that these huge pages keep.
    pub fn kept(&self) -> u64 {
        let (before, after) = (self.before.descriptors, self.after.descriptors);
        match self.hvo {
            // They had none while they were free.
            TailSaving::Folds => after.saturating_sub(before),
            _ => (self.count * DESCRIPTORS).saturating_sub(before.saturating_sub(after)),
        }
    }
}

/// Allocates so many huge pages in a guest with nothing plugged.
///
/// # Errors
/// It has fewer, or does not answer.
pub fn allocate(guest: &mut dyn MeasuredGuest, count: u64) -> Result<HugePages> {
    let before = guest.account(0)?;
    let has = guest.huge_pages(count)?;
    ensure!(has == count, "{} has {has} of {count} huge pages", guest.name());
    let (after, hvo) = (guest.account(0)?, guest.hvo()?);
    Ok(HugePages { guest: guest.name(), count, hvo, before, after })
}

/// Rows as a Markdown table.
pub fn huge_table(rows: &[HugePages]) -> String {
    let mut text = "\
| guest | huge pages of 2 MiB | HVO | descriptors before | with them | kept, of 8 pages each |
|---|---|---|---|---|---|
"
    .to_owned();
    for row in rows {
        let hvo = match row.hvo {
            TailSaving::Missing => "not in this kernel",
            TailSaving::Off => "off",
            TailSaving::On => "on",
            TailSaving::Folds => "folds",
        };
        let kept = row.kept() as f64 / PAGE as f64 / row.count as f64;
        let (before, after) = (bytes(row.before.descriptors), bytes(row.after.descriptors));
        let (name, count, source) = (&row.guest, row.count, source(row.after.source));
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {count} | {hvo} | {before} | {after} ({source}) | {kept:.2} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beside::Source;
    use crate::{GIB, MIB};

    #[test]
    fn what_is_kept_is_told_in_pages() {
        let account = |descriptors| Account { descriptors, source: Source::Counted, total: GIB, free: 0 };
        let row = |hvo, before, after| HugePages {
            guest: "a guest".into(),
            count: 256,
            hvo,
            before: account(before),
            after: account(after),
        };
        // 1,792 pages of 2,048 are given back; none is; one is taken for each, and one for what leads there.
        assert_eq!(row(TailSaving::On, 16 * MIB, 9 * MIB).kept(), MIB);
        assert_eq!(row(TailSaving::Missing, 16 * MIB, 16 * MIB).kept(), 8 * MIB);
        assert_eq!(row(TailSaving::Folds, 128 << 10, 128 * 1024 + MIB + PAGE).kept(), MIB + PAGE);
        let text = huge_table(&[row(TailSaving::Missing, 16 * MIB, 16 * MIB)]);
        assert_eq!(
            text.lines().last().unwrap(),
            "| a guest | 256 | not in this kernel | 16 MiB | 16 MiB (counted) | 8.00 |"
        );
    }
}
