//! What a device has done so far: requests by kind and answer, and how long each took.

use std::time::{Duration, Instant};

use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};

/// Bounds of [`Latency::counts`], in nanoseconds: a request took at most so long. The last count has no bound.
pub const LATENCY_BOUNDS: [u64; 9] =
    [1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// How long requests took, from the moment the device had read one until it had its answer: host calls are in it, the queue
/// is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Requests that took at most [`LATENCY_BOUNDS`] of the same index and more than the one before; last, those that took
    /// longer than any of them.
    pub counts: [u64; LATENCY_BOUNDS.len() + 1],
    /// All of them together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Latency {
    fn add(&mut self, took: Duration) {
        let nanos = took.as_nanos() as u64;
        self.counts[LATENCY_BOUNDS.iter().take_while(|&&bound| nanos > bound).count()] += 1;
        self.total += took;
        self.longest = self.longest.max(took);
    }
}

/// What came of requests of one kind (virtio 1.4, "Memory Device", requests and responses).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Done.
    pub acked: u64,
    /// PLUG beyond the requested size.
    pub nacked: u64,
    /// Not now: the device is frozen, or the host refused.
    pub busy: u64,
    /// The range was wrong, or blocks were so already.
    pub errors: u64,
    /// Bytes that acknowledged requests named: plugged, unplugged, or asked about. 0 for UNPLUG_ALL, whose request names
    /// none; [`Stats::unplugged_by_all`] has what it unplugged.
    pub bytes: u64,
    /// How long they took.
    pub latency: Latency,
}

impl Requests {
    /// All of them.
    pub fn count(&self) -> u64 {
        self.acked + self.nacked + self.busy + self.errors
    }
}

/// What a device has done since it was made or restored. Numbers only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// PLUG.
    pub plug: Requests,
    /// UNPLUG.
    pub unplug: Requests,
    /// UNPLUG_ALL.
    pub unplug_all: Requests,
    /// STATE.
    pub state: Requests,
    /// Bytes that UNPLUG_ALL has unplugged.
    pub unplugged_by_all: u64,
    /// Requests of a kind that there is not, and chains that held no request: answered with ERROR, or not at all.
    pub invalid: u64,
    /// Changes of the requested size.
    pub resizes: u64,
}

impl Stats {
    pub(crate) fn add(
        &mut self,
        request: &Request,
        answer: &Response,
        block: u64,
        unplugged: u64,
        since: Instant,
    ) {
        let of = match RequestType::try_from(request.kind.get()) {
            Ok(RequestType::Plug) => &mut self.plug,
            Ok(RequestType::Unplug) => &mut self.unplug,
            Ok(RequestType::State) => &mut self.state,
            Ok(RequestType::UnplugAll) => {
                self.unplugged_by_all += unplugged;
                &mut self.unplug_all
            }
            Err(_) => {
                self.invalid += 1;
                return;
            }
        };
        match ResponseType::try_from(answer.kind.get()) {
            Ok(ResponseType::Ack) => {
                of.acked += 1;
                let is_all = request.kind.get() == RequestType::UnplugAll as u16;
                of.bytes += if is_all { 0 } else { u64::from(request.nb_blocks.get()) * block };
            }
            Ok(ResponseType::Nack) => of.nacked += 1,
            Ok(ResponseType::Busy) => of.busy += 1,
            Ok(ResponseType::Error) | Err(_) => of.errors += 1,
        }
        of.latency.add(since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_lies_below_its_bound() {
        let mut latency = Latency::default();
        for nanos in [1, 1_000, 1_001, 3_000, 2_000_000_000] {
            latency.add(Duration::from_nanos(nanos));
        }
        assert_eq!((latency.counts[0], latency.counts[1], latency.counts[9]), (2, 2, 1));
        assert_eq!(latency.longest, Duration::from_secs(2));
        assert_eq!(latency.total, Duration::from_nanos(2_000_005_002));
    }
}
