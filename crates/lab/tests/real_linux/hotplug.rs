//! Can a guest add so much memory? `pagefold plan --hotplug` is asked in the guest, and then Linux shows it.

use std::thread;
use std::time::{Duration, Instant};

use pagefold_lab::{GIB, Kernel, MIB, Vm};
use serde_json::Value;

use crate::guest;

/// A memory block, and its descriptors.
const BLOCK: u64 = 128 * MIB;
const DESCRIPTORS: u64 = 2 * MIB;
/// Blocks of the guest at boot.
const BOOT_BLOCKS: u64 = 2;
/// All that the device has: its descriptors alone are as large as the guest's whole memory.
const DEVICE: u64 = 16 * GIB;

pub fn is_as_planned(kernel: &Kernel) {
    let builder = guest::builder_with(kernel, BOOT_BLOCKS * BLOCK, DEVICE);
    let mut guest = builder.command_line("init_on_alloc=0 loglevel=5").boot().unwrap();
    let (code, answer) = plan(&mut guest, DEVICE);
    assert_eq!((code, &answer["works"]), (10, &Value::Bool(false)), "{answer:#}");

    // It can add what is said to be the largest step, and the descriptors of that come out of the memory there was. What
    // is free changes from one look to the next: asks until the answer is yes.
    let mut step = DEVICE;
    let answer = loop {
        let (code, answer) = plan(&mut guest, step);
        if code == 0 {
            break answer;
        }
        let smaller = largest(&answer);
        assert!((GIB..step).contains(&smaller), "{answer:#}");
        step = smaller;
    };
    assert_eq!(answer["works"], true, "{answer:#}");
    let bytes = |figure: &Value| figure["bytes"].as_u64().unwrap();
    let (descriptors, objects) = (bytes(&answer["descriptors"]), bytes(&answer["objects"]));
    assert_eq!(descriptors, step / BLOCK * DESCRIPTORS);
    let before = (free_in_kernel_zones(&mut guest), guest::memmap(&mut guest));
    guest.qmp().resize(0, step).unwrap();
    guest.qmp().wait_for_plugged(0, step, Duration::from_secs(120)).unwrap();
    let online = "cat /sys/devices/system/memory/memory*/state | grep -c ^online";
    guest.wait_for(&format!("[ $({online}) = {} ]", BOOT_BLOCKS + step / BLOCK)).unwrap();
    let after = (free_in_kernel_zones(&mut guest), guest::memmap(&mut guest));
    if let (Some(before), Some(after)) = (before.1, after.1) {
        assert_eq!((after - before) * 4096, descriptors);
    }
    let taken = before.0.saturating_sub(after.0);
    // Besides, the guest lives on: to 2 MiB.
    let expected = descriptors - 2 * MIB..=descriptors + objects + 2 * MIB;
    assert!(expected.contains(&taken), "{taken} bytes are taken, {descriptors} and {objects} were planned");

    // It cannot add all that the device has: the driver gives up midway, if nothing worse happens, and the console says so.
    guest.qmp().resize(0, DEVICE).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !["adding memory failed", "Out of memory", "Kernel panic"]
        .iter()
        .any(|end| guest.console().contains(end))
    {
        assert!(Instant::now() < deadline, "{}", guest.console());
        thread::sleep(Duration::from_millis(50));
    }
    // Unless it died of it.
    if let Ok(plugged) = guest.qmp().plugged(0) {
        assert!((step..DEVICE).contains(&plugged), "{plugged} bytes are plugged");
    }
}

/// The largest step that works with virtio-mem and `online_movable`.
fn largest(answer: &Value) -> u64 {
    let ways = answer["ways"].as_array().unwrap();
    let movable = ways.iter().find(|way| way["name"] == "virtio-mem, online_movable").unwrap();
    movable["largest"].as_u64().unwrap()
}

/// The exit code and the answer.
fn plan(guest: &mut Vm, bytes: u64) -> (u64, Value) {
    let file = "/tmp/plan.json";
    let output = guest.run(&format!("pagefold plan --hotplug {bytes} --json >{file}; echo $?; cat {file}"));
    let output = output.unwrap();
    let (code, answer) = output.split_once('\n').unwrap();
    (code.parse().unwrap(), serde_json::from_str(answer).unwrap())
}

/// Free bytes of all zones but the movable one, those on per-CPU lists included.
fn free_in_kernel_zones(guest: &mut Vm) -> u64 {
    let program = "/^Node/ { movable = /Movable/ } !movable && (/pages free/ || / count: /) { pages += $NF } \
                   END { print pages * 4096 }";
    guest.run(&format!("awk '{program}' /proc/zoneinfo")).unwrap().trim().parse().unwrap()
}
