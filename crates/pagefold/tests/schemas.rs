//! The JSON of every command has a schema, which is published, and which it follows. (`report` and `export`: tests/export.rs;
//! `boot`, which takes QEMU: tests/guests.rs.)

mod common;

use std::fs;
use std::path::Path;

use common::schemas::{NAMES, follows, schema};
use common::{json, pagefold, roots};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample.pgf");

#[test]
fn the_published_schemas_are_the_programs() {
    for name in NAMES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{name}.json"));
        let schema = pagefold().args(["export", "--schema", name]).output().unwrap().stdout;
        let published = fs::read(path).unwrap_or_default();
        assert!(schema == published, "{name}");
    }
    let no = pagefold().args(["export", "--schema", "watch"]).assert().code(2);
    no.stderr(predicates::str::contains("report-block"));
}

#[test]
fn what_commands_print_follows_their_schemas() {
    let plan = |args: &[&str]| {
        let output = pagefold().args(["plan", "--json"]).args(args).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 10)), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    follows("plan", &plan(&["--sample"]));
    follows("plan", &plan(&["--memory", "1T", "--hugetlb", "2M:1000,1G:4", "--arch", "aarch64"]));
    follows("plan-hotplug", &plan(&["--hotplug", "12G", "--guest-memory", "256M", "--free", "188M"]));
    follows("plan-device", &plan(&["--device", "512G", "--memory", "64G"]));
    for name in roots::ALL {
        let root = roots::root(name);
        follows("plan", &plan(&["--root", root.to_str().unwrap()]));
        follows("plan-hotplug", &plan(&["--hotplug", "4G", "--root", root.to_str().unwrap()]));
    }
    let run = |args: &[&str]| json(pagefold().args(args).assert().success());
    follows("report-block", &run(&["report", "--json", "--sample", "--block", "12"]));
    follows("map", &run(&["map", "--json", "--sample"]));
    follows("map", &run(&["map", "--json", "--sample", "--by", "folding"]));
    follows("diff", &run(&["diff", "--json", SAMPLE, SAMPLE]));
    follows("replay", &run(&["replay", "--json", "--sample", "--seconds", "0"]));
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("short.toml");
    let text = "about = \"x\"\n[machine]\nboot = [\"128 MiB\"]\n[[device]]\nsize = \"1 GiB\"\n\
                [[step]]\nname = \"a\"\nresize = [{ device = 0, to = \"128 MiB\" }]\n";
    fs::write(&scenario, text).unwrap();
    follows("run", &run(&["run", "--json", scenario.to_str().unwrap()]));
}

#[test]
fn schemas_say_something() {
    let map = json(pagefold().args(["map", "--json", "--sample"]).assert().success());
    for field in ["cells", "categories", "schema"] {
        let mut less = map.clone();
        less.as_object_mut().unwrap().remove(field);
        assert!(!jsonschema::validator_for(&schema("map")).unwrap().is_valid(&less), "{field}");
    }
}
