//! The tree's own source: files that use each other in a circle, and files that are too long.

mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use self::modules::Modules;

/// Lines of a source file, at most. Tests and benchmarks are not in `src`, and may have more.
const LINES: usize = 500;

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The source directories of all crates, the guest and the fleet included.
fn sources() -> Vec<PathBuf> {
    let crates = fs::read_dir(tree().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let all = crates.chain([tree().join("guest"), tree().join("fleet")]).map(|package| package.join("src"));
    let mut sources: Vec<_> = all.filter(|source| source.is_dir()).collect();
    sources.sort();
    sources
}

type Edges = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

fn edges(source: &Path) -> Edges {
    let roots = ["lib.rs", "main.rs"].map(|name| source.join(name));
    let mut edges = Edges::new();
    for root in roots.into_iter().filter(|root| root.exists()) {
        for ((from, to), names) in Modules::of(&root).edges() {
            let inside = |file: &Path| file.strip_prefix(source).unwrap_or(file).to_owned();
            edges.entry(inside(&from)).or_default().entry(inside(&to)).or_default().extend(names);
        }
    }
    edges
}

/// Files that reach each other: sets of two or more.
fn circles(edges: &Edges) -> Vec<BTreeSet<&Path>> {
    let reached = |from: &Path| {
        let mut reached: BTreeSet<&Path> = BTreeSet::new();
        let mut next: Vec<&Path> =
            edges.get(from).into_iter().flatten().map(|(to, _)| to.as_path()).collect();
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(edges.get(file).into_iter().flatten().map(|(to, _)| to.as_path()));
            }
        }
        reached
    };
    let all: BTreeMap<&Path, _> = edges.keys().map(|file| (file.as_path(), reached(file))).collect();
    let mut circles: Vec<BTreeSet<&Path>> = Vec::new();
    for (file, reaches) in all.iter().filter(|(file, reaches)| reaches.contains(*file)) {
        let back = |other: &&&Path| all.get(**other).is_some_and(|reached| reached.contains(file));
        let circle: BTreeSet<_> = reaches.iter().filter(back).copied().collect();
        if !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn text(edges: &Edges, circle: &BTreeSet<&Path>) -> String {
    let mut text = format!("{} files:\n", circle.len());
    for from in circle {
        for (to, names) in edges[*from].iter().filter(|(to, _)| circle.contains(to.as_path())) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            text += &format!("    {} -> {}: {}\n", from.display(), to.display(), names.join(", "));
        }
    }
    text
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut found = String::new();
    for source in sources() {
        let edges = edges(&source);
        let package = source.parent().unwrap().strip_prefix(tree()).unwrap().to_owned();
        for circle in circles(&edges) {
            found += &format!("{}, {}", package.display(), text(&edges, &circle));
        }
    }
    assert!(found.is_empty(), "files that use each other in a circle:\n{found}");
}

#[test]
fn source_files_are_short() {
    let mut long = String::new();
    for source in sources() {
        for file in files(&source) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > LINES {
                long += &format!("{}: {lines} lines\n", file.display());
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES} lines:\n{long}");
}

/// All Rust files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, here): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = directories.iter().flat_map(|directory| files(directory).into_iter());
    here.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs")).chain(below).collect()
}

#[test]
fn a_circle_is_found_through_re_exports_and_paths() {
    let crate_ = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = crate_.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod deep; pub use a::A; #[cfg(test)] mod tests { use crate::a::A; }");
    write("a.rs", "pub struct A; fn f() { let _ = crate::deep::make(); }");
    write("b.rs", "use crate::A; pub struct B(A);");
    write("deep/mod.rs", "mod inner; pub use inner::make;");
    write("deep/inner.rs", "pub fn make() -> impl Sized { panic!(\"{}\", size_of::<crate::b::B>()) }");
    let edges = edges(crate_.path());
    let circles = circles(&edges);
    let files: Vec<Vec<_>> = circles.iter().map(|circle| circle.iter().copied().collect()).collect();
    assert_eq!(files, [["a.rs", "b.rs", "deep/inner.rs"].map(Path::new)]);
}

#[test]
fn a_circle_is_found_through_either_of_two_architectures() {
    let crate_ = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(crate_.path().join(name), text).unwrap();
    write("lib.rs", "mod arch; mod clock;");
    write("clock.rs", "pub fn now() { crate::arch::ticks() }");
    fs::create_dir(crate_.path().join("arch")).unwrap();
    write("arch/mod.rs", "mod one; mod other; pub use one::*; pub use other::*;");
    write("arch/one.rs", "pub fn ticks() {}");
    write("arch/other.rs", "pub fn ticks() { crate::clock::now() }");
    let edges = edges(crate_.path());
    let circle: BTreeSet<_> = ["arch/other.rs", "clock.rs"].map(Path::new).into();
    assert_eq!(circles(&edges), [circle]);
}
