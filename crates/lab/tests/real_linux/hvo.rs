//! HVO on 256 huge pages of 2 MiB: what Pagefold computes from their states before, and what the kernel gives back.

use pagefold_lab::{Kernel, Vm};
use serde_json::Value;

use crate::guest;

const HUGE_PAGES: u64 = 256;

pub fn is_the_kernels(kernel: &Kernel) {
    // Without clearing, which costs a second, and nothing else depends on.
    let builder = guest::builder(kernel).memory(1536 << 20).command_line("init_on_alloc=0");
    let mut guest = builder.boot().unwrap();
    set_pool(&mut guest, HUGE_PAGES);
    let predicted = predicted_pages(&guest::record(&mut guest));
    assert_eq!(predicted, HUGE_PAGES * 7);
    // The report and the plan, in the guest, promise the same.
    let report = guest::report(&mut guest);
    let (state, saved, left) = (&report["hvo"]["state"], &report["hvo"]["saved"], &report["hvo"]["left"]);
    assert_eq!(state, "off", "{report:#}");
    assert_eq!((&saved["min"], &saved["max"]), (&0.into(), &0.into()), "{report:#}");
    let promised = Value::from(predicted * 4096);
    assert_eq!((&left["min"], &left["max"]), (&promised, &promised), "{report:#}");
    let plan: Value = serde_json::from_str(&guest.run("pagefold plan --json").unwrap()).unwrap();
    let scenarios = plan["scenarios"].as_array().unwrap();
    let hvo =
        scenarios.iter().find(|scenario| scenario["name"].as_str().unwrap().starts_with("HVO")).unwrap();
    assert_eq!((&hvo["saved_min"], &hvo["saved_max"]), (&promised, &promised), "{hvo:#}");
    set_pool(&mut guest, 0);

    let plain = cost_of_a_pool(&mut guest);
    set_pool(&mut guest, 0);
    guest.run("echo 1 > /proc/sys/vm/hugetlb_optimize_vmemmap").unwrap();
    let optimised = cost_of_a_pool(&mut guest);
    match (plain.memmap, optimised.memmap) {
        (Some(plain), Some(optimised)) => {
            assert_eq!((plain, optimised), (0, -i64::try_from(predicted).unwrap()));
        }
        // Before 6.10 the kernel does not count its memory map: what is free tells, but for what else goes on.
        _ => {
            let saved = plain.free - optimised.free;
            let error = saved.abs_diff(predicted as i64);
            assert!(error <= 64, "{saved} pages came free, {predicted} were predicted");
        }
    }
    // What was promised is now saved; before 6.10, no file tells which huge pages are optimised.
    let report = guest::report(&mut guest);
    let (state, saved, left) = (&report["hvo"]["state"], &report["hvo"]["saved"], &report["hvo"]["left"]);
    assert_eq!(state, "on");
    assert_eq!(saved["max"], promised, "{report:#}");
    if optimised.memmap.is_some() {
        assert_eq!((&saved["min"], &left["max"]), (&promised, &0.into()), "{report:#}");
    }
}

/// Pages of descriptors that HVO would give back, as `pagefold replay` computes them.
fn predicted_pages(file: &[u8]) -> u64 {
    let replay = guest::on_host(&["replay", "--json", "--seconds", "0", "--snapshot"], file);
    let states = replay["states"].as_array().unwrap();
    let hugetlb = states.iter().find(|state| state["state"] == "hugetlb").unwrap();
    let bytes = |key: &str| hugetlb[key].as_u64().unwrap();
    assert_eq!(bytes("pages"), HUGE_PAGES * 512);
    (bytes("linux_bytes") - bytes("hvo_bytes")) / 4096
}

fn set_pool(guest: &mut Vm, huge_pages: u64) {
    guest.run(&format!("echo {huge_pages} > /proc/sys/vm/nr_hugepages")).unwrap();
    assert_eq!(guest.number("/proc/meminfo", "HugePages_Total").unwrap(), huge_pages);
}

/// What a pool of huge pages changes.
struct Cost {
    /// Pages that are not free any more.
    free: i64,
    /// Pages of the memory map, where the kernel counts them.
    memmap: Option<i64>,
}

fn cost_of_a_pool(guest: &mut Vm) -> Cost {
    let before = counters(guest);
    set_pool(guest, HUGE_PAGES);
    let after = counters(guest);
    let memmap = before.1.zip(after.1).map(|(before, after)| after as i64 - before as i64);
    Cost { free: before.0 as i64 - after.0 as i64, memmap }
}

/// Free pages, those on per-CPU lists included, and pages of the memory map.
fn counters(guest: &mut Vm) -> (u64, Option<u64>) {
    let free = "awk '/ nr_free_pages / || / count: / { pages += $2 } END { print pages }' /proc/zoneinfo";
    let free = guest.run(free).unwrap().trim().parse().unwrap();
    (free, guest::memmap(guest))
}
