//! The `guest-request` queue: every chain a driver makes available comes back, whatever is in it.
//!
//! | chain | what happens |
//! |---|---|
//! | 24 readable bytes and 10 writable ones or more, split as the driver likes | it is a request |
//! | too few readable bytes, or some that are not memory | ERROR, no request |
//! | too few writable bytes, or some that are not memory | used, with length 0; no request |
//! | a buffer in unplugged memory of this device | as one that is not memory: it would allocate what was given back |
//! | rings that are not memory, or hold impossible numbers | the device needs a reset; nothing is served until then |

use pagefold_virtio_mem_spec::{Request, Response, ResponseType};
use std::mem::size_of;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::Device;
use crate::host::{Backing, GuestAccess};

/// The size to offer for the queue: that of other devices.
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

/// Where a driver wants its response: as many bytes as one has, checked to be memory.
#[derive(Default)]
struct Reply {
    parts: [(GuestAddress, usize); RESPONSE],
    count: usize,
}

impl<B: Backing, G: GuestAccess> Device<B, G> {
    /// Serves what the driver has made available. Does nothing where no driver is ready, or its queue is not: a doorbell may
    /// ring at any time.
    pub fn serve<M: GuestMemory>(&mut self, queue: &mut Queue, mem: &M) -> Served {
        let mut served = Served::default();
        if !self.driver_ready || self.needs_reset || !queue.ready() {
            return served;
        }
        if self.serve_chains(queue, mem, &mut served).is_err() {
            self.needs_reset = true;
            served.needs_reset = true;
            served.more = false;
        }
        served
    }

    fn serve_chains<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        served: &mut Served,
    ) -> Result<(), Error> {
        if !queue.is_valid(mem) {
            return Err(Error::QueueNotReady);
        }
        queue.disable_notification(mem)?;
        loop {
            let Some(chain) = queue.iter(mem)?.next() else {
                if !queue.enable_notification(mem)? {
                    break;
                }
                // The driver was faster than the doorbell, or an entry could not be read.
                let Some(chain) = queue.iter(mem)?.next() else { return Err(Error::InvalidAvailRingIndex) };
                self.serve_chain(chain, queue, mem)?;
                served.chains += 1;
                continue;
            };
            self.serve_chain(chain, queue, mem)?;
            served.chains += 1;
            if served.chains >= u32::from(queue.size()) {
                served.more = queue.enable_notification(mem)?;
                break;
            }
        }
        served.interrupt = served.chains > 0 && queue.needs_notification(mem)?;
        Ok(())
    }

    fn serve_chain<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        queue: &mut Queue,
        mem: &M,
    ) -> Result<(), Error> {
        let head = chain.head_index();
        let written = self.answer(chain, mem).unwrap_or(0);
        queue.add_used(mem, head, written)
    }

    /// Answers a chain. Returns the bytes written, or nothing where there is no room for an answer.
    fn answer<M: GuestMemory>(&mut self, chain: DescriptorChain<&M>, mem: &M) -> Option<u32> {
        let reply = self.reply_of(chain.clone(), mem)?;
        let response = match self.request_of(chain, mem) {
            Some(request) => self.handle(&request),
            None => Response::new(ResponseType::Error),
        };
        // A driver may have unplugged the memory that the answer was to go to.
        let parts = &reply.parts[..reply.count];
        if parts.iter().any(|(addr, len)| self.core.touches_unplugged(addr.0, *len as u64)) {
            return None;
        }
        let mut rest = response.as_bytes();
        for (addr, len) in parts {
            let (part, after) = rest.split_at(*len);
            mem.write_slice(part, *addr).ok()?;
            rest = after;
        }
        Some(RESPONSE as u32)
    }

    fn reply_of<M: GuestMemory>(&self, chain: DescriptorChain<&M>, mem: &M) -> Option<Reply> {
        let (mut reply, mut room) = (Reply::default(), RESPONSE);
        for buffer in chain.writable() {
            if !self.is_memory(mem, buffer.addr(), buffer.len(), Permissions::Write) {
                return None;
            }
            let len = room.min(buffer.len() as usize);
            if len > 0 {
                reply.parts[reply.count] = (buffer.addr(), len);
                reply.count += 1;
                room -= len;
            }
        }
        (room == 0).then_some(reply)
    }

    fn request_of<M: GuestMemory>(&self, chain: DescriptorChain<&M>, mem: &M) -> Option<Request> {
        let (mut bytes, mut filled) = ([0; REQUEST], 0);
        for buffer in chain.readable() {
            if !self.is_memory(mem, buffer.addr(), buffer.len(), Permissions::Read) {
                return None;
            }
            let len = (REQUEST - filled).min(buffer.len() as usize);
            mem.read_slice(&mut bytes[filled..filled + len], buffer.addr()).ok()?;
            filled += len;
        }
        (filled == REQUEST).then(|| Request::read_from_bytes(&bytes).ok()).flatten()
    }

    /// Whether a buffer lies in the guest's memory, and not in memory that it has given back.
    fn is_memory<M: GuestMemory>(&self, mem: &M, addr: GuestAddress, len: u32, access: Permissions) -> bool {
        len == 0
            || addr.checked_add(u64::from(len)).is_some()
                && mem.check_range(addr, len as usize, access)
                && !self.core.touches_unplugged(addr.0, u64::from(len))
    }
}
