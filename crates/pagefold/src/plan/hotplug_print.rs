//! The answer to whether a guest can grow, for people.

use std::io::{self, Write};

use pagefold_picture::amount::{Units, Whole};

use super::hotplug::{HotplugAnswer, Warning};
use super::print::{abilities, told};
use crate::lines::{text_width, wrap};
use crate::report::model::How;
use crate::table::{add, fit, table, words};

pub fn print(answer: &HotplugAnswer, units: Units, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}\n", wrap(&verdict(answer, units), text_width()))?;
    writeln!(
        to,
        "guest     {}: {} in kernel zones, {} in ZONE_MOVABLE\n          {}\n          {}",
        answer.origin,
        units.words(answer.memory),
        units.words(answer.movable),
        told(&answer.free, "free", units),
        told(&answer.reserve, "must stay", units),
    )?;
    writeln!(
        to,
        "goes to   {} ({})\nneeds     {} of descriptors ({}) for {} blocks of {}\n          {} besides",
        answer.zone,
        answer.zone_from,
        units.words(answer.descriptors.bytes),
        answer.descriptors.how.name(),
        Whole(answer.blocks),
        units.size(answer.block),
        units.words(answer.objects.bytes),
    )?;
    if let Some(page_ext) = answer.page_ext.as_ref().filter(|figure| figure.bytes > 0) {
        writeln!(to, "          {} of page extensions ({})", units.words(page_ext.bytes), page_ext.from)?;
    }
    writeln!(
        to,
        "later     {} of page tables, if all that goes to ZONE_MOVABLE is mapped\n",
        units.words(answer.page_tables.bytes)
    )?;
    if let Some(kernel) = &answer.kernel {
        abilities(kernel, units, to)?;
    }
    let mut table = table(&["way", "works", "needs first", "largest step", "in Linux"]);
    words(&mut table, &[1, 4]);
    for way in &answer.ways {
        let largest = way.largest.map_or_else(|| "no limit".into(), |bytes| units.show(bytes));
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        add(&mut table, [way.name.into(), yes(way.works), units.show(way.needs), largest, yes(way.in_linux)]);
    }
    writeln!(to, "{}", fit(&mut table))?;
    writeln!(
        to,
        "Needs: computed. Besides descriptors, page tables and objects:\n{}.\n",
        answer.objects.from
    )?;
    for way in &answer.ways {
        writeln!(to, "{}: {}", way.name, way.note)?;
    }
    if answer.free.how != How::Given {
        writeln!(
            to,
            "Free memory only. Linux may reclaim page cache for more; that can take long, or fail."
        )?;
    }
    if let Some(pieces) = answer.in_one_piece {
        let wanted = answer.blocks.saturating_mul((answer.block >> 27).max(1));
        if pieces < wanted {
            writeln!(
                to,
                "Only {} of {} pieces of descriptors find a free block of their size; the others are made of\n\
                 single pages, with a page table each.",
                Whole(pieces),
                Whole(wanted)
            )?;
        }
    }
    Ok(())
}

fn verdict(answer: &HotplugAnswer, units: Units) -> String {
    let more = units.words(answer.added);
    let zone = answer.zone;
    let rounded =
        if answer.added == answer.asked { String::new() } else { format!(" ({more} in whole blocks)") };
    let asked = units.words(answer.asked);
    let mut text = if answer.works {
        let yes = if answer.warnings.is_empty() { "Yes: this" } else { "Yes, but with a risk: this" };
        format!("{yes} guest can add {asked}{rounded} to {zone}, as Linux is.")
    } else {
        format!(
            "No: this guest cannot add {asked}{rounded} to {zone}, as Linux is. It needs {} more of free memory first.",
            units.words(answer.missing)
        )
    };
    for warning in &answer.warnings {
        text.push(' ');
        text.push_str(&warn(*warning, answer, units));
    }
    if !answer.works {
        if let Some(first) = answer.steps.first() {
            let blocks = |step: u64| {
                let blocks = step / answer.block.max(1);
                format!(
                    "{} ({} block{})",
                    units.words(step),
                    Whole(blocks),
                    if blocks == 1 { "" } else { "s" }
                )
            };
            text.push_str(&format!(" The largest step that works is {}", blocks(*first)));
            match (answer.steps_reach, answer.steps.len()) {
                (true, 2..) => {
                    let steps: Vec<String> = answer.steps.iter().map(|step| blocks(*step)).collect();
                    text.push_str(&format!(
                        "; all of it works in steps, each made online in a kernel zone before the next: {}.",
                        steps.join(", then ")
                    ));
                }
                _ => text.push('.'),
            }
        } else {
            text.push_str(" Not a single block fits.");
        }
    }
    if let Some(folding) = answer.ways.iter().find(|way| !way.in_linux) {
        let can = if folding.works { "it could" } else { "it could not either" };
        text.push_str(&format!(
            " Under folding {can}: {} needed first (not in Linux today).",
            units.words(folding.needs)
        ));
    }
    text
}

/// What may go wrong, in a sentence or two.
pub fn warn(warning: Warning, answer: &HotplugAnswer, units: Units) -> String {
    match warning {
        Warning::StaysOffline => {
            "Its blocks would stay offline: auto_online_blocks is offline, so nothing uses them \
                                  until somebody writes online to their state files."
                .into()
        }
        Warning::Ratio => format!(
            "ZONE_MOVABLE would be {} times as large as its kernel zones; {} is what Linux's own policy would allow ({}). \
             Page tables, slab and pinned pages lie in kernel zones only: those may run out while memory is free.",
            times(answer.ratio),
            times(answer.ratio_limit),
            answer.ratio_from
        ),
        Warning::PageTables => format!(
            "Mapped in small pages, it takes up to {} of page tables from kernel zones, which would leave less than must \
             stay.",
            units.words(answer.page_tables.bytes)
        ),
        Warning::PageExtensions => {
            "Page extensions are on, and this kernel does not tell how large: each block takes \
                                    that much more."
                .into()
        }
        Warning::NodeRatio => {
            "The node that it belongs to has too little kernel memory: auto_movable_numa_aware is on, so \
             what is above the ratio there goes to a kernel zone, and cannot be taken away again for sure."
                .into()
        }
        Warning::NodeUnknown => {
            "auto_movable_numa_aware is on: the ratio must hold for its node too. Name it with --node.".into()
        }
    }
}

/// Percent as a factor.
fn times(percent: u64) -> String {
    match percent % 100 {
        0 => (percent / 100).to_string(),
        rest => format!("{}.{rest:02}", percent / 100),
    }
}
