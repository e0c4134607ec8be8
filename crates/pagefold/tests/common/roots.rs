//! Other hosts' roots: see fixtures/README.md.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// All of them.
pub const ALL: [&str; 4] = ["host-hvo", "guest-virtio-mem", "numa", "arm64-64k"];

/// Where a root is.
pub fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy, to change things in.
pub fn copy(name: &str) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_dir(&root(name), to.path());
    to
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The files of a root, from the root.
pub fn files(name: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, base: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, found);
            } else {
                found.push(path.strip_prefix(base).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(name), &root(name), &mut found);
    found.sort();
    found
}

/// Writes the page files of a root: runs of pages with the same flags, no page mapped.
pub fn write_pages(root: &Path, end: u64, runs: &[(std::ops::Range<u64>, u64)]) {
    let mut flags = File::create(root.join("proc/kpageflags")).unwrap();
    flags.set_len(end * 8).unwrap();
    for (pages, word) in runs {
        let bytes: Vec<u8> = pages.clone().flat_map(|_| word.to_ne_bytes()).collect();
        flags.seek(SeekFrom::Start(pages.start * 8)).unwrap();
        flags.write_all(&bytes).unwrap();
    }
    File::create(root.join("proc/kpagecount")).unwrap().set_len(end * 8).unwrap();
}
