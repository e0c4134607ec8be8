//! Plans for people.

use std::io::{self, Write};

use comfy_table::ColumnConstraint;
use pagefold_picture::amount::{Units, Whole};

use super::kernel::KernelReport;
use super::model::Plan;
use super::whatif::{Alternative, Availability};
use crate::lines::{text_width, width, wrap};
use crate::report::memdesc::OBJECT;
use crate::report::model::{Figure, Interval, percent};
use crate::table::{add, fit, table, words};

/// Columns that the whole table takes.
const ROOMY: usize = 100;

pub fn plan(plan: &Plan, units: Units, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}\n", wrap(&plan_answer(plan, units), text_width()))?;
    let pools: Vec<String> = plan
        .pools
        .iter()
        .filter(|pool| pool.pages > 0)
        .map(|pool| format!("{} of {}", Whole(pool.pages), units.size(pool.size)))
        .collect();
    let pools = if pools.is_empty() { "none".into() } else { pools.join(", ") };
    writeln!(to, "machine   {}: {}; huge pages: {pools}\n", plan.origin, units.words(plan.memory))?;
    if let Some(kernel) = &plan.kernel {
        abilities(kernel, units, to)?;
    }
    let mut table = table(&["descriptors", "bytes", "of memory", "saved", "in Linux"]);
    words(&mut table, &[4]);
    // Where there is little room, the share goes: it follows from the rest.
    if let Some(column) = table.column_mut(2).filter(|_| width().is_some_and(|width| width < ROOMY)) {
        column.set_constraint(ColumnConstraint::Hidden);
    }
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
    writeln!(to, "{}", fit(&mut table))?;
    let folios = match plan.folios.is_exact() {
        true => Whole(plan.folios.max).to_string(),
        false => format!("{} to {}", Whole(plan.folios.min), Whole(plan.folios.max)),
    };
    let assumed = format!(
        "All computed. memdesc: its words, and {OBJECT} bytes (as Pagefold's engine has them; in Linux it is not decided) for each of {folios} folios in \
         use ({}).",
        plan.folios.from
    );
    writeln!(to, "{}\n", wrap(&assumed, text_width()))?;
    for scenario in &plan.scenarios {
        if !scenario.note.is_empty() {
            writeln!(to, "{}: {}", scenario.name, scenario.note)?;
        }
        for time in &scenario.time {
            let text = format!("{} {} ({}: {})", scenario.name, time.what, time.how.name(), time.from);
            writeln!(to, "{}", wrap(&text, text_width()))?;
        }
    }
    writeln!(to)?;
    blocks(plan, units, to)
}

/// An amount, what it is, how it is known, and from what.
pub fn told(figure: &Figure, what: &str, units: Units) -> String {
    format!("{} {what} ({}: {})", units.words(figure.bytes), figure.how.name(), figure.from)
}

/// What a kernel that was asked for can do.
pub fn abilities(kernel: &KernelReport, units: Units, to: &mut impl Write) -> io::Result<()> {
    let release = if kernel.release.is_empty() { "of any release" } else { &kernel.release };
    writeln!(
        to,
        "kernel    {release} on {}: pages of {}, sections of {}",
        kernel.arch,
        units.size(kernel.page_size),
        units.size(kernel.section)
    )?;
    let mut table = table(&["it has", "", ""]);
    words(&mut table, &[1, 2]);
    for ability in &kernel.abilities {
        add(&mut table, [ability.name.into(), ability.has.name().into(), ability.note.into()]);
    }
    writeln!(to, "{}", fit(&mut table))?;
    writeln!(to, "Computed from its name; distributions take features into older kernels.\n")
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
            (_, _) if plan.pools.iter().all(|pool| pool.pages == 0) => {
                " HVO saves nothing without huge pages.".into()
            }
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
        let words = |bytes: i64| units.words(bytes.unsigned_abs());
        let saves = match (folding.saved_min, folding.saved_max) {
            (min, max) if min == max && min >= 0 => format!("saves {}", words(min)),
            (min, _) if min >= 0 => format!("saves at least {}", words(min)),
            // Its own tables cost something where nothing folds.
            (min, max) if max > 0 => format!("saves up to {}, or costs {} more", words(max), words(min)),
            (min, _) => format!("costs {} more", words(min)),
        };
        text.push_str(&format!(" Folding {saves}, not in Linux today."));
    }
    text
}

/// An amount, or from where to where it goes.
pub fn range(interval: &Interval, units: Units) -> String {
    let (min, max) = (units.show(interval.min), units.show(interval.max));
    if min == max { max } else { format!("{min} to {max}") }
}

fn saved(scenario: &Alternative, units: Units) -> String {
    let signed = |bytes: i64| {
        let sign = if bytes < 0 { "-" } else { "" };
        format!("{sign}{}", units.show(bytes.unsigned_abs()))
    };
    let (min, max) = (signed(scenario.saved_min), signed(scenario.saved_max));
    if min == max { max } else { format!("{min} to {max}") }
}

fn blocks(plan: &Plan, units: Units, to: &mut impl Write) -> io::Result<()> {
    let Some(sub_block) = plan.block_sizes.first().map(|row| units.size(row.sub_block)) else {
        return Ok(());
    };
    let stuck = format!("{sub_block} stuck in each");
    let mut table = table(&["memory blocks of", "blocks", "to add one", &stuck, "Linux", "folded"]);
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
    writeln!(to, "{}", fit(&mut table))?;
    let text = format!(
        "Computed. The worst case of shrinking: one sub-block of {sub_block} stays plugged in every block. Then so much is \
         in use, and so much are its descriptors, in Linux and folded (not in Linux today)."
    );
    writeln!(to, "{}", wrap(&text, text_width()))
}
