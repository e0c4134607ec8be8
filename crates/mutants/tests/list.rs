//! The list as it stands in the repository fits the source and the documentation as they stand beside it.

use std::collections::BTreeSet;
use std::fs;

use pagefold_mutants::list::{self, Verdict};
use pagefold_mutants::litmus::{self, Expected};
use pagefold_mutants::{table, workspace};

#[test]
fn every_mutant_has_exactly_one_place_in_the_source() {
    let mutants = list::read(&workspace()).unwrap();
    let misplaced = list::check(&workspace(), &mutants).unwrap();
    let told: Vec<_> = misplaced
        .iter()
        .map(|(mutant, why)| format!("{} ({}): {why}", mutant.id, mutant.file.display()))
        .collect();
    assert!(told.is_empty(), "change crates/model/mutants with the source:\n{}", told.join("\n"));
}

#[test]
fn the_list_is_as_wide_as_it_says() {
    let mutants = list::read(&workspace()).unwrap();
    assert!(mutants.len() >= 200, "{} mutants", mutants.len());
    let files: BTreeSet<_> = mutants.iter().map(|mutant| mutant.file.as_path()).collect();
    let subjects = [
        "rcu/mod",
        "rcu/reader",
        "rcu/deferred",
        "map/mod",
        "map/memory",
        "descriptors/page64",
        "descriptors/offline",
        "descriptors/seam",
        "protocol/classes",
        "protocol/uniform",
        "walk",
        "folio",
        "fold",
        "folder",
        "free",
        "poison",
        "marks",
        "frames/mod",
        "frames/tables",
        "frames/small",
        "frames/whole",
        "frames/claim",
        "frames/lanes",
        "frames/isolate",
        "hotplug/steps",
        "hotplug/withdraw",
    ];
    for file in subjects {
        let path = format!("crates/engine/src/{file}.rs");
        assert!(files.contains(std::path::Path::new(&path)), "no mutant of {path}");
    }
}

#[test]
fn every_litmus_test_that_a_mutant_names_is_there_and_shows_what_is_wrong() {
    let tests = litmus::read(&workspace().join(litmus::FOLDER)).unwrap();
    for mutant in list::read(&workspace()).unwrap() {
        let Verdict::Litmus(name) = &mutant.verdict else { continue };
        let test = tests.iter().find(|test| test.name == *name);
        let expected = test.unwrap_or_else(|| panic!("{}: no litmus test {name}", mutant.id)).expected;
        assert_eq!(
            expected,
            Expected::Allowed,
            "{}: {name} must show the outcome that the mutant allows",
            mutant.id
        );
    }
}

/// `pagefold-mutants --docs` writes them.
#[test]
fn the_tables_in_the_documentation_are_those_of_the_list() {
    let text = fs::read_to_string(workspace().join("docs/verification.md")).unwrap();
    let tables = table::documentation(&list::read(&workspace()).unwrap());
    let current = table::put_into(&text, &tables).expect("docs/verification.md has a place for the tables");
    assert!(text == current, "run `cargo run --release -p pagefold-mutants -- --docs`");
}
