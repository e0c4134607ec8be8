//! A VMM's end of vhost-user and its guest's driver, by hand: messages by the crate `vhost`, rings byte by byte.
#![allow(dead_code, reason = "each user uses a part of it")]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use pagefold_virtio_mem_spec::{ConfigSpace, Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

pub const MIB: u64 = 1 << 20;
pub const RAM: u64 = 4 * MIB;
/// Where the driver's rings and buffers are.
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x8000;
const RESPONSE: u64 = 0x8100;
const QUEUE: u16 = 128;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`.
pub const WANTED: u64 = 1 << 32 | 2;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Whatever is waited for: only a failure takes so long.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A VMM with a guest.
pub struct Vmm {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    pub kick: EventFd,
    pub call: EventFd,
    pub channel: UnixStream,
    made: u16,
}

/// Guest memory: a little RAM at 0, and the device's file at `addr`.
pub fn memory(device: &File, addr: u64, size: u64) -> GuestMemoryMmap {
    let ram = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
    ram.set_len(RAM).unwrap();
    let device = device.try_clone().unwrap();
    GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), RAM as usize, Some(FileOffset::new(ram, 0))),
        (GuestAddress(addr), size as usize, Some(FileOffset::new(device, 0))),
    ])
    .unwrap()
}

/// What SET_MEM_TABLE says of it.
pub fn table(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    let info = |region: &vm_memory::GuestRegionMmap| {
        let file = region.file_offset().unwrap();
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        }
    };
    memory.iter().map(info).collect()
}

impl Vmm {
    /// Connects, agrees on protocol features, and makes the back channel; no driver is there yet.
    pub fn connect(socket: &Path, memory: GuestMemoryMmap) -> Self {
        let mut frontend = Frontend::connect(socket, 1).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert!(offered & PROTOCOL_FEATURES != 0 && offered & WANTED == WANTED, "{offered:#x}");
        frontend.set_features(PROTOCOL_FEATURES).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        assert!(protocol.contains(wanted), "{protocol:?}");
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let (channel, theirs) = UnixStream::pair().unwrap();
        frontend.set_backend_request_fd(&theirs).unwrap();
        Self {
            frontend,
            memory,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            channel,
            made: 0,
        }
    }

    /// The driver sets `DRIVER_OK` with these features of the device's.
    pub fn start(&mut self, features: u64) -> vhost::Result<()> {
        self.frontend.set_features(features | PROTOCOL_FEATURES)?;
        self.frontend.set_mem_table(&table(&self.memory))?;
        self.memory.write_slice(&[0; 0x3000], GuestAddress(TABLE)).unwrap();
        self.made = 0;
        self.start_ring(0)
    }

    /// The ring goes on from `base`.
    pub fn start_ring(&mut self, base: u16) -> vhost::Result<()> {
        let at = |addr: u64| self.memory.get_host_address(GuestAddress(addr)).unwrap() as u64;
        let ring = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: at(TABLE),
            used_ring_addr: at(USED),
            avail_ring_addr: at(AVAIL),
            log_addr: None,
        };
        self.frontend.set_vring_num(0, QUEUE)?;
        self.frontend.set_vring_addr(0, &ring)?;
        self.frontend.set_vring_base(0, base)?;
        self.frontend.set_vring_call(0, &self.call)?;
        self.frontend.set_vring_kick(0, &self.kick)?;
        self.frontend.set_vring_enable(0, true)
    }

    /// The driver resets the device, or its VMM stops: returns where the ring stands.
    pub fn stop(&mut self) -> u32 {
        self.frontend.set_vring_enable(0, false).unwrap();
        self.frontend.get_vring_base(0).unwrap()
    }

    /// The config space.
    pub fn config(&mut self) -> ConfigSpace {
        let len = size_of::<ConfigSpace>() as u32;
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = self.frontend.get_config(0, len, flags, &vec![0; len as usize]).unwrap();
        ConfigSpace::read_from_bytes(&bytes).unwrap()
    }

    /// Makes a request available, without a doorbell.
    pub fn make_available(&mut self, request: &Request) {
        self.memory.write_slice(request.as_bytes(), GuestAddress(REQUEST)).unwrap();
        self.memory.write_slice(&[0xff; 10], GuestAddress(RESPONSE)).unwrap();
        let parts = [(REQUEST, 24u32, 1u16, 1u16), (RESPONSE, 10, 2, 0)];
        for (at, (addr, len, flags, next)) in parts.into_iter().enumerate() {
            let to = TABLE + 16 * at as u64;
            self.memory.write_obj(addr, GuestAddress(to)).unwrap();
            self.memory.write_obj(len, GuestAddress(to + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(to + 12)).unwrap();
            self.memory.write_obj(next, GuestAddress(to + 14)).unwrap();
        }
        let slot = AVAIL + 4 + 2 * u64::from(self.made % QUEUE);
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.made = self.made.wrapping_add(1);
        // Release: the backend reads the entry after the index.
        self.memory.store(self.made, GuestAddress(AVAIL + 2), std::sync::atomic::Ordering::Release).unwrap();
    }

    /// Asks the device, and waits for the interrupt and the answer.
    pub fn ask(&mut self, request: &Request) -> Response {
        self.make_available(request);
        self.kick.write(1).unwrap();
        self.answer()
    }

    /// Waits for the interrupt, and reads the answer.
    pub fn answer(&mut self) -> Response {
        wait(&self.call, "an interrupt");
        self.call.read().unwrap();
        let used: u16 =
            self.memory.load(GuestAddress(USED + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        assert_eq!(used, self.made, "one answer a request");
        let mut bytes = [0; size_of::<Response>()];
        self.memory.read_slice(&mut bytes, GuestAddress(RESPONSE)).unwrap();
        Response::read_from_bytes(&bytes).unwrap()
    }

    /// Waits for a config change on the back channel.
    pub fn config_changed(&mut self) {
        wait(&self.channel, "a config change");
        let mut message = [0; 12];
        self.channel.read_exact(&mut message).unwrap();
        let words: Vec<u32> =
            message.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [2, 1, 0], "request 2, version 1, no body");
    }

    /// Whether something waits on the back channel now.
    pub fn has_message(&self) -> bool {
        let mut wait = [PollFd::new(&self.channel, PollFlags::IN)];
        poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }
}

fn wait(on: &impl AsRawFd, what: &str) {
    // SAFETY: the caller has it open, and borrows it for as long.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(on.as_raw_fd()) };
    let mut wait = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    assert!(poll(&mut wait, Some(&PATIENCE)).unwrap() > 0, "{what} does not come");
}

/// Waits until it is so, asking again and again.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}
