//! `pagefold map`, as people and scripts see it.

mod common;

use std::fs::{self, File};
use std::path::Path;

use assert_cmd::Command;
use common::machines::{Runs, every_state, header};
use common::{json, pagefold, replay};
use pagefold_machine::{Flags, Machine, Run, flags, snapshot};
use predicates::prelude::*;
use serde_json::Value;

/// `pagefold map --sample`.
fn map() -> Command {
    let mut command = pagefold();
    command.args(["map", "--sample"]);
    command
}

fn text(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn recorded(machine: &Machine, path: &Path) {
    snapshot::write(machine, File::create(path).unwrap()).unwrap();
}

#[test]
fn the_sample_in_letters() {
    insta::assert_snapshot!("sample_linear", text(&mut map()));
    insta::assert_snapshot!("sample_hilbert", text(map().args(["--layout", "hilbert"])));
    insta::assert_snapshot!("sample_folding", text(map().args(["--by", "folding"])));
}

#[test]
fn the_pictures_in_the_documents_are_what_the_tool_draws() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for (name, args) in [
        ("map", &["--sample"][..]),
        ("guest", &["guest.pgf"]),
        ("guest-folding", &["guest.pgf", "--by", "folding"]),
    ] {
        let drawn = text(pagefold().current_dir(&docs).arg("map").args(args).args(["--svg", "-"]));
        let there = fs::read_to_string(docs.join(format!("img/{name}.svg"))).unwrap();
        assert!(drawn == there, "draw {name}.svg again");
    }
}

#[test]
fn every_line_fits_the_terminal_and_no_escape_gets_through_without_colours() {
    let text = text(map().args(["--memory", "1T"]));
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn amounts_are_in_the_units_asked_for() {
    let total = |args: &[&str]| {
        let text = text(map().args(args));
        let line = text.lines().find(|line| line.trim_start().starts_with("total")).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(total(&[]), "24.0 GiB 384 MiB");
    assert_eq!(total(&["--si"]), "25.8 GB 403 MB");
    assert_eq!(total(&["--bytes"]), "25769402368 402646912");
    let svg = text(map().args(["--bytes", "--svg", "-"]));
    assert!(svg.contains(">25769402368<"));
    map().args(["--si", "--bytes"]).assert().code(2);
}

#[test]
fn colours_are_there_when_asked_for() {
    // What is forced is forced; NO_COLOR is stronger than what is only asked of the environment.
    for (variables, args, colored) in [
        (&[][..], &["--color", "always"][..], true),
        (&[("NO_COLOR", "1")], &["--color", "always"], true),
        (&[("CLICOLOR_FORCE", "1")], &[], true),
        (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &[], false),
        (&[("CLICOLOR_FORCE", "1")], &["--color", "never"], false),
    ] {
        let text = text(map().envs(variables.iter().copied()).args(args));
        assert_eq!(
            (text.contains('▀'), text.contains("\x1b[")),
            (colored, colored),
            "{variables:?} {args:?}"
        );
    }
}

fn sums(map: &Value, field: &str) -> u64 {
    map["categories"].as_array().unwrap().iter().map(|category| category[field].as_u64().unwrap()).sum()
}

#[test]
fn cells_sum_to_the_machine() {
    for by in ["state", "folding"] {
        for layout in ["linear", "hilbert"] {
            let map = json(map().args(["--json", "--by", by, "--layout", layout]).assert().success());
            let pages = map["pages"].as_u64().unwrap();
            assert_eq!(pages, 6_291_358);
            assert_eq!(sums(&map, "pages"), pages);
            assert_eq!(sums(&map, "memory_bytes"), pages * 4096);
            let cells = map["cells"].as_array().unwrap();
            let in_cells = cells.iter().flat_map(|cell| cell["pages"].as_array().unwrap());
            assert_eq!(in_cells.map(|pages| pages.as_u64().unwrap()).sum::<u64>(), pages);
            let starts: Vec<_> = cells.iter().map(|cell| cell["start_pfn"].as_u64().unwrap()).collect();
            assert!(starts.is_sorted() && starts.len() > 4096);
        }
    }
}

/// The same with a word a page and an object a folio: words and objects exactly (as far as objects are in use), all of it within
/// 1 % and 32 pages (each of a dozen tables begins with a whole one), as `report` and `plan` say it.
fn memdesc_is_what_the_engine_leaves(runs: &[(&[&str], &[&str])]) {
    for (machine, replayed) in runs {
        let report = json(pagefold().arg("report").args(*machine).arg("--json").assert().success());
        let plan = json(pagefold().arg("plan").args(*machine).arg("--json").assert().success());
        let quick =
            ["--descriptors", "memdesc", "--seconds", "0", "--walkers", "0", "--owners", "0", "--json"];
        let replay = json(pagefold().arg("replay").args(*replayed).args(quick).assert().success());
        let memdesc = &report["folding"]["memdesc"];
        let exact = |what: &str| {
            assert_eq!(memdesc[what]["min"], memdesc[what]["max"], "{memdesc:#}");
            memdesc[what]["min"].as_u64().unwrap()
        };
        let replayed = |part: &str| replay["folded"][part]["smaps"].as_u64().unwrap();
        assert_eq!(exact("words"), replayed("map"));
        assert_eq!(exact("objects"), replay["objects"].as_u64().unwrap() * 64);
        let all: u64 = ["map", "objects", "page_tables", "classes", "allocator"].map(replayed).iter().sum();
        let near = |computed: u64| computed.abs_diff(all) <= (all / 100).max(32 * 4096);
        assert!(near(exact("total")), "{} computed, {all} replayed", exact("total"));
        let scenarios = plan["scenarios"].as_array().unwrap();
        let planned = scenarios.iter().find(|row| row["name"] == "memdesc of 8 bytes, folded").unwrap();
        assert!(near(planned["descriptors"]["max"].as_u64().unwrap()), "{planned:#}, {all} replayed");
    }
}

/// What the map and the report compute, the engine must do.
#[test]
fn folding_on_the_map_is_what_the_engine_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    recorded(&every_state().0, &file);
    let file = file.to_str().unwrap();
    let runs: [(&[&str], &[&str]); 3] = [
        (&["map", "--sample"], &["replay", "--sample"]),
        (&["map", file], &["replay", "--snapshot", file]),
        (&["map", file, "--memory", "100M"], &["replay", "--snapshot", file, "--memory", "100M"]),
    ];
    for (map, replay) in runs {
        let map = json(pagefold().args(map).args(["--by", "folding", "--json"]).assert().success());
        let quick = ["--seconds", "0", "--walkers", "0", "--owners", "0", "--json"];
        let replay = json(pagefold().args(replay).args(quick).assert().success());
        assert_eq!(sums(&map, "descriptor_bytes"), replay["folded"]["map"]["counted"], "{map:#}");
        assert_eq!(map["pages"], replay["pages"]);
    }
    // And the report.
    for (report, replay) in [(&["report", "--sample"], &runs[0].1), (&["report", file], &runs[1].1)] {
        let report = json(pagefold().args(report).arg("--json").assert().success());
        let quick = ["--seconds", "0", "--walkers", "0", "--owners", "0", "--json"];
        let replay = json(pagefold().args(*replay).args(quick).assert().success());
        let left = &report["folding"]["descriptors"];
        assert_eq!(left["min"], left["max"]);
        assert_eq!(left["min"], replay["folded"]["map"]["counted"], "{left:#}");
    }
    memdesc_is_what_the_engine_leaves(&[(&["--sample"], &["--sample"]), (&[file], &["--snapshot", file])]);
    let replayed = replay().args(["--seconds", "0", "--owners", "0", "--json"]).assert().success();
    let map = json(map().args(["--json"]).assert().success());
    for row in json(replayed)["states"].as_array().unwrap() {
        let categories = map["categories"].as_array().unwrap();
        if let Some(category) = categories.iter().find(|category| category["name"] == row["state"]) {
            assert_eq!(category["pages"], row["pages"], "{category}");
            assert_eq!(category["descriptor_bytes"], row["linux_bytes"], "{category}");
        }
    }
}

#[test]
fn files_are_what_they_claim_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let (svg, png) = (dir.path().join("map.svg"), dir.path().join("map.png"));
    for layout in ["linear", "hilbert"] {
        let mut command = map();
        command.args(["--layout", layout, "--svg"]).arg(&svg).arg("--png").arg(&png);
        let said = text(&mut command);
        let svg_text = fs::read_to_string(&svg).unwrap();
        let document = roxmltree::Document::parse(&svg_text).unwrap();
        let size = |name| document.root_element().attribute(name).unwrap().parse::<u32>().unwrap();
        let (width, height) = (size("width"), size("height"));
        assert!(svg_text.len() < 100_000, "{}", svg_text.len());
        assert!(svg_text.contains("page cache") && svg_text.contains("DMA32"), "legend and zones");
        let image = png::Decoder::new(std::io::BufReader::new(File::open(&png).unwrap()));
        let mut image = image.read_info().unwrap();
        assert_eq!((image.info().width, image.info().height), (width * 2, height * 2));
        let mut pixels = vec![0; image.output_buffer_size().unwrap()];
        image.next_frame(&mut pixels).unwrap();
        let colors: std::collections::HashSet<_> = pixels.chunks(3).collect();
        assert!(colors.len() > 20, "a picture");
        assert!(said.contains(&format!("{} x {} pixels", width * 2, height * 2)), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing half-written is left behind");
    }
    let on_stdout = text(map().args(["--svg", "-"]));
    assert!(roxmltree::Document::parse(&on_stdout).is_ok());
    let on_stdout = map().args(["--png", "-"]).assert().success().get_output().stdout.clone();
    assert!(on_stdout.starts_with(b"\x89PNG"));
}

#[test]
fn hostile_machines_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    let last = (1 << 40) - 1;
    let run = |start, len| Run { start, len, flags: Flags(flags::ANON), count: 1 };
    let mut scattered: Vec<_> = (0..10_000).map(|n| n * 100_000_007 + n % 5).collect();
    scattered.dedup();
    let ranges: Vec<_> = scattered.iter().map(|&start| (start, start + 3)).collect();
    let mut tile = Runs(Vec::new(), 0);
    tile.folios(1, 18, flags::HUGE).folios(1, 9, flags::ANON).add(3, flags::PGTABLE, 0);
    let mut noted = Machine { header: header(&[(5, 6)]), runs: vec![run(5, 1)] };
    noted.header.note = "</text>\x1b[2J\u{0}&\u{202e}".into();
    noted.header.kernel = "\x07<svg>".into();
    let machines = [
        // One page; one page at the very end; both; none of the memory spoken of; only runs outside of memory.
        (Machine { header: header(&[(0, 1)]), runs: vec![run(0, 1)] }, None),
        (Machine { header: header(&[(last, last + 1)]), runs: vec![run(last, 1)] }, None),
        (Machine { header: header(&[(0, 1), (last, last + 1)]), runs: vec![run(0, 1), run(last, 1)] }, None),
        (Machine { header: header(&[(0, 1 << 40)]), runs: Vec::new() }, None),
        (Machine { header: header(&[(10, 20)]), runs: vec![run(0, 10), run(20, 1 << 30)] }, None),
        (
            Machine { header: header(&ranges), runs: scattered.iter().map(|&start| run(start, 2)).collect() },
            None,
        ),
        (Machine { header: header(&[(0, 1 << 20)]), runs: tile.0 }, Some("64T")),
        (noted, None),
    ];
    for (at, (machine, memory)) in machines.iter().enumerate() {
        recorded(machine, &file);
        for layout in ["linear", "hilbert"] {
            for by in ["state", "folding"] {
                let mut command = pagefold();
                command.arg("map").arg(&file).args(["--layout", layout, "--by", by]);
                command.args(memory.iter().flat_map(|memory| ["--memory", memory]));
                let text = text(&mut command);
                assert!(!text.contains(['\x1b', '\0', '\x07', '\u{202e}']), "{at} {text:?}");
                let output = command.args(["--svg", "-"]).assert().success().get_output().stdout.clone();
                let svg = String::from_utf8(output).unwrap();
                roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert!(svg.len() < 2_000_000, "{at}: {}", svg.len());
            }
        }
    }
}

#[test]
fn refusals_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.pgf");
    let refused = |command: &mut Command, says: &str| {
        let output = command.assert().code(1).get_output().clone();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{stderr}");
        assert!(output.stdout.is_empty());
    };
    recorded(&Machine { header: header(&[]), runs: Vec::new() }, &file);
    refused(pagefold().arg("map").arg(&file), "no memory");
    fs::write(&file, "hello").unwrap();
    refused(pagefold().arg("map").arg(&file), "not a Pagefold snapshot");
    refused(pagefold().args(["map", "/does/not/exist.pgf"]), "/does/not/exist.pgf");
    refused(map().args(["--png", "/does/not/exist.png"]), "/does/not/exist.png");
    refused(map().args(["--svg", dir.path().to_str().unwrap()]), "cannot write");
    map()
        .args(["--svg", "-", "--png", "-"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("only one picture"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    pagefold().args(["map", "--sample", "some.pgf"]).assert().code(2);
    map().args(["--json", "--svg", "x.svg"]).assert().code(2);
}
