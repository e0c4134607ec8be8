//! The result, for people.

use std::io::{self, Write};

use pagefold_picture::amount::{Bytes, Count, Whole};

use super::model::{BootOutcome, BootRow, linux};
use crate::table::{add, table, words};

/// Prints everything.
pub fn outcome(outcome: &BootOutcome, out: &mut impl Write) -> io::Result<()> {
    if let Some(hello) = &outcome.hello {
        let cpus = if hello.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", hello.cpus) };
        writeln!(
            out,
            "guest     {} of memory, {} of it the kernel's, {cpus}; up after {:.0} ms",
            Bytes(hello.boot_memory),
            Bytes(hello.kernel),
            hello.boot_ns as f64 / 1e6
        )?;
        for (number, device) in hello.devices.iter().enumerate() {
            let unit = if device.is_big { "big blocks" } else { "sub-blocks" };
            writeln!(
                out,
                "vmem{number}     room for {} at {:#x}, node {}, {unit} of {}",
                Bytes(device.size),
                device.address,
                device.node,
                Bytes(device.unit)
            )?;
        }
        writeln!(out)?;
    }
    if !outcome.rows.is_empty() {
        rows(&outcome.rows, out)?;
    }
    for row in &outcome.rows {
        if let Some(short) = &row.short {
            writeln!(out, "{}: {short}", row.step)?;
        }
        if let Some(bytes) = row.touched {
            writeln!(out, "touched   {} from all over were written to and read back", Bytes(bytes))?;
        }
        if let Some(cycles) = &row.cycles {
            writeln!(
                out,
                "cycled    {} folios folded and unfolded in {} rounds: {} map pages given back, {} taken, in {:.1} s; \
                 {} looks of walkers meanwhile; {} frames lost",
                Whole(cycles.cycles),
                Whole(cycles.rounds),
                Whole(cycles.folded),
                Whole(cycles.unfolded),
                cycles.ns as f64 / 1e9,
                Count(cycles.looks as f64),
                cycles.lost_frames
            )?;
        }
    }
    if let Some(row) = outcome.rows.last() {
        summary(row, out)?;
    }
    if outcome.ending.is_in_order() {
        let verdict = if outcome.broken.is_empty() { "nothing broken" } else { "BROKEN" };
        writeln!(out, "ended     in order; {verdict}")?;
    } else {
        writeln!(out, "ended     {}", outcome.ending.meaning)?;
    }
    for broken in &outcome.broken {
        writeln!(out, "  {broken}")?;
    }
    if let Some(dump) = &outcome.ending.dump {
        writeln!(out, "\n{dump}")?;
    }
    Ok(())
}

fn rows(rows: &[BootRow], out: &mut impl Write) -> io::Result<()> {
    let counts = rows.iter().any(|row| row.instructions.is_some());
    let mut head = vec![
        "after",
        "plugged",
        "blocks",
        "in use",
        "wall s",
        "driver ms",
        "map counted",
        "measured",
        "all metadata",
        "Linux",
    ];
    if counts {
        head.push("instructions");
    }
    let mut table = table(&head);
    words(&mut table, &[0]);
    for row in rows {
        let report = &row.report;
        let partial = match report.memory.partial_blocks {
            0 => String::new(),
            partial => format!(" ({partial} partly)"),
        };
        let (counted, measured) = row.map();
        let mut cells = vec![
            row.step.clone(),
            Bytes(report.memory.plugged).to_string(),
            format!("{}{partial}", Whole(report.memory.blocks)),
            Bytes(report.folios.bytes).to_string(),
            format!("{:.2}", row.seconds),
            row.driver_ns.map_or(String::new(), |busy| format!("{:.1}", busy as f64 / 1e6)),
            Bytes(counted).to_string(),
            Bytes(measured).to_string(),
            Bytes(row.metadata()).to_string(),
            Bytes(linux(report)).to_string(),
        ];
        if counts {
            cells.push(row.instructions.map_or(String::new(), |count| Count(count as f64).to_string()));
        }
        table.add_row(cells);
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "Times: measured, emulated. Map: counted by the engine; measured: as its page tables have it. All metadata: measured,\n\
         the tables' own page tables included. Linux: computed, 64 bytes for each page of this memory.\n"
    )
}

/// What became of frames, translations and promises until the last step.
fn summary(row: &BootRow, out: &mut impl Write) -> io::Result<()> {
    let report = &row.report;
    let (frames, flushes, walks) = (&report.frames, &report.flushes, &report.walks);
    writeln!(
        out,
        "frames    {} from boot and {} from the engine: {} in reserve (never below {}), {} behind tables, {} other",
        Whole(frames.boot),
        Whole(frames.taken),
        Whole(frames.reserve),
        Whole(frames.lowest),
        Whole(frames.tables),
        Whole(frames.other)
    )?;
    writeln!(
        out,
        "flushes   {} for folding {} map pages; {} for unfolding, {} unfolds needed none; {} after making; {} grace periods",
        Whole(flushes.folds),
        Whole(flushes.folded_entries),
        Whole(flushes.unfolds),
        Whole(flushes.spared),
        Whole(flushes.after_making),
        Whole(flushes.barriers)
    )?;
    writeln!(
        out,
        "walkers   {} looks, {} references, {} stale; owners {} operations; {} violations",
        Count(walks.looks as f64),
        Count(walks.gets as f64),
        Whole(walks.stale),
        Whole(walks.owner_steps),
        walks.violations
    )?;
    if report.folios.held > 0 || report.folios.migrated > 0 {
        writeln!(
            out,
            "folios    {} in {}; {} moved, {} lost",
            Whole(report.folios.held),
            Bytes(report.folios.bytes),
            Whole(report.folios.migrated),
            report.folios.lost
        )?;
    }
    Ok(())
}

/// A step, in a line.
pub fn row(row: &BootRow, out: &mut impl Write) -> io::Result<()> {
    let report = &row.report;
    let short = row.short.as_ref().map_or(String::new(), |short| format!(" ({short})"));
    let touched = row.touched.map_or(String::new(), |bytes| format!(", {} touched", Bytes(bytes)));
    let cycled = row.cycles.as_ref().map_or(String::new(), |cycles| {
        format!(", {} cycles, {} map pages folded", Whole(cycles.cycles), Whole(cycles.folded))
    });
    writeln!(
        out,
        "{}: {:.2} s{short}; {} plugged in {} blocks, {} free, {} of metadata{touched}{cycled}",
        row.step,
        row.seconds,
        Bytes(report.memory.plugged),
        Whole(report.memory.blocks),
        Bytes(report.memory.free),
        Bytes(row.metadata())
    )
}

/// One report, table by table.
pub fn report(row: &BootRow, out: &mut impl Write) -> io::Result<()> {
    let mut rows = table(&["table", "address space", "counted", "measured"]);
    for table in &row.report.tables {
        add(
            &mut rows,
            [
                table.name.clone(),
                Bytes(table.reserved).to_string(),
                Bytes(table.counted).to_string(),
                Bytes(table.measured).to_string(),
            ],
        );
    }
    add(
        &mut rows,
        ["their page tables".into(), String::new(), String::new(), Bytes(row.report.page_tables).to_string()],
    );
    writeln!(out, "{rows}")?;
    summary(row, out)
}
