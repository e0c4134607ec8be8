//! A whole host read from files that hold anything.

use std::fs;
use std::path::Path;

use pagefold_machine::Host;
use pagefold_machine::host::{GapKind, PageSizeFrom};
use proptest::prelude::*;

/// Every file that is read, of one block, one node and one pool.
const FILES: [&str; 20] = [
    "proc/meminfo",
    "proc/vmstat",
    "proc/zoneinfo",
    "proc/buddyinfo",
    "proc/cmdline",
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/arch",
    "proc/sys/vm/min_free_kbytes",
    "proc/sys/vm/hugetlb_optimize_vmemmap",
    "sys/kernel/btf/vmlinux",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
    "sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages",
    "sys/module/memory_hotplug/parameters/memmap_on_memory",
    "sys/devices/system/memory/block_size_bytes",
    "sys/devices/system/memory/auto_online_blocks",
    "sys/devices/system/memory/memory0/state",
    "sys/devices/system/memory/memory0/valid_zones",
    "sys/devices/system/node/node0/meminfo",
    "sys/devices/system/node/node0/memory0",
];

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_file_make_a_host(
        contents in prop::collection::vec(
            prop_oneof![
                Just(None),
                prop::collection::vec(any::<u8>(), 0..200).prop_map(Some),
                "[A-Za-z0-9_:, \n-]{0,80}".prop_map(|text| Some(text.into_bytes())),
            ],
            FILES.len(),
        ),
    ) {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in FILES.iter().zip(&contents) {
            if let Some(bytes) = bytes {
                write(root.path(), path, bytes);
            }
        }
        let host = Host::read(root.path());
        prop_assert!(host.page_size.bytes.is_power_of_two());
        prop_assert!((8..=512).contains(&host.descriptor_size()));
        // What is read can be written and read again.
        let json = serde_json::to_string(&host).unwrap();
        prop_assert_eq!(serde_json::from_str::<Host>(&json).unwrap(), host);
    }
}

#[test]
fn an_empty_root_is_all_gaps() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::read(root.path());
    assert!(host.zones.is_empty() && host.meminfo.is_empty() && host.blocks.is_none());
    assert_eq!(host.page_size.from, PageSizeFrom::Assumed);
    assert!(host.gaps.iter().all(|gap| gap.path.starts_with('/') && !gap.why.is_empty()));
    assert!(host.gaps.iter().any(|gap| gap.path == "/proc/meminfo" && gap.kind == GapKind::NotCollected));
}

#[test]
fn this_host_says_who_it_is() {
    let host = Host::read(Path::new("/"));
    assert_eq!(host.page_size.from, PageSizeFrom::System);
    assert!(!host.kernel.is_empty() && !host.arch.is_empty());
    assert!(host.meminfo.get("MemTotal").is_some_and(|bytes| bytes > 0));
    assert!(!host.zones.is_empty());
}
