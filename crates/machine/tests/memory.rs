//! What reading a machine costs in memory does not follow the size of the machine.
//!
//! A test binary of its own: the peak of a whole process is what is measured.

use std::fs::{self, File};
use std::path::Path;

use pagefold_machine::live::{self, ScanProgress};

/// The root of a machine with this much memory, in pages, nothing known about any of them. The files are sparse: they
/// take no space.
fn root_with(pages: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let proc = dir.path().join("proc");
    fs::create_dir(&proc).unwrap();
    for name in ["kpageflags", "kpagecount"] {
        File::create(proc.join(name)).unwrap().set_len(pages * 8).unwrap();
    }
    fs::write(proc.join("iomem"), format!("00000000-{:08x} : System RAM\n", pages * 4096 - 1)).unwrap();
    dir
}

/// The most memory that this process had since the last call, in KiB.
fn peak_of(f: impl FnOnce()) -> u64 {
    // Resets the peak; see proc(5).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    f();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn read(root: &Path, pages: u64) {
    let progress = ScanProgress::default();
    let machine = live::read_from(root, "", &progress).unwrap();
    assert_eq!((machine.pages(), machine.runs.len()), (pages, 1));
    assert_eq!(progress.get(), (pages, pages));
}

#[test]
fn peak_memory_is_that_of_a_machine_a_thousand_times_smaller() {
    let (small, large) = (1 << 16, 1 << 26);
    let roots = [small, large].map(root_with);
    // The first brings in what the process needs anyway.
    read(roots[0].path(), small);
    let peaks = [peak_of(|| read(roots[0].path(), small)), peak_of(|| read(roots[1].path(), large))];
    // The page files of the large machine have 512 MiB.
    assert!(peaks[1] <= peaks[0] + 1024, "{} KiB for 256 MiB, {} KiB for 256 GiB", peaks[0], peaks[1]);
}
