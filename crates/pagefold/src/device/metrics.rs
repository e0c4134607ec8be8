//! A device's counters and latencies as Prometheus text.

use std::fmt;

use pagefold_virtio_mem_device::{LATENCY_BOUNDS, Requests, Stats};
use pagefold_virtio_mem_vhost::{Backend, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The device now.
pub fn text(backend: &Backend) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(DeviceMetrics { status: backend.status(), stats: backend.stats() }));
    let mut text = String::new();
    // It is written to memory.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct DeviceMetrics {
    status: Status,
    stats: Stats,
}

impl DeviceMetrics {
    fn kinds(&self) -> [(&'static str, &Requests); 4] {
        let Stats { plug, unplug, unplug_all, state, .. } = &self.stats;
        [("plug", plug), ("unplug", unplug), ("unplug_all", unplug_all), ("state", state)]
    }
}

impl Collector for DeviceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.status;
        let gauges = [
            ("virtio_mem_region_bytes", "Bytes that can be plugged at most", status.region_size),
            ("virtio_mem_requested_bytes", "Bytes that the host wants plugged", status.requested_size),
            ("virtio_mem_plugged_bytes", "Bytes that are plugged", status.plugged_size),
            ("virtio_mem_resident_bytes", "Bytes of memory behind the region", status.resident),
            ("virtio_mem_driver_ready", "Whether a driver is ready", u64::from(status.driver.is_some())),
        ];
        for (name, help, value) in gauges {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        let counters = [
            ("virtio_mem_resizes", "Changes of the requested size", self.stats.resizes),
            ("virtio_mem_invalid_requests", "Requests that are none", self.stats.invalid),
            ("virtio_mem_host_failures", "Times the host would not do something", status.host_failures),
            (
                "virtio_mem_unplugged_by_all_bytes",
                "Bytes that UNPLUG_ALL has unplugged",
                self.stats.unplugged_by_all,
            ),
        ];
        for (name, help, value) in counters {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        let mut requests = encoder.encode_descriptor(
            "virtio_mem_requests",
            "Requests of the driver, by kind and answer",
            None,
            MetricType::Counter,
        )?;
        for (kind, of) in self.kinds() {
            let answers = [("ack", of.acked), ("nack", of.nacked), ("busy", of.busy), ("error", of.errors)];
            for (answer, count) in answers {
                let labels = [("request", kind), ("answer", answer)];
                requests.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        let mut bytes = encoder.encode_descriptor(
            "virtio_mem_request_bytes",
            "Bytes that acknowledged requests named, by kind",
            None,
            MetricType::Counter,
        )?;
        for (kind, of) in self.kinds() {
            let labels = [("request", kind)];
            bytes.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&of.bytes, None)?;
        }
        let mut seconds = encoder.encode_descriptor(
            "virtio_mem_request_seconds",
            "Time that the device took for a request, with the host's part",
            None,
            MetricType::Histogram,
        )?;
        for (kind, of) in self.kinds() {
            let labels = [("request", kind)];
            let bounds = LATENCY_BOUNDS.map(|nanos| nanos as f64 / 1e9).into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(of.latency.counts).collect();
            let total = of.latency.total.as_secs_f64();
            seconds.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                total,
                of.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}
