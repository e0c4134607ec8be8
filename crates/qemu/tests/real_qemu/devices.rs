//! virtio-mem devices, nodes and DIMMs, as QEMU sees them; no guest drives them.

use std::time::Duration;

use pagefold_qemu::{GIB, MIB, NumaNode, Qemu, QemuBuilder, QemuError, VirtioMem};
use serde_json::{Value, json};

/// Two nodes, of which the second has no memory, and a device on each.
fn machine() -> Qemu {
    let builder = QemuBuilder::new().memory(16 * MIB).cpus(2).node(NumaNode { memory: 0, cpus: 1 });
    let builder = builder.virtio_mem(VirtioMem::new(3 * GIB).requested(GIB));
    let builder = builder.virtio_mem(VirtioMem::new(64 * GIB).block(4 * MIB).node(1));
    builder.spawn().unwrap()
}

/// What QEMU says of its memory devices.
fn devices(qemu: &mut Qemu) -> Vec<Value> {
    let devices = qemu.qmp().execute("query-memory-devices", json!({})).unwrap();
    devices.as_array().unwrap().iter().map(|device| device["data"].clone()).collect()
}

pub fn places() {
    let mut qemu = machine();
    let devices = devices(&mut qemu);
    let values = |key: &str| devices.iter().map(|device| device[key].clone()).collect::<Vec<_>>();
    assert_eq!(values("id"), ["vmem0", "vmem1"]);
    assert_eq!(values("node"), [0, 1]);
    assert_eq!(values("max-size"), [3 * GIB, 64 * GIB]);
    assert_eq!(values("block-size"), [2 * MIB, 4 * MIB]);
    assert_eq!(values("requested-size"), [GIB, 0]);
    for (at, device) in devices.iter().enumerate() {
        assert_eq!(device["memaddr"], qemu.qmp().address(at).unwrap());
    }
    let cpus = qemu.qmp().execute("query-cpus-fast", json!({})).unwrap();
    let nodes = cpus.as_array().unwrap().iter().map(|cpu| cpu["props"]["node-id"].clone());
    assert_eq!(nodes.collect::<Vec<_>>(), [0, 0, 1]);
}

pub fn requests() {
    let mut qemu = machine();
    qemu.qmp().resize(1, 8 * MIB).unwrap();
    let requested: Vec<_> =
        devices(&mut qemu).iter().map(|device| device["requested-size"].clone()).collect();
    assert_eq!(requested, [GIB, 8 * MIB]);
    // Half a block, more than there is, and no such device.
    for (device, bytes) in [(1, 2 * MIB), (0, 4 * GIB), (2, 0)] {
        let error = qemu.qmp().resize(device, bytes).unwrap_err();
        assert!(matches!(error, QemuError::Refused { .. }), "{error}");
    }
}

pub fn no_driver() {
    let mut qemu = machine();
    assert_eq!(qemu.qmp().plugged(0).unwrap(), 0);
    qemu.qmp().wait_for_plugged(0, 0, Duration::ZERO).unwrap();
    let error = qemu.qmp().wait_for_plugged(0, GIB, Duration::from_millis(20)).unwrap_err().to_string();
    assert!(error.starts_with("the guest has 0 bytes of vmem0 plugged, not 1073741824"), "{error}");
}

pub fn dimm() {
    let mut qemu = QemuBuilder::new().memory(16 * MIB).dimms(256 * MIB).spawn().unwrap();
    qemu.qmp().plug_dimm(128 * MIB).unwrap();
    qemu.qmp().plug_dimm(128 * MIB).unwrap();
    let sizes: Vec<_> = devices(&mut qemu).iter().map(|device| device["size"].clone()).collect();
    assert_eq!(sizes, [128 * MIB, 128 * MIB]);
    let mut qemu = QemuBuilder::new().memory(16 * MIB).spawn().unwrap();
    assert!(matches!(qemu.qmp().plug_dimm(2 * GIB), Err(QemuError::Refused { .. })));
}
