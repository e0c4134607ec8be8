//! The comparison as tables.

use std::io::{self, Write};

use pagefold_picture::amount::{Units, Whole};
use pagefold_picture::text::{Share, printable};

use super::model::DiffReport;
use crate::table::{add, table, words};

/// Rows of "what became what" that are printed.
const SHOWN: usize = 12;

pub fn print(to: &mut impl Write, report: &DiffReport, units: Units) -> io::Result<()> {
    writeln!(to, "{}", printable(&report.a.line("A", units)))?;
    writeln!(to, "{}", printable(&report.b.line("B", units)))?;
    let bytes = |pages: u64| units.words(pages.saturating_mul(report.page_bytes));
    for (pages, side) in [(report.only_in_a, "A"), (report.only_in_b, "B")] {
        if pages > 0 {
            writeln!(to, "Only {side} has memory in {} pages ({}).", Whole(pages), bytes(pages))?;
        }
    }
    let all = report.states.iter().map(|row| row.a_pages).sum::<u64>();
    let changed = report.changed_pages;
    writeln!(
        to,
        "\nOf {} pages {} ({}, {}) are in another state; {} ({}) are in the same, in folios of another order.\n",
        Whole(all),
        Whole(changed),
        bytes(changed),
        Share(changed, all),
        Whole(report.regrouped_pages),
        bytes(report.regrouped_pages),
    )?;
    states(to, report, units)?;
    if !report.changes.is_empty() {
        changes(to, report, units)?;
    }
    orders(to, report, units)?;
    writeln!(to, "Pages, folios: counted from the flags of both.")
}

fn states(to: &mut impl Write, report: &DiffReport, units: Units) -> io::Result<()> {
    let bytes = |pages: u64| units.show(pages.saturating_mul(report.page_bytes));
    let mut table = table(&["state", "A", "B", "change", "gained", "lost"]);
    for row in &report.states {
        let change = signed(report, units, row.a_pages, row.b_pages);
        let cells =
            [bytes(row.a_pages), bytes(row.b_pages), change, bytes(row.gained_pages), bytes(row.lost_pages)];
        let [a, b, change, gained, lost] = cells;
        add(&mut table, [row.state.to_owned(), a, b, change, gained, lost]);
    }
    writeln!(to, "{table}\n")
}

fn changes(to: &mut impl Write, report: &DiffReport, units: Units) -> io::Result<()> {
    let mut table = table(&["was", "is", "pages", "memory"]);
    words(&mut table, &[1]);
    for row in report.changes.iter().take(SHOWN) {
        let pages = Whole(row.pages).to_string();
        add(&mut table, [row.from.into(), row.to.into(), pages, units.show(row.memory_bytes)]);
    }
    let rest = report.changes.iter().skip(SHOWN);
    if rest.len() > 0 {
        let (kinds, pages) = (rest.len(), rest.map(|row| row.pages).sum::<u64>());
        let memory = units.show(pages.saturating_mul(report.page_bytes));
        add(&mut table, [format!("{kinds} other changes"), String::new(), Whole(pages).to_string(), memory]);
    }
    writeln!(to, "{table}\n")
}

fn orders(to: &mut impl Write, report: &DiffReport, units: Units) -> io::Result<()> {
    let mut table = table(&["folios of", "A", "B", "change"]);
    for row in &report.orders {
        let folios = |pages: u64| Whole(pages >> row.order).to_string();
        let size = format!("{:>7}, order {}", units.size(row.folio_bytes), row.order);
        let change = signed(report, units, row.a_pages, row.b_pages);
        add(&mut table, [size, folios(row.a_pages), folios(row.b_pages), change]);
    }
    writeln!(to, "{table}\n")
}

/// A difference of pages, as memory.
fn signed(report: &DiffReport, units: Units, a: u64, b: u64) -> String {
    let bytes = units.show(a.abs_diff(b).saturating_mul(report.page_bytes));
    match a.cmp(&b) {
        std::cmp::Ordering::Less => format!("+{bytes}"),
        std::cmp::Ordering::Equal => "0".into(),
        std::cmp::Ordering::Greater => format!("-{bytes}"),
    }
}
