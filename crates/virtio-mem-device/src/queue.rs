//! The `guest-request` queue: every chain a driver makes available comes back, whatever is in it.
//!
//! | chain | what happens |
//! |---|---|
//! | 24 readable bytes and 10 writable ones or more, split as the driver likes | it is a request |
//! | too few readable bytes, or some that are not memory | ERROR, no request |
//! | more than [`QUEUE_SIZE`] descriptors, or an end that is none: a circle, a table that is none | the same |
//! | too few writable bytes, or some that are not memory | used, with length 0; no request |
//! | rings that are not memory, or hold impossible numbers | the device needs a reset; nothing is served until then |
//!
//! Unplugged memory of this device is not memory here: to read or write it would allocate what was given back.

use pagefold_virtio_mem_spec::{Request, Response, ResponseType};
use std::mem::size_of;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};
use zerocopy::{FromBytes, IntoBytes};

use crate::core::Core;
use crate::device::{Device, DriverState, EVENT_IDX};
use crate::host::{Backing, GuestAccess};

/// The size to offer for the queue: that of other devices. A chain has as many descriptors at most, whatever the size of the
/// queue that carries it.
pub const QUEUE_SIZE: u16 = 128;

const REQUEST: usize = size_of::<Request>();
const RESPONSE: usize = size_of::<Response>();

/// What serving the queue came to.
#[must_use = "the driver waits for the interrupts"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Chains that were returned.
    pub chains: u32,
    /// The driver wants to be told that buffers were used.
    pub interrupt: bool,
    /// More may be waiting: serve again. One call serves at most as many chains as the queue has entries, so that no driver
    /// keeps a thread busy for ever.
    pub more: bool,
    /// The queue is unusable. Set `DEVICE_NEEDS_RESET` and raise a configuration interrupt.
    pub needs_reset: bool,
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// Serves what the driver has made available. Does nothing where no driver is ready, or its queue is not: a doorbell may
    /// ring at any time.
    ///
    /// Call it at every doorbell, after [`Device::activate`] and after [`Device::restore`] (what was made available before
    /// rings no doorbell again), and once more while [`Served::more`]. It sets `queue` up for what the driver has negotiated
    /// (`EVENT_IDX`); addresses, size and readiness are the transport's. `queue` is the device's only one, index 0.
    pub fn serve<M: GuestMemory>(&mut self, queue: &mut Queue, mem: &M) -> Served {
        self.serve_and_tell(queue, mem, &mut |_, _| ())
    }

    /// As [`Device::serve`], and tells `tell` of each request and its answer: for logs.
    pub fn serve_and_tell<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        tell: &mut dyn FnMut(&Request, &Response),
    ) -> Served {
        let mut served = Served::default();
        let DriverState::Ready { features } = self.driver else { return served };
        if !queue.ready() {
            return served;
        }
        // A queue that does not know would tell the driver where to look for doorbells in a place it does not read.
        queue.set_event_idx(features & EVENT_IDX != 0);
        if self.serve_chains(queue, mem, tell, &mut served).is_err() {
            self.driver = DriverState::Broken { features };
            served.needs_reset = true;
            served.more = false;
        }
        served
    }

    fn serve_chains<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        tell: &mut dyn FnMut(&Request, &Response),
        served: &mut Served,
    ) -> Result<(), Error> {
        let view = self.view(mem);
        if !queue.is_valid(&view) {
            return Err(Error::QueueNotReady);
        }
        queue.disable_notification(&view)?;
        while served.chains < u32::from(queue.size()) {
            if !self.serve_chain(queue, mem, tell)? {
                if !queue.enable_notification(&self.view(mem))? {
                    break;
                }
                // The driver was faster than the doorbell, or an entry could not be read.
                if !self.serve_chain(queue, mem, tell)? {
                    return Err(Error::InvalidAvailRingIndex);
                }
            }
            served.chains += 1;
        }
        let view = self.view(mem);
        served.more = queue.enable_notification(&view)?;
        served.interrupt = served.chains > 0 && queue.needs_notification(&view)?;
        Ok(())
    }

    /// Serves the next chain, if there is one.
    fn serve_chain<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        tell: &mut dyn FnMut(&Request, &Response),
    ) -> Result<bool, Error> {
        let view = self.view(mem);
        let Some(chain) = queue.iter(&view)?.next() else { return Ok(false) };
        let head = chain.head_index();
        let (request, reply) = read(chain, &view);
        let written = match reply {
            None => {
                self.stats.invalid += 1;
                0
            }
            Some(reply) => {
                let response = match request {
                    Some(request) => {
                        let response = self.handle(&request);
                        tell(&request, &response);
                        response
                    }
                    None => {
                        self.stats.invalid += 1;
                        Response::new(ResponseType::Error)
                    }
                };
                reply.write(&response, &self.view(mem))
            }
        };
        queue.add_used(&self.view(mem), head, written)?;
        Ok(true)
    }

    fn view<'a, M>(&'a self, mem: &'a M) -> Plugged<'a, M> {
        Plugged { mem, core: &self.core }
    }
}

/// The guest's memory without what this device has unplugged.
struct Plugged<'a, M> {
    mem: &'a M,
    core: &'a Core,
}

impl<M: GuestMemory> GuestMemory for Plugged<'_, M> {
    type PhysicalMemory = M::PhysicalMemory;
    type Bitmap = M::Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        !self.core.touches_unplugged(addr.0, count as u64) && self.mem.check_range(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if self.core.touches_unplugged(addr.0, count as u64) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        self.mem.get_slices(addr, count, access)
    }
}

/// Where a driver wants its response: as many bytes as one has, checked to be memory.
#[derive(Default)]
struct Reply {
    parts: [(GuestAddress, usize); RESPONSE],
    count: usize,
}

impl Reply {
    /// Writes a response. Returns its bytes, or 0 where the request has unplugged the memory it was to go to.
    fn write(&self, response: &Response, mem: &impl GuestMemory) -> u32 {
        let parts = &self.parts[..self.count];
        if !parts.iter().all(|&(addr, len)| mem.check_range(addr, len, Permissions::Write)) {
            return 0;
        }
        let mut rest = response.as_bytes();
        for &(addr, len) in parts {
            let (part, after) = rest.split_at(len);
            if mem.write_slice(part, addr).is_err() {
                return 0;
            }
            rest = after;
        }
        RESPONSE as u32
    }
}

/// What a chain asks, and where its answer goes. The chain is read once: what a driver changes meanwhile is not looked at
/// again.
fn read<M: GuestMemory>(chain: DescriptorChain<&M>, mem: &M) -> (Option<Request>, Option<Reply>) {
    let (mut bytes, mut filled, mut readable) = ([0; REQUEST], 0, true);
    let (mut reply, mut room, mut writable) = (Reply::default(), RESPONSE, true);
    let mut ended = false;
    for buffer in chain.take(QUEUE_SIZE.into()) {
        ended = !buffer.has_next();
        if buffer.is_write_only() {
            writable &= is_memory(mem, &buffer, Permissions::Write);
            let len = room.min(buffer.len() as usize);
            if writable && len > 0 {
                reply.parts[reply.count] = (buffer.addr(), len);
                reply.count += 1;
                room -= len;
            }
        } else {
            let len = (REQUEST - filled).min(buffer.len() as usize);
            let part = &mut bytes[filled..filled + len];
            readable &= is_memory(mem, &buffer, Permissions::Read)
                && (len == 0 || mem.read_slice(part, buffer.addr()).is_ok());
            filled += len;
        }
    }
    let whole = ended && readable && filled == REQUEST;
    let request = whole.then(|| Request::read_from_bytes(&bytes).ok()).flatten();
    (request, (writable && room == 0).then_some(reply))
}

/// Whether all of a buffer lies in memory.
fn is_memory(mem: &impl GuestMemory, buffer: &Descriptor, access: Permissions) -> bool {
    let (addr, len) = (buffer.addr(), buffer.len());
    len == 0 || addr.checked_add(u64::from(len)).is_some() && mem.check_range(addr, len as usize, access)
}
