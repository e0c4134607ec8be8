//! Huge pages of 2 MiB and 1 GiB, made while HVO was on and after: what Pagefold says of them, and what the kernel counts.

use std::process::Command;

use pagefold_lab::{GIB, Kernel};
use serde_json::Value;

use crate::guest;

/// Pages of 2 MiB made while HVO is on, at boot, and while it is off.
const OPTIMISED: u64 = 48;
const PLAIN: u64 = 80;
/// What HVO takes of a page of 2 MiB, and of 1 GiB: all pages of descriptors but one.
const OF_LARGE: u64 = 7;
const OF_GIGANTIC: u64 = 4095;

pub fn is_told(kernel: &Kernel) {
    // Without clearing, which costs seconds, and nothing else depends on. A page of a gigabyte is sure to be had
    // at boot only, and where there is more memory above 4 GiB than what else is put there.
    let options = format!(
        "init_on_alloc=0 hugetlb_free_vmemmap=on hugepagesz=1G hugepages=1 hugepagesz=2M hugepages={OPTIMISED}"
    );
    let mut guest = guest::builder(kernel).memory(6 * GIB).command_line(&options).boot().unwrap();
    let all = OPTIMISED + PLAIN;
    guest.run("echo 0 > /proc/sys/vm/hugetlb_optimize_vmemmap").unwrap();
    guest
        .run(&format!("echo {all} > /proc/sys/vm/nr_hugepages; [ $(cat /proc/sys/vm/nr_hugepages) = {all} ]"))
        .unwrap();

    let saved = (OPTIMISED * OF_LARGE + OF_GIGANTIC) * 4096;
    let left = PLAIN * OF_LARGE * 4096;
    let report = guest::report(&mut guest);
    let counted = guest::memmap(&mut guest);
    let recorded = report_of(&guest::record(&mut guest));
    // Page flags tell which of them are optimised on these kernels.
    let shows = ((6, 16)..=(7, 0)).contains(&kernel.version());
    for (report, is_live) in [(&report, true), (&recorded, false)] {
        let row = |size: u64| {
            let rows = report["huge_pages"].as_array().unwrap();
            rows.iter().find(|row| row["size"] == size).unwrap_or_else(|| panic!("{size}: {report:#}"))
        };
        let (large, gigantic) = (row(2 << 20), row(GIB));
        assert_eq!((&large["pages"], &gigantic["pages"]), (&all.into(), &1.into()), "{report:#}");
        let optimised = [&large["optimised"], &gigantic["optimised"]];
        let expected =
            if shows { [Value::from(OPTIMISED), Value::from(1)] } else { [Value::Null, Value::Null] };
        assert_eq!(optimised, [&expected[0], &expected[1]], "{report:#}");
        let bounds = |part: &str| {
            let interval = &report["hvo"][part];
            (interval["min"].as_u64().unwrap(), interval["max"].as_u64().unwrap())
        };
        // Elsewhere the kernel's count tells how much it is; and before 6.12, nothing does.
        if shows || is_live && counted.is_some() {
            assert_eq!((bounds("saved"), bounds("left")), ((saved, saved), (left, left)), "{report:#}");
        } else {
            let (least, most) = bounds("saved");
            assert!((least..=most).contains(&saved), "{report:#}");
        }
    }
    if let Some(counted) = counted {
        assert_eq!(report["descriptors"]["bytes"], counted * 4096);
        assert_eq!(recorded["descriptors"]["bytes"], counted * 4096);
    }
}

/// What `pagefold report` says of a recorded machine, on the host.
fn report_of(file: &[u8]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.pgf");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(guest::pagefold()).args(["report", "--json"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
