//! `pagefold export`: every form holds the same numbers, and files appear whole or not at all.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{json, pagefold, roots};
use predicates::prelude::*;
use serde_json::Value;

fn export(name: &str, format: &str) -> String {
    let mut command = pagefold();
    command.args(["export", "--format", format, "--root"]).arg(roots::root(name));
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn the_published_schema_is_the_programs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/report.json");
    let schema = pagefold().args(["export", "--schema"]).output().unwrap().stdout;
    let schema = String::from_utf8(schema).unwrap();
    let published = fs::read_to_string(path).unwrap();
    assert!(schema == published);
}

#[test]
fn every_report_follows_the_schema() {
    let schema = json(pagefold().args(["export", "--schema"]).assert().success());
    let validator = jsonschema::validator_for(&schema).unwrap();
    let check = |report: &Value, name: &str| {
        let errors: Vec<String> = validator.iter_errors(report).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    };
    for name in roots::ALL {
        check(&serde_json::from_str(&export(name, "json")).unwrap(), name);
    }
    check(&json(pagefold().args(["export", "--sample"]).assert().success()), "sample");
    // The schema says something: a report without its descriptors does not follow it.
    let mut report: Value = serde_json::from_str(&export("numa", "json")).unwrap();
    report.as_object_mut().unwrap().remove("descriptors");
    assert!(!validator.is_valid(&report));
}

#[test]
fn a_dash_is_stdout() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["json", "parquet"] {
        let run = |more: &[&str]| {
            let args = ["export", "--sample", "--format", format, "--host", "a"];
            pagefold().current_dir(&dir).args(args).args(more).output().unwrap().stdout.len()
        };
        assert!(run(&["--output", "-"]) > 1000 && run(&["--output", "-"]) == run(&[]), "{format}");
    }
    assert!(fs::read_dir(&dir).unwrap().next().is_none());
}

#[test]
fn report_and_export_are_the_same_json() {
    let run = |args: &[&str]| json(pagefold().args(args).args(["--sample"]).assert().success());
    assert_eq!(run(&["report", "--json"]), run(&["export"]));
}

#[test]
fn prometheus_text_has_few_labels_and_the_reports_numbers() {
    let text = export("numa", "prometheus");
    let samples: Vec<(&str, u64)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();
    let value = |name: &str| {
        let found = samples.iter().find(|sample| sample.0 == name);
        found.unwrap_or_else(|| panic!("no {name} in\n{text}")).1
    };
    assert_eq!(value("pagemeta_bytes{node=\"0\",backing=\"unknown\"}"), 128 << 20);
    assert_eq!(value("pagemeta_savable_bytes{node=\"1\",method=\"hvo\"}"), 500 * 7 * 4096);
    assert_eq!(value("pagemeta_hvo_enabled"), 1);
    assert_eq!(value("pagemeta_build_info{version=\"0.1.0\",schema=\"1\"}"), 1);
    // Every sample once, every family with its type; nothing by memory block.
    let names: BTreeSet<&str> = samples.iter().map(|sample| sample.0).collect();
    assert_eq!(names.len(), samples.len());
    for name in &names {
        let family = name.split('{').next().unwrap();
        assert!(text.contains(&format!("# TYPE {family} gauge\n")), "{family}");
    }
    assert!(samples.len() < 60 && !text.contains("block="), "{} samples", samples.len());
    let one = export("host-hvo", "prometheus");
    assert!(one.contains("pagemeta_bytes{node=\"0\",backing=\"boot\"} 430080000\n"), "{one}");
}

#[test]
fn csv_has_one_number_a_line() {
    let text = export("host-hvo", "csv");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap(), vec!["scope", "name", "quantity", "value", "how"]);
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    let value = |scope: &str, name: &str, quantity: &str| -> u64 {
        let is_it = |row: &&csv::StringRecord| (&row[0], &row[1], &row[2]) == (scope, name, quantity);
        rows.iter().find(is_it).unwrap_or_else(|| panic!("no {scope} {name} {quantity}"))[3].parse().unwrap()
    };
    assert_eq!(value("machine", "", "descriptor_bytes"), 105_764 * 4096);
    assert_eq!(value("zone", "0/Normal", "descriptor_bytes"), 992 << 20);
    assert_eq!(value("huge_page", "2097152", "pages"), 20_480);
    assert_eq!(value("block", "32", "descriptor_bytes"), 32 << 20);
    for row in &rows {
        assert!(["counted", "computed"].contains(&&row[4]), "{row:?}");
        row[3].parse::<u64>().unwrap();
    }
}

#[test]
fn files_are_replaced_in_one_step_and_readable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pagefold.prom");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).unwrap());
    let before = inode();
    let mut command = pagefold();
    command.args(["export", "--format", "prometheus", "--sample", "--output"]).arg(&file);
    command.assert().success().stdout("");
    // Another file took its place: nobody can have read half of it.
    assert_ne!(inode(), before);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(fs::read_to_string(&file).unwrap().contains("pagemeta_bytes"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn places_that_cannot_be_written_to() {
    let dir = tempfile::tempdir().unwrap();
    for place in [dir.path().to_owned(), dir.path().join("nowhere/file")] {
        let mut command = pagefold();
        command.args(["export", "--sample", "--output"]).arg(&place);
        let refused = command.assert().code(1).stdout("");
        refused.stderr(
            predicate::str::contains("cannot write").and(predicate::str::is_match("^.*\n$").unwrap()),
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn partial_data_is_exported_and_has_its_exit_code() {
    let root = roots::copy("host-hvo");
    fs::write(root.path().join("proc/vmstat"), "rubbish").unwrap();
    let mut command = pagefold();
    command.args(["export", "--format", "prometheus", "--root"]).arg(root.path());
    command.assert().code(3).stdout(predicate::str::contains("pagemeta_partial 1\n"));
}
