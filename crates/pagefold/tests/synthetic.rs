//! Machines made up for the purpose: every page state at once, and very large ones.

mod common;

use std::fs::File;

use common::machines::{Runs, every_state, header};
use common::{json, pagefold};
use pagefold_machine::{Machine, PageState, flags, snapshot};
use serde_json::Value;

fn replay(machine: &Machine, args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    snapshot::write(machine, File::create(&file).unwrap()).unwrap();
    let mut command = pagefold();
    command.args(["replay", "--json", "--snapshot"]).arg(file).args(args);
    json(command.assert().success())
}

fn row(report: &Value, state: PageState) -> &Value {
    let rows = report["states"].as_array().unwrap();
    rows.iter().find(|row| row["state"] == state.name()).unwrap_or_else(|| panic!("no {}", state.name()))
}

#[test]
fn every_page_state_finds_its_place() {
    let (machine, gap) = every_state();
    let end = machine.end();
    let report = replay(&machine, &["--seconds", "0.5"]);
    let expected = [
        (PageState::Anon, 33 + 3 * 512 + 7),
        (PageState::File, 77 + 16),
        (PageState::PageTable, 5),
        (PageState::Slab, 2 + 32),
        (PageState::Hugetlb, 1024),
        (PageState::Kernel, 41 + 9),
        (PageState::HwPoison, 1),
        (PageState::Offline, 1024 + 13),
        (PageState::NoPage, 65),
        (PageState::Reserved, 159),
        (PageState::Free, 96 + gap),
    ];
    for (state, pages) in expected {
        assert_eq!(row(&report, state)["pages"], pages, "{}", state.name());
    }
    assert_eq!(report["pages"], end - 1);
    assert_eq!(row(&report, PageState::Hugetlb)["pagefold_bytes"], 2 * 4096);
    assert_eq!(report["violations"]["total"], 0);
    assert_eq!(report["agree"], true);
}

#[test]
fn sixty_four_tebibytes_of_a_small_busy_machine() {
    // Four GiB a tile, with a huge page and a few small ones.
    let mut runs = Runs(Vec::new(), 0);
    runs.folios(1, 18, flags::HUGE).folios(1, 9, flags::ANON).add(3, flags::PGTABLE, 0);
    let machine = Machine { header: header(&[(0, 1 << 20)]), runs: runs.0 };
    let report = replay(&machine, &["--seconds", "0.3", "--memory", "64T"]);
    assert_eq!(report["pages"], 1u64 << 34);
    assert_eq!(report["tiles"], 1 << 14);
    assert_eq!(row(&report, PageState::Hugetlb)["pages"], 1u64 << 32);
    assert_eq!(report["violations"]["total"], 0);
    // Linux would need a TiB for it.
    let total = report["folded"]["map"]["smaps"].as_u64().unwrap();
    assert!(total < 512 << 20, "{total}");
}

#[test]
fn a_machine_without_memory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    let machine = Machine { header: header(&[]), runs: Vec::new() };
    snapshot::write(&machine, File::create(&file).unwrap()).unwrap();
    pagefold().args(["replay", "--snapshot"]).arg(file).assert().code(1);
}
