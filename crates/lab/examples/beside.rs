//! Guests side by side, as Markdown tables: `cargo run --profile measure -p pagefold-lab --example beside`.
//!
//! Words behind `--` choose tables: `plug`, `small`, `pinned`, `huge`; `--arch aarch64` has them for arm64; `--own` leaves
//! Linux out.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pagefold_lab::beside::{
    Linux, LinuxGuest, Pagefold, ResizeOutcome, Step, allocate, huge_table, play, table,
};
use pagefold_lab::{Arch, GIB, Kernel, MIB};

/// No page is cleared when it is allocated or freed.
const NO_CLEARING: &str = "memhp_default_state=online_movable init_on_alloc=0 init_on_free=0";
/// TCG on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// Huge pages of 2 MiB: half of the machine's memory.
const HUGE_PAGES: u64 = 256;

/// A table of these kernels and of our own: its name, what it is about, and what it says.
type Table = (&'static str, &'static str, fn(Arch, &[Kernel]) -> Result<String>);

const TABLES: &[Table] = &[
    ("plug", "1 GiB plugged and unplugged, free; the machine has 1 GiB at boot", |arch, kernels| {
        rows(arch, kernels, plug, own_plug)
    }),
    (
        "small",
        "The smallest machine that boots (in steps of 16 MiB, from 64 MiB) is asked to plug 64 GiB",
        |arch, kernels| rows(arch, kernels, small, own_small),
    ),
    ("pinned", "4 GiB plugged, one page pinned in each block, all unplugged", |arch, kernels| {
        rows(arch, kernels, pinned, own_pinned)
    }),
    ("huge", "Huge pages of 2 MiB, half of 1 GiB, with HVO where the kernel has it", huge),
];

fn main() -> Result<()> {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let mut arch = Arch::X86_64;
    if let Some(at) = words.iter().position(|word| word == "--arch") {
        arch = match words.get(at + 1).map(String::as_str) {
            Some("x86_64") => Arch::X86_64,
            Some("aarch64") => Arch::Aarch64,
            _ => bail!("--arch: x86_64 or aarch64"),
        };
        words.drain(at..at + 2);
    }
    let is_own = words.iter().any(|word| word == "--own");
    words.retain(|word| word != "--own");
    if let Some(word) = words.iter().find(|word| !TABLES.iter().any(|(name, ..)| name == word)) {
        let names: Vec<_> = TABLES.iter().map(|(name, ..)| *name).collect();
        bail!("there is no table '{word}': {}", names.join(", "));
    }
    let kernels = if is_own { Vec::new() } else { kernels(arch)? };
    println!("One CPU, emulated (TCG) with its instructions counted; wall times are good for ratios only.\n");
    for (name, title, text) in TABLES {
        if words.is_empty() || words.iter().any(|word| word == name) {
            eprintln!("{name}:");
            println!("{title}:\n\n{}", text(arch, &kernels)?);
        }
    }
    Ok(())
}

/// Those for a PC are brought with QEMU, those for arm64 with a newer one; all run in the QEMU that `PATH` has.
fn kernels(arch: Arch) -> Result<Vec<Kernel>> {
    let (all, setup) = match arch {
        Arch::X86_64 => (Kernel::all()?, "crates/lab/setup"),
        Arch::Aarch64 => (Kernel::newer()?, "crates/lab/setup-qemu"),
    };
    let kernels: Vec<_> = all.into_iter().filter(|kernel| kernel.arch() == arch).collect();
    ensure!(!kernels.is_empty(), "no kernels: {setup} brings some");
    Ok(kernels)
}

/// Rows of each kernel, and of our own.
fn rows(
    arch: Arch,
    kernels: &[Kernel],
    linux: fn(&Kernel) -> Result<Vec<ResizeOutcome>>,
    own: fn(Pagefold) -> Result<Vec<ResizeOutcome>>,
) -> Result<String> {
    let mut all = Vec::new();
    for kernel in kernels {
        eprintln!("    Linux {}", kernel.release());
        all.extend(linux(kernel)?);
    }
    eprintln!("    Pagefold");
    all.extend(own(Pagefold { arch, ..Pagefold::default() })?);
    Ok(table(&all))
}

fn plug(kernel: &Kernel) -> Result<Vec<ResizeOutcome>> {
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

fn own_plug(guest: Pagefold) -> Result<Vec<ResizeOutcome>> {
    let steps = [GIB, 2 * GIB, GIB, 0].map(Step::Resize);
    play(&mut guest.boot()?, &steps, PATIENCE)
}

fn own_small(guest: Pagefold) -> Result<Vec<ResizeOutcome>> {
    let guest = Pagefold { memory: 64 * MIB, device: 64 * GIB, label: "64 MiB".into(), ..guest };
    play(&mut guest.boot()?, &[Step::Resize(64 * GIB)], PATIENCE)
}

fn own_pinned(guest: Pagefold) -> Result<Vec<ResizeOutcome>> {
    play(&mut Pagefold { pins: 32, ..guest }.boot()?, &PINNED, PATIENCE)
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

fn small(kernel: &Kernel) -> Result<Vec<ResizeOutcome>> {
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
            Err(error) if error.is::<pagefold_qemu::QemuError>() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                eprintln!("{} MiB: {}", memory / MIB, text.lines().next().unwrap_or_default());
            }
        }
    }
    None.context("it boots with no memory up to 1 GiB")
}

fn pinned(kernel: &Kernel) -> Result<Vec<ResizeOutcome>> {
    // It touches all of its memory to find pages in each block.
    let patience = PATIENCE * 2;
    let linux = Linux { command_line: NO_CLEARING.into(), pins: true, patience, ..Linux::new(kernel) };
    play(&mut linux.boot()?, &PINNED, PATIENCE)
}

fn huge(arch: Arch, kernels: &[Kernel]) -> Result<String> {
    let mut rows = Vec::new();
    // Others do not count their descriptors.
    for kernel in kernels.iter().filter(|kernel| kernel.version() >= (6, 10)) {
        eprintln!("    Linux {}", kernel.release());
        // HVO from boot on; a kernel without it does not know the word.
        let command_line = format!("{NO_CLEARING} hugetlb_free_vmemmap=on");
        rows.push(allocate(&mut Linux { command_line, ..Linux::new(kernel) }.boot()?, HUGE_PAGES)?);
    }
    eprintln!("    Pagefold");
    let own = Pagefold { arch, huge_pages: HUGE_PAGES, ..Pagefold::default() };
    rows.push(allocate(&mut own.boot()?, HUGE_PAGES)?);
    Ok(huge_table(&rows))
}
