//! Too little memory, in two ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::binary;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether one line says what is wrong, but for the standard library's hint at backtraces.
fn is_one_line(text: &str) -> bool {
    text.lines().filter(|line| !line.starts_with("note: run with `RUST_BACKTRACE")).count() == 1
}

/// Who asks for a backtrace of an allocation that failed gets more than a line; here nobody does.
fn shell(script: &str) -> Output {
    Command::new("bash").args(["-c", script]).env_remove("RUST_BACKTRACE").output().unwrap()
}

/// With an address space of some megabytes, as `ulimit -v` sets it.
pub fn address_space() {
    for args in ["report --no-scan", "map --sample", "export --sample", "replay --sample --seconds 0", "run"]
    {
        for limit in [16_000, 20_000, 24_000, 30_000, 60_000, 150_000] {
            let script = format!("ulimit -v {limit}; exec {} {args} > /dev/null", binary());
            let output = shell(&script);
            let text = stderr(&output);
            // It works, or says in a line that it does not. The loader itself may not have enough.
            let is_told = is_one_line(&text) && output.status.code() == Some(1);
            let is_loaders = text.contains("error while loading shared libraries");
            // What could not be read for lack of it is told in the report.
            let is_partial = args.starts_with("report") && output.status.code() == Some(3);
            let is_fine = output.status.success() || is_partial || is_told || is_loaders;
            assert!(is_fine, "{args}, {limit} KiB: {output:?}");
        }
    }
}

/// With 30 MB in a control group, the page states of a machine may not fit; the kernel would end what takes more.
pub fn control_group() {
    let Some(group) = Group::new(30 << 20) else {
        println!("left out: the test in a control group: none can be made here");
        return;
    };
    for args in ["report", "report --no-scan", "plan", "map", "export --format parquet"] {
        let script = format!(
            "echo $$ > {}; exec {} {args} > /dev/null",
            group.0.join("cgroup.procs").display(),
            binary()
        );
        let output = shell(&script);
        let is_told = is_one_line(&stderr(&output)) && output.status.code() == Some(1);
        // What could not be read for lack of it is told in the report.
        let is_fine = matches!(output.status.code(), Some(0 | 3)) || is_told;
        assert!(is_fine, "{args}: {output:?}");
    }
}

/// A control group of ours, of either version.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Option<Group> {
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        places.iter().find_map(|(tree, file)| {
            let group = Group(Path::new(tree).join(format!("pagefold-test-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is empty again, unless a test fails.
        let _ = fs::remove_dir(&self.0);
    }
}
