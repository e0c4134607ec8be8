//! What lies in a memory block, for people.

use std::io::{self, Write};

use pagefold_machine::kernel::Has;

use super::model::{BlockAnswer, OwnerRow};
use crate::lines::{text_width, wrap};
use crate::table::{add, fit, table, words};
use pagefold_picture::amount::{Units, Whole};

pub fn print(answer: &BlockAnswer, units: Units, to: &mut impl Write) -> io::Result<()> {
    let mut text = match answer.can {
        Has::Yes => format!("Memory block {} could be taken offline.", answer.block),
        Has::No => format!("Memory block {} cannot be taken offline as it is.", answer.block),
        Has::Unknown => format!("Whether memory block {} can be taken offline is not known.", answer.block),
    };
    for reason in &answer.reasons {
        text.push(' ');
        text.push_str(reason);
    }
    writeln!(to, "{}\n", wrap(&text, text_width()))?;
    let mut place = Vec::new();
    place.extend(answer.state.map(|state| state.name().to_owned()));
    place.extend(answer.zone.clone());
    place.extend(answer.node.map(|node| format!("node {node}")));
    writeln!(
        to,
        "block     {} of {}: {}\n          {} from address {:#x}{}\n",
        answer.block,
        answer.origin,
        if place.is_empty() { "nothing tells its state".into() } else { place.join(", ") },
        units.words(answer.size),
        answer.address,
        if answer.size_known { "" } else { " (a section is assumed)" }
    )?;
    if !answer.states.is_empty() {
        let mut table = table(&["in it", "pages", "memory", "can move"]);
        words(&mut table, &[3]);
        for row in &answer.states {
            let can = row.can_move.name();
            add(
                &mut table,
                [row.state.name().into(), Whole(row.pages).to_string(), units.show(row.memory), can.into()],
            );
        }
        writeln!(to, "{}\nCounted from page flags.\n", fit(&mut table))?;
    }
    if !answer.stuck.is_empty() {
        let mut table = table(&["cannot move", "from page", "pages"]);
        for row in &answer.stuck {
            add(&mut table, [row.state.into(), format!("{:#x}", row.pfn), Whole(row.pages).to_string()]);
        }
        writeln!(to, "{}", fit(&mut table))?;
        let more = answer.stuck_ranges.saturating_sub(answer.stuck.len() as u64);
        writeln!(to, "The longest of {} ranges; {} more.\n", Whole(answer.stuck_ranges), Whole(more))?;
    }
    owners("allocated by", "function", &answer.allocated, units, to)?;
    if !answer.allocated.is_empty() {
        writeln!(to, "Pages that cannot move. Counted from page_owner.\n")?;
    }
    owners("mapped by", "file or area", &answer.mapped, units, to)?;
    if !answer.mapped.is_empty() {
        writeln!(to, "Counted from /proc/*/pagemap; a page that several have mapped counts for each.\n")?;
    }
    if let Some(pages) = answer.unmapped.filter(|&pages| pages > 0) {
        writeln!(to, "Of what can move, no process has these pages mapped: {}.\n", Whole(pages))?;
    }
    if !answer.not_found.is_empty() {
        writeln!(to, "Not found out:")?;
        for line in &answer.not_found {
            writeln!(to, "  {line}")?;
        }
    }
    Ok(())
}

fn owners(name: &str, what: &str, rows: &[OwnerRow], units: Units, to: &mut impl Write) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = table(&[name, "pages", "memory", what]);
    words(&mut table, &[3]);
    for row in rows {
        let cells =
            [row.owner.clone(), Whole(row.pages).to_string(), units.show(row.memory), row.what.clone()];
        add(&mut table, cells);
    }
    writeln!(to, "{}", fit(&mut table))
}
