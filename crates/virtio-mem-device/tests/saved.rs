//! Device and queue, saved together.

use pagefold_virtio_mem_device::{
    Device, Memfd, Pages, QUEUE_SIZE, RestoreError, Saved, Settings, VERSION_1,
};
use serde_json::{Value, json};
use virtio_queue::{Queue, QueueT};

const GIB: u64 = 1 << 30;

fn settings() -> Settings {
    Settings::new(4 * GIB, GIB)
}

fn memory() -> Memfd {
    Memfd::new(GIB, Pages::Normal).unwrap()
}

fn saved() -> (Saved, Queue) {
    let mut device = Device::new(settings(), memory(), ()).unwrap();
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_size(64);
    queue.set_desc_table_address(Some(0x1000), Some(0));
    queue.set_avail_ring_address(Some(0x2000), Some(0));
    queue.set_used_ring_address(Some(0x3000), Some(1));
    queue.set_next_avail(7);
    queue.set_next_used(7);
    queue.set_ready(true);
    device.activate(VERSION_1 | 2).unwrap();
    (device.save(&queue), queue)
}

#[test]
fn a_queue_goes_on_where_it_was() {
    let (saved, queue) = saved();
    let text = serde_json::to_string(&saved).unwrap();
    let saved: Saved = serde_json::from_str(&text).unwrap();
    let (mut device, again) = Device::load(settings(), memory(), (), &saved).unwrap();
    assert_eq!(again.state(), queue.state());
    assert_eq!(device.negotiated_features(), Some(VERSION_1 | 2));
    assert_eq!(device.save(&again), saved);
}

#[test]
fn a_queue_that_there_cannot_be_is_refused() {
    let value = serde_json::to_value(saved().0).unwrap();
    for (word, wrong) in
        [("max_size", json!(0)), ("max_size", json!(3)), ("desc_table", json!(3)), ("used_ring", json!(2))]
    {
        let mut value: Value = value.clone();
        value["queue"][word] = wrong;
        let saved: Saved = serde_json::from_value(value).unwrap();
        let refused = Device::load(settings(), memory(), (), &saved).unwrap_err();
        assert!(matches!(refused, RestoreError::Damaged(_)), "{word}: {refused}");
    }
}
