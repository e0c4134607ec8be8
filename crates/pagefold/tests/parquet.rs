//! `pagefold export --format parquet`: all pages of a machine, each once.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::pagefold;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use predicates::prelude::*;

const START: usize = 10;
const PAGES: usize = 11;

fn export() -> assert_cmd::Command {
    let mut command = pagefold();
    command.args(["export", "--format", "parquet"]);
    command
}

/// The hosts that are in a file, and how many pages; rows must ascend.
fn read(path: &Path) -> (String, u64) {
    let file = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let (mut host, mut end, mut pages) = (String::new(), 0, 0);
    for row in file.get_row_iter(None).unwrap().map(Result::unwrap) {
        host.clone_from(row.get_string(0).unwrap());
        assert!(row.get_long(START).unwrap() >= end);
        end = row.get_long(START).unwrap() + row.get_long(PAGES).unwrap();
        pages += row.get_long(PAGES).unwrap();
    }
    (host, pages as u64)
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn a_directory_gets_hives_tree() {
    let dir = tempfile::tempdir().unwrap();
    // It does not exist yet: the slash says what it is to be.
    let fleet = format!("{}/fleet/", dir.path().display());
    for _ in 0..2 {
        // One recording twice is one file.
        let said = predicate::str::contains("48,557 rows").and(predicate::str::contains("date="));
        export().args(["--sample", "--host", "web/7", "--output", &fleet]).assert().success().stderr(said);
    }
    let found = files(dir.path());
    assert_eq!(found.len(), 1, "{found:?}");
    let path = found[0].strip_prefix(&fleet).unwrap().to_str().unwrap();
    let form =
        predicate::str::is_match(r"^date=20\d\d-\d\d-\d\d/host=web%2F7/20\d{6}T\d{6}Z\.parquet$").unwrap();
    assert!(form.eval(path), "{path}");
    assert_eq!(read(&found[0]), ("web/7".into(), 6_291_358));
}

#[test]
fn a_file_gets_its_name_and_stdout_gets_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web7.parquet");
    export().arg("--sample").arg("--output").arg(&file).assert().success().stdout("");
    assert_eq!(read(&file), ("sample".into(), 6_291_358));
    let output = export().arg("--sample").assert().success().get_output().clone();
    assert_eq!(output.stdout, fs::read(&file).unwrap());
    assert!(output.stderr.is_empty());
}

#[test]
fn this_host_is_exported_as_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = export();
    command.arg("--output").arg(dir.path());
    if !rustix::process::geteuid().is_root() {
        command.assert().code(1).stderr(predicate::str::contains("run as root"));
        return;
    }
    command.assert().success();
    let found = files(dir.path());
    assert_eq!(found.len(), 1);
    let (host, pages) = read(&found[0]);
    assert_eq!(host, fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(pages * 4 >= total, "{pages} pages, MemTotal {total} kB");
}

#[test]
fn refusals_are_one_line() {
    let no_scan = export().arg("--no-scan").assert().code(2).stdout("");
    no_scan.stderr(predicate::str::contains("it takes a scan"));
    for (args, says) in [
        (&["--sample", "--output", "/does/not/exist/x.parquet"][..], "/does/not/exist/x.parquet"),
        (&["--sample", "--output", "/dev/null/fleet/"], "/dev/null/fleet/"),
        (&["/does/not/exist.pgf"], "/does/not/exist.pgf"),
        (&["--root", "/does/not/exist"], "/does/not/exist/proc/kpageflags"),
    ] {
        let output = export().args(args).assert().code(1).get_output().clone();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}
