//! The request queue: a split virtqueue (virtio 1.2, 2.7) with one request in flight at most.
//!
//! All of it lies in one page of DMA memory, the request and the answer included; nothing else is shared with the device.
//! Nothing that the device can write is trusted: the driver reads back the used index, one entry of the used ring and the
//! answer, each once, and an impossible entry is [`Look::Damaged`].

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use pagefold_virtio_mem_spec::{GUEST_REQUEST_QUEUE, Request, Response};
use virtio_drivers::transport::Transport;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromZeros, IntoBytes};

// Where things lie in the page. Each is aligned as the specification asks (16, 2 and 4 bytes for the rings).
const DESCRIPTORS: usize = 0x000;
const INDIRECT: usize = 0x040;
const AVAIL: usize = 0x080;
const USED: usize = 0x0c0;
const REQUEST: usize = 0x100;
const RESPONSE: usize = 0x140;
const END: usize = RESPONSE + size_of::<Response>();
const _: () = assert!(END <= PAGE_SIZE && REQUEST + size_of::<Request>() <= RESPONSE);

// In both rings.
const RING_FLAGS: usize = 0;
const RING_INDEX: usize = 2;
const RING_ENTRIES: usize = 4;

const DESCRIPTOR: usize = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const IS_INDIRECT: u16 = 4;
/// In the ring of what is available: no interrupt wanted.
const NO_INTERRUPT: u16 = 1;
/// In the ring of what was used: no doorbell wanted.
const NO_NOTIFY: u16 = 1;

/// The first descriptor of every request, and so the number under which it comes back.
const HEAD: u16 = 0;

/// What a look at the used ring finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing new.
    Nothing,
    /// The answer, and how many bytes of it the device says it wrote.
    Answer(Response, u32),
    /// Something that cannot be: an entry that was never asked for, or more entries than requests. The rings are good for
    /// nothing until the device was reset.
    Damaged,
}

pub(crate) struct RequestQueue<H: Hal> {
    address: PhysAddr,
    page: NonNull<u8>,
    /// The device has at most one descriptor: the two of a request lie in a table of their own.
    indirect: bool,
    /// Entries of the rings: 1 or 2.
    size: u16,
    /// Requests made, and answers taken. They differ by one while a request is in flight.
    made: u16,
    taken: u16,
    /// The device may still write to the page, so the page is never freed.
    abandoned: bool,
    hal: core::marker::PhantomData<fn() -> H>,
}

// SAFETY: the page belongs to this queue alone, and `Hal` promises DMA memory that any thread may use.
unsafe impl<H: Hal> Send for RequestQueue<H> {}

impl<H: Hal> RequestQueue<H> {
    /// A queue that no device knows yet.
    pub(crate) fn new() -> virtio_drivers::Result<Self> {
        let (address, page) = H::dma_alloc(1, BufferDirection::Both);
        if address == 0 {
            return Err(virtio_drivers::Error::DmaError);
        }
        Ok(Self {
            address,
            page,
            indirect: false,
            size: 2,
            made: 0,
            taken: 0,
            abandoned: false,
            hal: core::marker::PhantomData,
        })
    }

    /// Tells a device that was just reset of the queue, empty. `indirect`: VIRTIO_F_INDIRECT_DESC was agreed on, and the
    /// device's queue has one entry only.
    pub(crate) fn set_up<T: Transport>(&mut self, transport: &mut T, indirect: bool) {
        // SAFETY: a page that is ours alone; a device that was reset does not use it.
        unsafe { self.page.write_bytes(0, PAGE_SIZE) };
        (self.indirect, self.size) = (indirect, if indirect { 1 } else { 2 });
        (self.made, self.taken, self.abandoned) = (0, 0, false);
        let request = (self.at(REQUEST), size_of::<Request>() as u32);
        let response = (self.at(RESPONSE), size_of::<Response>() as u32);
        let table = if indirect { INDIRECT } else { DESCRIPTORS };
        self.describe(table, request, NEXT, 1);
        self.describe(table + DESCRIPTOR, response, WRITE, 0);
        if indirect {
            self.describe(DESCRIPTORS, (self.at(INDIRECT), 2 * DESCRIPTOR as u32), IS_INDIRECT, 0);
        }
        // Answers are polled for.
        self.write(AVAIL + RING_FLAGS, NO_INTERRUPT);
        let size = u32::from(self.size);
        transport.queue_set(GUEST_REQUEST_QUEUE, size, self.at(DESCRIPTORS), self.at(AVAIL), self.at(USED));
    }

    /// Whether a request has not been answered yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.made != self.taken
    }

    /// Makes a request; none may be in flight. Whether the device wants its doorbell rung.
    pub(crate) fn put(&mut self, request: Request) -> bool {
        debug_assert!(!self.is_waiting());
        // A device that writes nothing has not acknowledged anything.
        let nothing = Response { kind: 0xffff.into(), ..Response::default() };
        self.copy_in(REQUEST, request.as_bytes());
        self.copy_in(RESPONSE, nothing.as_bytes());
        self.write(AVAIL + RING_ENTRIES + 2 * usize::from(self.made % self.size), HEAD);
        self.made = self.made.wrapping_add(1);
        // Release: a device that sees the index sees the request and its entry.
        self.index(AVAIL).store(self.made, Ordering::Release);
        // Between writing the index and reading the flags (virtio 1.2, 2.7.13.4): or both ends might wait for the other.
        fence(Ordering::SeqCst);
        self.read::<u16>(USED + RING_FLAGS) & NO_NOTIFY == 0
    }

    /// Looks for the answer to the request in flight.
    pub(crate) fn look(&mut self) -> Look {
        // Acquire: what the device wrote before it moved the index.
        let used = self.index(USED).load(Ordering::Acquire);
        match used.wrapping_sub(self.taken) {
            0 => return Look::Nothing,
            1 if self.is_waiting() => {}
            _ => return Look::Damaged,
        }
        let entry = USED + RING_ENTRIES + 8 * usize::from(self.taken % self.size);
        let (id, len) = (self.read::<u32>(entry), self.read::<u32>(entry + 4));
        if id != u32::from(HEAD) {
            return Look::Damaged;
        }
        let mut response = Response::new_zeroed();
        self.copy_out(RESPONSE, response.as_mut_bytes());
        self.taken = self.taken.wrapping_add(1);
        Look::Answer(response, len)
    }

    /// The device could not be reset, and may write to the page at any time.
    pub(crate) fn abandon(&mut self) {
        self.abandoned = true;
    }

    // ---- the page ----------------------------------------------------------------------------------------------

    /// Where the device finds `offset`.
    fn at(&self, offset: usize) -> PhysAddr {
        self.address + offset as PhysAddr
    }

    fn describe(&mut self, at: usize, (address, len): (PhysAddr, u32), flags: u16, next: u16) {
        self.write(at, address);
        self.write(at + 8, len);
        self.write(at + 12, flags);
        self.write(at + 14, next);
    }

    fn pointer<V>(&self, offset: usize) -> *mut V {
        debug_assert!(offset + size_of::<V>() <= END && offset.is_multiple_of(align_of::<V>()));
        self.page.as_ptr().wrapping_add(offset).cast()
    }

    fn read<V: Copy + zerocopy::FromBytes>(&self, offset: usize) -> V {
        // SAFETY: inside of the page by the callers' constants, and aligned. Volatile: the device writes there.
        unsafe { self.pointer::<V>(offset).read_volatile() }
    }

    fn write<V: Copy>(&mut self, offset: usize, value: V) {
        // SAFETY: as `read`.
        unsafe { self.pointer::<V>(offset).write_volatile(value) }
    }

    /// The index of a ring.
    fn index(&self, ring: usize) -> &AtomicU16 {
        // SAFETY: inside of the page and aligned; memory that two sides share may be an atomic.
        unsafe { AtomicU16::from_ptr(self.pointer(ring + RING_INDEX)) }
    }

    fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            self.write(at, byte);
        }
    }

    fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = self.read(at);
        }
    }
}

impl<H: Hal> Drop for RequestQueue<H> {
    fn drop(&mut self) {
        if !self.abandoned {
            // SAFETY: from `dma_alloc`, one page, and no device uses it: it was reset, or never knew.
            let freed = unsafe { H::dma_dealloc(self.address, self.page, 1) };
            debug_assert_eq!(freed, 0, "the page was ours to free");
        }
    }
}
