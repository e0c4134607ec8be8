//! Output follows the terminal: how wide it is, and what characters it can show.

mod common;

use common::{pagefold, roots};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample.pgf");

fn lines(args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = pagefold();
    for name in ["LC_ALL", "LC_CTYPE", "LANG", "COLUMNS"] {
        command.env_remove(name);
    }
    command.current_dir(roots::root("host-hvo").parent().unwrap());
    let output = command.args(args).envs(variables.iter().copied()).assert();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    // From here, so that its name is short.
    let root = "host-hvo";
    for args in [
        &["report", "--no-scan", "--root", root][..],
        &["report", "--sample", "--blocks"],
        &["plan", "--root", root],
        &["plan", "--memory", "1T", "--hugetlb", "2M:1000,1G:4"],
        &["plan", "--hotplug", "39G", "--memory", "1G"],
        &["map", "--sample"],
    ] {
        for columns in [60, 80] {
            let text = lines(args, &[("COLUMNS", &columns.to_string())]);
            // A map is as wide as the terminal, which is none here: 80.
            let columns = if args[0] == "map" { 80 } else { columns };
            for line in text.lines() {
                assert!(line.chars().count() <= columns, "{args:?}, {columns}: {line}");
            }
        }
    }
}

#[test]
fn all_is_ascii_where_nothing_else_can_be_read() {
    for variables in [&[("LANG", "C")][..], &[("LC_ALL", "POSIX"), ("LANG", "en_GB.UTF-8")]] {
        for args in [
            &["map", "--sample", "--color", "always"][..],
            &["map", "--sample", "--layout", "hilbert", "--color", "always"],
            &["diff", SAMPLE, SAMPLE, "--color", "always"],
            &["report", "--sample"],
            &["plan", "--sample"],
            &["run", "--list"],
            &["explain", "hvo"],
        ] {
            let text = lines(args, variables);
            assert!(text.is_ascii(), "{args:?}: {text}");
        }
    }
    let utf8 = lines(&["map", "--sample", "--color", "always"], &[("LANG", "C"), ("LC_CTYPE", "C.UTF-8")]);
    assert!(utf8.contains('\u{2588}'), "{utf8}");
}
