//! Where results go: files that are replaced whole, things that are none and stay what they are, and stdout.
//!
//! What cannot run is told in the last line.

mod common;
#[path = "common/shortage.rs"]
mod shortage;

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread;

use common::{binary, roots};
use libtest_mimic::{Arguments, Trial};
use rustix::fs::{CWD, Mode};
use tempfile::TempDir;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample.pgf");
/// A scenario that takes no time.
const SHORT: &str = "about = \"x\"\n[machine]\nboot = [\"128 MiB\"]\n[[device]]\nsize = \"1 GiB\"\n\
                     [[step]]\nname = \"a\"\nresize = [{ device = 0, to = \"128 MiB\" }]\n";

/// A test, by name.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_fifo_is_written_and_stays_one", fifos),
    ("a_symbolic_link_stays_and_what_it_leads_to_is_replaced", links),
    ("a_link_of_proc_is_the_open_file", open_files),
    ("a_file_is_replaced_whole_and_keeps_its_mode", modes),
    ("a_new_file_is_readable_as_documented", new_modes),
    ("what_cannot_be_written_whole_leaves_the_old_file", too_large),
    ("a_place_that_cannot_be_written_is_told_before_the_work", early),
    ("two_pictures_are_not_written_to_one_place", one_place),
    ("exit_codes_survive_a_reader_that_has_gone", closed_pipes),
    ("a_full_disk_behind_stdout_is_a_failure", full_stdout),
    ("closed_standard_streams_are_no_reason_to_fail", closed_streams),
    ("a_small_address_space_is_told", shortage::address_space),
];

/// Those that make device nodes, or act as somebody else.
const AS_ROOT: &[Test] = &[
    ("a_device_is_written_and_stays_one", devices),
    ("a_small_control_group_is_told", shortage::control_group),
    ("a_full_device_is_a_failure_in_one_line", full_devices),
    ("owners_of_replaced_files_stay_owners", owners),
    ("a_file_that_may_not_be_written_is_not_replaced", not_ours),
    ("a_file_that_others_put_in_a_shared_directory_gets_nothing", shared_directories),
    ("a_snapshot_of_this_machine_goes_where_it_is_told", snapshots),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_root = rustix::process::geteuid().is_root();
    let can_make_nodes = is_root && {
        let dir = tempfile::tempdir().unwrap();
        // On some file systems there are no devices.
        File::options().write(true).open(node(&dir, 3)).is_ok()
    };
    let tests = TESTS.iter().chain(if can_make_nodes { AS_ROOT } else { &[] });
    let trials = tests.map(|&(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !can_make_nodes && !arguments.list {
        println!(
            "left out: the tests on devices and owners of results: they take root, and a /tmp with devices"
        );
    }
    conclusion.exit_code()
}

fn pagefold(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exit code 1, and one line on stderr with these words.
fn fails(output: &Output, says: &str) {
    fails_with(output, 1, says);
}

fn fails_with(output: &Output, code: i32, says: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(says) && text.lines().count() == 1, "{text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A device node of the kernel's memory devices: 3 is /dev/null, 7 /dev/full.
fn node(dir: &TempDir, minor: u32) -> PathBuf {
    let path = dir.path().join(format!("device{minor}"));
    let device = rustix::fs::makedev(1, minor);
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::CharacterDevice, Mode::from(0o666), device)
        .unwrap();
    path
}

fn scenario(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("short.toml");
    fs::write(&path, SHORT).unwrap();
    path
}

/// Every way to have a result written to `place`, but a snapshot of this machine, which takes root; and what it begins with.
fn writers(dir: &TempDir, place: &Path) -> Vec<(Vec<String>, &'static [u8])> {
    let scenario = scenario(dir);
    let line = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let place = text(place);
    vec![
        (line(&["export", "--sample", "--output", place]), b"{"),
        (line(&["export", "--sample", "--format", "prometheus", "--output", place]), b"#"),
        (line(&["export", "--sample", "--format", "parquet", "--output", place]), b"PAR1"),
        (line(&["export", "--schema", "--output", place]), b"{"),
        (line(&["map", "--sample", "--svg", place]), b"<"),
        (line(&["map", "--sample", "--png", place]), b"\x89PNG"),
        (line(&["diff", SAMPLE, SAMPLE, "--svg", place]), b"<"),
        (line(&["diff", SAMPLE, SAMPLE, "--png", place]), b"\x89PNG"),
        (line(&["run", text(&scenario), "--svg", place]), b"<"),
    ]
}

fn run(args: &[String]) -> Output {
    pagefold(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn succeeds(args: &[String]) {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn fifos() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(CWD, &fifo, Mode::from(0o600)).unwrap();
    for (args, begins) in writers(&dir, &fifo) {
        let from = fifo.clone();
        let reader = thread::spawn(move || fs::read(from).unwrap());
        succeeds(&args);
        let read = reader.join().unwrap();
        assert!(read.starts_with(begins), "{args:?}");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(), "{args:?}");
    }
}

fn links() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (link, file) = (dir.path().join("link"), elsewhere.path().join("file"));
    // By way of another link, and one that is relative to where it lies.
    symlink(elsewhere.path().join("next"), &link).unwrap();
    symlink("file", elsewhere.path().join("next")).unwrap();
    for (args, begins) in writers(&dir, &link) {
        // At first it leads nowhere, then to a file.
        for _ in 0..2 {
            succeeds(&args);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "{args:?}");
            assert!(fs::symlink_metadata(elsewhere.path().join("next")).unwrap().is_symlink(), "{args:?}");
            assert!(fs::symlink_metadata(&file).unwrap().is_file(), "{args:?}");
            assert!(fs::read(&file).unwrap().starts_with(begins), "{args:?}");
        }
        fs::remove_file(&file).unwrap();
    }
    assert_eq!(names(&elsewhere), ["next"]);
    let circle = dir.path().join("circle");
    symlink(&circle, &circle).unwrap();
    fails(&pagefold(&["map", "--sample", "--svg", text(&circle)]), "cannot write");
}

fn open_files() {
    // stdout is a pipe here, and a link leads to it.
    let output = pagefold(&["export", "--sample", "--output", "/proc/self/fd/1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout, pagefold(&["export", "--sample"]).stdout);
    // A file that is open and has no name any more is no file that could be replaced.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gone");
    let mut command = Command::new(binary());
    command.args(["export", "--sample", "--output", "/proc/self/fd/1"]);
    command.stdout(File::create(&path).unwrap());
    let mut kept = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(command.status().unwrap().success());
    let mut read = Vec::new();
    kept.read_to_end(&mut read).unwrap();
    assert_eq!(read, output.stdout);
    assert!(names(&dir).is_empty());
}

fn modes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for (args, begins) in writers(&dir, &file) {
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o620)).unwrap();
        let (inode, mut old) = (fs::metadata(&file).unwrap().ino(), File::open(&file).unwrap());
        succeeds(&args);
        let new = fs::metadata(&file).unwrap();
        // And everyone may read it.
        assert_eq!(new.mode() & 0o7777, 0o664, "{args:?}");
        assert_ne!(new.ino(), inode, "{args:?}");
        assert!(fs::read(&file).unwrap().starts_with(begins), "{args:?}");
        // Who has the old file open has it whole.
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
    }
    assert_eq!(names(&dir), ["file", "short.toml"], "nothing half-written is left");
}

fn new_modes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for (args, _) in writers(&dir, &file) {
        let script = format!("umask 077; exec {} \"$@\"", binary());
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).args(&args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644, "{args:?}");
        fs::remove_file(&file).unwrap();
    }
}

fn too_large() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    for (args, _) in writers(&dir, &file) {
        // Files may have 1 KiB.
        let script = format!("ulimit -f 1; exec {} \"$@\"", binary());
        let output = Command::new("bash").args(["-c", &script, "bash"]).args(&args).output().unwrap();
        fails(&output, "File too large");
        assert_eq!(fs::read(&file).unwrap(), b"old", "{args:?}");
        assert_eq!(names(&dir), ["file", "short.toml"], "{args:?}");
    }
}

fn early() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing/file");
    let broken = dir.path().join("broken.pgf");
    fs::write(&broken, "no snapshot").unwrap();
    let broken = text(&broken);
    // A run of hours, snapshots that cannot be read, a kernel that is not there: of neither is anything said.
    let mut long = SHORT.to_owned();
    for step in 0..20_000 {
        let to = if step % 2 == 0 { "1 GiB" } else { "0" };
        long += &format!("[[step]]\nname = \"{step}\"\nresize = [{{ device = 0, to = \"{to}\" }}]\n");
    }
    let path = dir.path().join("long.toml");
    fs::write(&path, long).unwrap();
    let directory = dir.path().join("directory");
    fs::create_dir(&directory).unwrap();
    for (place, says) in [
        (text(&missing), "there is no directory"),
        (text(&directory), "it is a directory"),
        ("/dev/null/file", "cannot write"),
        ("/proc/file", "cannot write"),
    ] {
        for args in [
            &["export", broken, "--output", place][..],
            &["export", "--schema", "--output", place],
            &["map", broken, "--svg", place],
            &["map", broken, "--png", place],
            &["diff", broken, broken, "--png", place],
            &["run", text(&path), "--svg", place],
            &["snapshot", "--force", place],
            &["boot", "--kernel", "/nowhere/kernel", "--snapshot", place, "--force"],
        ] {
            let output = pagefold(args);
            fails(&output, says);
            assert!(output.stdout.is_empty(), "{args:?}");
        }
    }
    let output = pagefold(&["export", "--format", "parquet", broken, "--output", text(&missing)]);
    fails(&output, "there is no directory");
    let output = pagefold(&["boot", "--kernel", "/nowhere/kernel", "--snapshot", broken]);
    fails(&output, "--force");
    fails(&pagefold(&["man", "--output", "/dev/null/man"]), "/dev/null/man");
}

fn one_place() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("picture");
    let place = text(&place);
    fails_with(&pagefold(&["map", "--sample", "--svg", place, "--png", place]), 2, "only one picture");
    let again = dir.path().join("../").join(dir.path().file_name().unwrap()).join("picture");
    fails_with(&pagefold(&["map", "--sample", "--svg", place, "--png", text(&again)]), 2, "only one picture");
    fails_with(&pagefold(&["diff", SAMPLE, SAMPLE, "--svg", "-", "--png", "-"]), 2, "only one picture");
    assert!(names(&dir).is_empty());
}

/// With stdout a pipe that nobody reads any more.
fn into_nothing(args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Command::new(binary()).args(args).stdin(Stdio::null()).stdout(writer).output().unwrap()
}

fn closed_pipes() {
    let host = roots::root("host-hvo");
    let root = text(&host);
    let partial = roots::copy("host-hvo");
    fs::write(partial.path().join("proc/vmstat"), "rubbish\n").unwrap();
    let partial = text(partial.path());
    let mut commands = vec![
        (vec!["report", "--no-scan", "--blocks", "--fail-over", "0.1%", "--root", root], 10),
        (vec!["report", "--json", "--no-scan", "--fail-over", "0.1%", "--root", root], 10),
        (vec!["report", "--no-scan", "--root", root], 0),
        (vec!["plan", "--hotplug", "100T", "--root", root], 10),
        (vec!["plan", "--root", root], 0),
        (vec!["export", "--sample"], 0),
        (vec!["export", "--sample", "--format", "parquet"], 0),
        (vec!["map", "--sample"], 0),
        (vec!["map", "--sample", "--png", "-"], 0),
        (vec!["diff", SAMPLE, SAMPLE, "--exit-code"], 0),
        (vec!["replay", "--sample", "--seconds", "0"], 0),
        (vec!["replay", "--sample", "--seconds", "0", "--protocol", "writable-tails", "--json"], 1),
        (vec!["run", "--list"], 0),
        (vec!["explain"], 0),
        (vec!["man"], 0),
        (vec!["completions", "bash"], 0),
        (vec!["--help"], 0),
        (vec!["report", "--root", "/nowhere"], 1),
        (vec!["explain", "everything"], 2),
        (vec!["report", "--nonsense"], 2),
    ];
    commands.push((vec!["report", "--no-scan", "--root", partial], 3));
    commands.push((vec!["export", "--no-scan", "--root", partial], 3));
    for (args, code) in commands {
        let output = into_nothing(&args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(code != 0 || output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

fn full_stdout() {
    let host = roots::root("host-hvo");
    let root = text(&host);
    for args in [
        &["report", "--no-scan", "--root", root][..],
        &["export", "--sample"],
        // These end without a line's end, and are whole only when the last buffer is written.
        &["export", "--sample", "--format", "parquet"],
        &["map", "--sample", "--png", "-"],
        &["map", "--sample"],
        &["plan", "--root", root],
        &["replay", "--sample", "--seconds", "0"],
        &["diff", SAMPLE, SAMPLE],
        &["run", "--list"],
        &["explain", "hvo"],
        &["man"],
        &["completions", "zsh"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(binary()).args(args).stdout(full).output().unwrap();
        fails(&output, "cannot write to stdout: No space left");
    }
}

fn closed_streams() {
    let host = roots::root("host-hvo");
    let root = text(&host);
    for streams in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let script = format!("exec {} report --no-scan --root {root} --fail-over 0.1% {streams}", binary());
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(10), "{streams}: {}", stderr(&output));
    }
}

fn devices() {
    let dir = tempfile::tempdir().unwrap();
    let null = node(&dir, 3);
    let link = dir.path().join("link");
    symlink(&null, &link).unwrap();
    for place in [&null, &link] {
        for (args, _) in writers(&dir, place) {
            succeeds(&args);
            assert!(fs::symlink_metadata(&null).unwrap().file_type().is_char_device(), "{args:?}");
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "{args:?}");
        }
    }
    assert_eq!(names(&dir), ["device3", "link", "short.toml"]);
}

fn full_devices() {
    let dir = tempfile::tempdir().unwrap();
    let full = node(&dir, 7);
    for (args, _) in writers(&dir, &full) {
        fails(&run(&args), "No space left");
        assert!(fs::symlink_metadata(&full).unwrap().file_type().is_char_device(), "{args:?}");
    }
}

fn owners() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
    for (args, _) in writers(&dir, &file) {
        succeeds(&args);
        let new = fs::metadata(&file).unwrap();
        assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (12, 34, 0o644), "{args:?}");
    }
}

/// As nobody, from a place that nobody can read.
fn as_nobody(dir: &TempDir, args: &[String]) -> Output {
    let copy = dir.path().join("pagefold");
    if !copy.exists() {
        common::copy_command(&copy);
    }
    Command::new(&copy).args(args).current_dir("/").uid(65534).gid(65534).output().unwrap()
}

fn not_ours() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let export = |place: &Path| {
        vec!["export", "--sample", "--output", text(place)].into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // A rename would need no right to the file itself.
    fails(&as_nobody(&dir, &export(&file)), "Permission denied");
    assert_eq!(fs::read(&file).unwrap(), b"old");
    // Nor is a file made where none may be.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fails(&as_nobody(&dir, &export(&dir.path().join("new"))), "no file can be made in");
}

fn shared_directories() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "bait").unwrap();
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o606)).unwrap();
    let output = pagefold(&["snapshot", "--force", text(&file)]);
    assert!(output.status.success(), "{}", stderr(&output));
    let new = fs::metadata(&file).unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0));
    assert_eq!(new.mode() & 0o002, 0, "others may not write it");
}

fn snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let (null, full, link, fifo) =
        (node(&dir, 3), node(&dir, 7), dir.path().join("link"), dir.path().join("fifo"));
    symlink("file", &link).unwrap();
    rustix::fs::mkfifoat(CWD, &fifo, Mode::from(0o600)).unwrap();
    let snapshot = |place: &Path| pagefold(&["snapshot", "--force", text(place)]);
    assert!(snapshot(&null).status.success());
    fails(&snapshot(&full), "No space left");
    assert!(snapshot(&link).status.success());
    let from = fifo.clone();
    let reader = thread::spawn(move || fs::read(from).unwrap());
    assert!(snapshot(&fifo).status.success());
    assert!(reader.join().unwrap().len() > 1000);
    for device in [&null, &full] {
        assert!(fs::symlink_metadata(device).unwrap().file_type().is_char_device());
    }
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(names(&dir), ["device3", "device7", "fifo", "file", "link"]);
    // Without --force nothing that is there is touched.
    fails(&pagefold(&["snapshot", text(&link)]), "--force");
    fails(&pagefold(&["snapshot", text(&null)]), "--force");
}
