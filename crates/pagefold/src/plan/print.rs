//! Plans for people.

use std::io::{self, Write};

use super::Plan;
use super::args::Online;
use super::hotplug::Answer;
use super::whatif::{Availability, MEMDESC_OBJECT, Scenario};
use crate::report::model::{How, Interval};
use crate::report::percent;
use crate::size::{Units, Whole};
use crate::table::{add, table, words, wrap};

const WIDTH: usize = 100;

pub fn plan(plan: &Plan, units: Units, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}\n", wrap(&plan_answer(plan, units), WIDTH))?;
    let pools: Vec<String> = plan
        .pools
        .iter()
        .filter(|pool| pool.pages > 0)
        .map(|pool| format!("{} of {}", Whole(pool.pages), units.size(pool.size)))
        .collect();
    let pools = if pools.is_empty() { "none".into() } else { pools.join(", ") };
    writeln!(to, "machine   {}: {}; huge pages: {pools}\n", plan.origin, units.words(plan.memory))?;
    let mut table = table(&["descriptors", "bytes", "of memory", "saved", "in Linux"]);
    words(&mut table, &[4]);
    for scenario in &plan.scenarios {
        add(
            &mut table,
            [
                scenario.name.clone(),
                range(&scenario.descriptors, units),
                format!("{:.2} %", percent(scenario.descriptors.max, plan.memory)),
                saved(scenario, units),
                scenario.in_linux.name().into(),
            ],
        );
    }
    writeln!(to, "{}", table.trim_fmt())?;
    let folios = match plan.folios.is_exact() {
        true => Whole(plan.folios.max).to_string(),
        false => format!("{} to {}", Whole(plan.folios.min), Whole(plan.folios.max)),
    };
    let assumed = format!(
        "All computed. memdesc: its words, and {MEMDESC_OBJECT} bytes (an assumption) for each of {folios} folios in \
         use ({}).",
        plan.folios.from
    );
    writeln!(to, "{}\n", wrap(&assumed, WIDTH))?;
    for scenario in &plan.scenarios {
        if !scenario.note.is_empty() {
            writeln!(to, "{}: {}", scenario.name, scenario.note)?;
        }
        for time in &scenario.time {
            let text = format!("{} {} ({}: {})", scenario.name, time.what, time.how.name(), time.from);
            writeln!(to, "{}", wrap(&text, WIDTH))?;
        }
    }
    writeln!(to)?;
    blocks(plan, units, to)
}

fn plan_answer(plan: &Plan, units: Units) -> String {
    let of = |name: &str| plan.scenarios.iter().find(|scenario| scenario.name.starts_with(name));
    let mut text = String::new();
    if let Some(full) = of("as Linux") {
        text.push_str(&format!(
            "Descriptors of {} are {} ({:.2} %).",
            units.words(plan.memory),
            units.words(full.descriptors.max),
            percent(full.descriptors.max, plan.memory)
        ));
    }
    if let Some(hvo) = of("HVO") {
        text.push_str(&match (hvo.in_linux, hvo.saved_max) {
            (Availability::NotHere, _) => " This kernel has no HVO.".into(),
            (_, _) if plan.pools.is_empty() => " HVO saves nothing without huge pages.".into(),
            (_, ..=0) => " HVO saves all that it can already.".into(),
            (_, bytes) => {
                let up_to = if hvo.saved_min == bytes { "" } else { "up to " };
                format!(
                    " HVO on all huge pages saves {up_to}{}, in Linux today.",
                    units.words(bytes.unsigned_abs())
                )
            }
        });
    }
    if let Some(folding) = of("folding") {
        let exact = folding.descriptors.is_exact();
        text.push_str(&format!(
            " Folding saves {}{}, not in Linux today.",
            if exact { "" } else { "at least " },
            units.words(folding.saved_min.max(0).unsigned_abs())
        ));
    }
    text
}

fn range(interval: &Interval, units: Units) -> String {
    let (min, max) = (units.show(interval.min), units.show(interval.max));
    if min == max { max } else { format!("{min} to {max}") }
}

fn saved(scenario: &Scenario, units: Units) -> String {
    let signed = |bytes: i64| {
        let sign = if bytes < 0 { "-" } else { "" };
        format!("{sign}{}", units.show(bytes.unsigned_abs()))
    };
    let (min, max) = (signed(scenario.saved_min), signed(scenario.saved_max));
    if min == max { max } else { format!("{min} to {max}") }
}

fn blocks(plan: &Plan, units: Units, to: &mut impl Write) -> io::Result<()> {
    let mut table =
        table(&["memory blocks of", "blocks", "to add one", "2 MiB stuck in each", "Linux", "folded"]);
    for row in &plan.block_sizes {
        add(
            &mut table,
            [
                units.size(row.size),
                Whole(row.blocks).to_string(),
                units.show(row.descriptors),
                units.show(row.stuck),
                units.show(row.stuck_linux),
                units.show(row.stuck_folded),
            ],
        );
    }
    writeln!(to, "{}", table.trim_fmt())?;
    writeln!(
        to,
        "Computed. The worst case of shrinking: one sub-block of 2 MiB stays plugged in every block. Then so\n\
         much is in use, and so much are its descriptors, in Linux and folded (not in Linux today)."
    )
}

pub fn answer(answer: &Answer, online: Online, units: Units, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}\n", wrap(&verdict(answer, online, units), WIDTH))?;
    writeln!(
        to,
        "guest     {}: {} in kernel zones\n          {} free ({}: {})\n          {} must stay ({}: {})",
        answer.origin,
        units.words(answer.memory),
        units.words(answer.free.bytes),
        answer.free.how.name(),
        answer.free.from,
        units.words(answer.reserve.bytes),
        answer.reserve.how.name(),
        answer.reserve.from,
    )?;
    writeln!(
        to,
        "needs     {} of descriptors ({}) for {} blocks of {}, and {} besides\n",
        units.words(answer.descriptors.bytes),
        answer.descriptors.how.name(),
        Whole(answer.blocks),
        units.size(answer.block),
        units.words(answer.objects.bytes),
    )?;
    let mut table = table(&["way", "works", "needs first", "largest step", "in Linux"]);
    words(&mut table, &[1, 4]);
    for way in &answer.ways {
        let largest = way.largest.map_or_else(|| "no limit".into(), |bytes| units.show(bytes));
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        add(&mut table, [way.name.into(), yes(way.works), units.show(way.needs), largest, yes(way.in_linux)]);
    }
    writeln!(to, "{}", table.trim_fmt())?;
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

fn verdict(answer: &Answer, online: Online, units: Units) -> String {
    let more = units.words(answer.added);
    let zone = match online {
        Online::Movable => "ZONE_MOVABLE",
        Online::Kernel => "a kernel zone",
    };
    let rounded =
        if answer.added == answer.asked { String::new() } else { format!(" ({more} in whole blocks)") };
    let asked = units.words(answer.asked);
    let mut text = if answer.works {
        format!("Yes: this guest can add {asked}{rounded} to {zone}, as Linux is.")
    } else {
        format!(
            "No: this guest cannot add {asked}{rounded} to {zone}, as Linux is. It needs {} more of free memory first.",
            units.words(answer.missing)
        )
    };
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
