//! Guests side by side, as Markdown tables: `cargo run --profile measure -p pagefold-lab --example beside`.
//!
//! Words behind `--` choose tables: `plug`, `small`, `pinned`.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pagefold_lab::beside::{Linux, LinuxGuest, Pagefold, Row, Step, play, table};
use pagefold_lab::{GIB, Kernel, MIB};

/// No page is cleared when it is allocated or freed.
const NO_CLEARING: &str = "memhp_default_state=online_movable init_on_alloc=0 init_on_free=0";
/// TCG on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// A table: its name, what it is about, its rows of a kernel, and those of our own.
type Table = (&'static str, &'static str, fn(&Kernel) -> Result<Vec<Row>>, fn() -> Result<Vec<Row>>);

const TABLES: &[Table] = &[
    ("plug", "1 GiB plugged and unplugged, free; the machine has 1 GiB at boot", plug, own_plug),
    (
        "small",
        "The smallest machine that boots (in steps of 16 MiB, from 64 MiB) is asked to plug 64 GiB",
        small,
        own_small,
    ),
    ("pinned", "4 GiB plugged, one page pinned in each block, all unplugged", pinned, own_pinned),
];

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    if let Some(word) = words.iter().find(|word| !TABLES.iter().any(|(name, ..)| name == word)) {
        let names: Vec<_> = TABLES.iter().map(|(name, ..)| *name).collect();
        bail!("there is no table '{word}': {}", names.join(", "));
    }
    let kernels = Kernel::all()?;
    ensure!(!kernels.is_empty(), "no kernels: crates/lab/setup brings some");
    println!("One CPU, emulated (TCG) with its instructions counted; wall times are good for ratios only.\n");
    for (name, title, rows, own) in TABLES {
        if !words.is_empty() && !words.iter().any(|word| word == name) {
            continue;
        }
        let mut all = Vec::new();
        for kernel in &kernels {
            eprintln!("{name}: Linux {}", kernel.release());
            all.extend(rows(kernel)?);
        }
        eprintln!("{name}: Pagefold");
        all.extend(own()?);
        println!("{title}:\n\n{}", table(&all));
    }
    Ok(())
}

fn plug(kernel: &Kernel) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (command_line, label) in
        [(NO_CLEARING, "without clearing"), ("memhp_default_state=online_movable", "as shipped")]
    {
        let linux = Linux { command_line: command_line.into(), label: label.into(), ..Linux::new(kernel) };
        let steps = [GIB, 2 * GIB, GIB, 0].map(Step::Resize);
        rows.extend(play(&mut linux.boot()?, &steps, PATIENCE)?);
    }
    Ok(rows)
}

fn own_plug() -> Result<Vec<Row>> {
    let steps = [GIB, 2 * GIB, GIB, 0].map(Step::Resize);
    play(&mut Pagefold::default().boot()?, &steps, PATIENCE)
}

fn own_small() -> Result<Vec<Row>> {
    let guest =
        Pagefold { memory: 64 * MIB, device: 64 * GIB, label: "64 MiB".into(), ..Pagefold::default() };
    play(&mut guest.boot()?, &[Step::Resize(64 * GIB)], PATIENCE)
}

fn own_pinned() -> Result<Vec<Row>> {
    play(&mut Pagefold { pins: 32, ..Pagefold::default() }.boot()?, &PINNED, PATIENCE)
}

/// Everything plugged, pinned, unplugged; and once more without the pins.
const PINNED: [Step; 6] = [
    Step::Resize(4 * GIB),
    Step::Pin,
    Step::Resize(0),
    Step::Unpin,
    Step::Resize(128 * MIB),
    Step::Resize(0),
];

fn small(kernel: &Kernel) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for state in ["online_movable", "online"] {
        let mut guest = smallest(kernel, state)?;
        rows.extend(play(&mut guest, &[Step::Resize(64 * GIB)], PATIENCE)?);
    }
    Ok(rows)
}

fn smallest(kernel: &Kernel, state: &str) -> Result<LinuxGuest> {
    for memory in (64 * MIB..=GIB).step_by(16 << 20) {
        let linux = Linux {
            memory,
            device: 64 * GIB,
            command_line: format!("memhp_default_state={state} init_on_alloc=0 init_on_free=0"),
            label: format!("{} MiB, {state}", memory / MIB),
            patience: Duration::from_secs(60),
            ..Linux::new(kernel)
        };
        match linux.boot() {
            Ok(guest) => return Ok(guest),
            // It is QEMU that does not start, which more memory does not change.
            Err(error) if error.is::<pagefold_qemu::Error>() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                eprintln!("{} MiB: {}", memory / MIB, text.lines().next().unwrap_or_default());
            }
        }
    }
    None.context("it boots with no memory up to 1 GiB")
}

fn pinned(kernel: &Kernel) -> Result<Vec<Row>> {
    let linux = Linux { command_line: NO_CLEARING.into(), pins: true, ..Linux::new(kernel) };
    play(&mut linux.boot()?, &PINNED, PATIENCE)
}
