//! Huge pages of 2 MiB and 1 GiB, made while HVO was on and while it was off, in either order: what Pagefold says of them, and
//! what the kernel counts.

use pagefold_lab::{GIB, Kernel, Vm};
use serde_json::Value;

use crate::guest;

/// What HVO takes of a page of 2 MiB, and of 1 GiB: all pages of descriptors but one.
const OF_LARGE: u64 = 7;
const OF_GIGANTIC: u64 = 4095;

/// Huge pages, and how many of them are optimised.
#[derive(Clone, Copy)]
struct Pools {
    large: u64,
    large_optimised: u64,
    gigantic: u64,
    gigantic_optimised: u64,
}

impl Pools {
    /// Bytes that HVO saves.
    fn saved(self) -> u64 {
        (self.large_optimised * OF_LARGE + self.gigantic_optimised * OF_GIGANTIC) * 4096
    }

    /// Bytes that it could save besides.
    fn left(self) -> u64 {
        (self.large * OF_LARGE + self.gigantic * OF_GIGANTIC) * 4096 - self.saved()
    }
}

/// A guest with a page of a gigabyte, and some of 2 MiB, made at boot.
///
/// Without clearing, which costs seconds, and nothing else depends on. A page of a gigabyte is sure to be had at boot only, and
/// where there is more memory above 4 GiB than what else is put there.
fn boot(kernel: &Kernel, hvo: &str, large: u64) -> Vm {
    let options = format!(
        "init_on_alloc=0 hugetlb_free_vmemmap={hvo} hugepagesz=1G hugepages=1 hugepagesz=2M hugepages={large}"
    );
    guest::builder(kernel).memory(8 * GIB).command_line(&options).boot().unwrap()
}

fn switch(guest: &mut Vm, hvo: u64) {
    guest.run(&format!("echo {hvo} > /proc/sys/vm/hugetlb_optimize_vmemmap")).unwrap();
}

/// Makes or frees huge pages until there are so many.
fn set_pool(guest: &mut Vm, kib: u64, pages: u64) {
    let file = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
    guest.run(&format!("echo {pages} > {file}; [ $(cat {file}) = {pages} ]")).unwrap();
}

/// HVO is on at boot, and off later.
pub fn is_told(kernel: &Kernel) {
    let mut guest = boot(kernel, "on", 48);
    let all = Pools { large: 48, large_optimised: 48, gigantic: 1, gigantic_optimised: 1 };
    check(&mut guest, kernel, all);
    switch(&mut guest, 0);
    set_pool(&mut guest, 2048, 128);
    check(&mut guest, kernel, Pools { large: 128, ..all });
}

/// HVO is off at boot, and on later: pools from before the switch stay as they are.
pub fn stays_as_made(kernel: &Kernel) {
    let mut guest = boot(kernel, "off", 80);
    let plain = Pools { large: 80, large_optimised: 0, gigantic: 1, gigantic_optimised: 0 };
    check(&mut guest, kernel, plain);
    switch(&mut guest, 1);
    set_pool(&mut guest, 1 << 20, 2);
    set_pool(&mut guest, 2048, 128);
    let mixed = Pools { large: 128, large_optimised: 48, gigantic: 2, gigantic_optimised: 1 };
    check(&mut guest, kernel, mixed);
    // The one that is optimised, and the one that is not, are freed; of the other pool nothing changes.
    set_pool(&mut guest, 1 << 20, 0);
    check(&mut guest, kernel, Pools { gigantic: 0, gigantic_optimised: 0, ..mixed });
}

/// What Pagefold says in the guest, and of a recording of it, is what was made.
fn check(guest: &mut Vm, kernel: &Kernel, pools: Pools) {
    let report = guest::report(guest);
    let counted = guest::memmap(guest);
    let recorded = guest::on_host(&["report", "--json"], &guest::record(guest));
    // Page flags tell which of them are optimised on these kernels.
    let shows = ((6, 16)..=(7, 0)).contains(&kernel.version());
    let (saved, left) = (pools.saved(), pools.left());
    for (report, is_live) in [(&report, true), (&recorded, false)] {
        for (size, pages, optimised) in [
            (2u64 << 20, pools.large, pools.large_optimised),
            (GIB, pools.gigantic, pools.gigantic_optimised),
        ] {
            let rows = report["huge_pages"].as_array().unwrap();
            let row = rows.iter().find(|row| row["size"] == size);
            let row = row.filter(|_| pages > 0 || is_live);
            assert_eq!(row.map_or(0, |row| row["pages"].as_u64().unwrap()), pages, "{size}: {report:#}");
            let expected = if shows { Value::from(optimised) } else { Value::Null };
            if let Some(row) = row.filter(|_| pages > 0) {
                assert_eq!(row["optimised"], expected, "{size}: {report:#}");
            }
        }
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
