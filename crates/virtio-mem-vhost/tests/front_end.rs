//! A VMM's whole life with the backend: a scripted front end, in one process.

#[path = "common/vmm.rs"]
mod vmm;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use pagefold_virtio_mem_device::{Memfd, Pages, Settings};
use pagefold_virtio_mem_spec::{PlugState, Request, RequestType, Response, ResponseType};
use pagefold_virtio_mem_vhost::{Backend, Server, ServerError, Socket, Stop, Until};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};
use vm_memory::{Bytes, GuestAddress};
use vmm::{MIB, Vmm, WANTED, memory, until};

const ADDR: u64 = 1 << 32;
const SIZE: u64 = 256 * MIB;
const BLOCK: u64 = 2 * MIB;

/// A backend that is served in a thread.
struct Served {
    backend: Backend,
    file: File,
    path: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
    stop: Stop,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
    _dir: tempfile::TempDir,
}

impl Served {
    fn new(until: Until) -> Self {
        Self::on(until, Memfd::new(SIZE, Pages::Normal).unwrap())
    }

    fn on(until: Until, memfd: Memfd) -> Self {
        let file = memfd.file().try_clone().unwrap();
        let settings =
            Settings { block_size: Some(BLOCK), resize_without_driver: true, ..Settings::new(ADDR, SIZE) };
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let tell =
            move |event: pagefold_virtio_mem_vhost::Event| lines.lock().unwrap().push(event.to_string());
        let backend = Backend::new(settings, memfd, None, tell).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut server = Server::new(backend.clone(), Socket::new(&path).unwrap()).unwrap();
        let stop = server.stopper();
        let thread = Some(thread::spawn(move || server.run(until)));
        Self { backend, file, path, log, stop, thread, _dir: dir }
    }

    fn vmm(&self) -> Vmm {
        Vmm::connect(&self.path, memory(&self.file, ADDR, SIZE))
    }

    fn said(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }

    fn end(&mut self) -> Result<(), ServerError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

fn plug(block: u64, blocks: u16) -> Request {
    Request::new(RequestType::Plug, ADDR + block * BLOCK, blocks)
}

fn unplug(block: u64, blocks: u16) -> Request {
    Request::new(RequestType::Unplug, ADDR + block * BLOCK, blocks)
}

/// The device's state, in a file to be read.
fn saved_file(backend: &Backend) -> OwnedFd {
    let (theirs, mut ours) = std::io::pipe().unwrap();
    ours.write_all(&serde_json::to_vec(&backend.snapshot()).unwrap()).unwrap();
    theirs.into()
}

/// Whether the server has not read all that a VMM has said: SIOCOUTQ, which no crate here wraps, counts it.
fn has_unread(vmm: &Vmm) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int.
    let done = unsafe { libc::ioctl(vmm.frontend.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    assert_eq!(done, 0);
    bytes > 0
}

fn ack() -> Response {
    Response::new(ResponseType::Ack)
}

#[test]
fn a_guest_grows_and_shrinks_and_its_memory_comes_and_goes() {
    let served = Served::new(Until::Stopped);
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.config().requested_size.get(), 0);
    served.backend.resize(64 * MIB).unwrap();
    vmm.config_changed();
    let config = vmm.config();
    assert_eq!(
        (config.requested_size.get(), config.addr.get(), config.block_size.get()),
        (64 * MIB, ADDR, BLOCK)
    );
    assert_eq!(vmm.ask(&plug(0, 32)), ack());
    assert_eq!(vmm.ask(&plug(32, 1)), Response::new(ResponseType::Nack));
    assert_eq!(vmm.ask(&plug(0, 1)), Response::new(ResponseType::Nack));
    assert_eq!(vmm.config().plugged_size.get(), 64 * MIB);
    // The guest uses it; the file has it.
    vmm.memory.write_slice(&[7; 4096], GuestAddress(ADDR + 5 * BLOCK)).unwrap();
    assert!(served.backend.status().resident >= 4096);
    served.backend.resize(0).unwrap();
    vmm.config_changed();
    assert_eq!(vmm.ask(&Request::new(RequestType::State, ADDR, 32)), Response::state(PlugState::Plugged));
    assert_eq!(vmm.ask(&unplug(0, 16)), ack());
    let status = served.backend.status();
    assert_eq!((status.plugged_size, status.plugged), (32 * MIB, vec![(ADDR + 16 * BLOCK, 32 * MIB)]));
    assert_eq!(status.resident, 0, "unplugged memory costs nothing");
    let mut bytes = [1; 4096];
    vmm.memory.read_slice(&mut bytes, GuestAddress(ADDR + 5 * BLOCK)).unwrap();
    assert_eq!(bytes, [0; 4096], "and reads as zeros");
    let stats = served.backend.stats();
    assert_eq!((stats.plug.acked, stats.plug.nacked, stats.unplug.acked, stats.state.acked), (1, 2, 1, 1));
    assert_eq!((stats.plug.bytes, stats.unplug.bytes, stats.resizes), (64 * MIB, 32 * MIB, 2));
    for words in
        ["PLUG 0x100000000 +32 blocks: ACK", "+1 blocks: NACK", "a driver is ready", "requested size 64 MiB"]
    {
        assert!(served.said(words), "{words}");
    }
}

#[test]
fn what_waits_in_the_ring_before_it_starts_is_served_without_a_doorbell() {
    let served = Served::new(Until::Stopped);
    served.backend.resize(64 * MIB).unwrap();
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    let base = vmm.stop();
    assert_eq!(base, 1, "what was taken has come back");
    vmm.make_available(&plug(1, 1));
    vmm.start_ring(1).unwrap();
    assert_eq!(vmm.answer(), ack());
}

#[test]
fn a_vmm_that_comes_back_finds_its_blocks_and_their_contents() {
    let served = Served::new(Until::Stopped);
    served.backend.resize(64 * MIB).unwrap();
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(3, 4)), ack());
    vmm.memory.write_obj(42u64, GuestAddress(ADDR + 3 * BLOCK)).unwrap();
    drop(vmm);
    until("the VMM is gone", || served.said("the VMM is gone"));
    assert_eq!(served.backend.status().driver, None);
    // Meanwhile the host wants something else: it is in the config space.
    served.backend.resize(128 * MIB).unwrap();
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    let config = vmm.config();
    assert_eq!((config.plugged_size.get(), config.requested_size.get()), (4 * BLOCK, 128 * MIB));
    assert_eq!(vmm.memory.read_obj::<u64>(GuestAddress(ADDR + 3 * BLOCK)).unwrap(), 42);
    assert_eq!(vmm.ask(&plug(3, 1)), Response::new(ResponseType::Error));
    // A guest that has booted anew.
    assert_eq!(vmm.ask(&Request::new(RequestType::UnplugAll, 0, 0)), ack());
    assert_eq!(served.backend.status().resident, 0);
    assert_eq!(served.backend.stats().unplugged_by_all, 4 * BLOCK);
}

#[test]
fn one_vmm_at_a_time_and_the_first_stays() {
    let mut served = Served::new(Until::FirstGone);
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    let second = UnixStream::connect(&served.path).unwrap();
    assert_eq!(std::io::Read::read(&mut &second, &mut [0]).unwrap(), 0, "refused");
    assert!(served.said("a second VMM was refused"));
    served.backend.resize(BLOCK).unwrap();
    vmm.config_changed();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    drop(vmm);
    served.end().unwrap();
}

#[test]
fn a_driver_that_would_touch_unplugged_memory_is_not_served() {
    let served = Served::new(Until::Stopped);
    let mut vmm = served.vmm();
    vmm.start(WANTED & !2).unwrap();
    until("it is refused", || served.said("the driver was refused"));
    // The next one does better.
    vmm.stop();
    served.backend.resize(BLOCK).unwrap();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
}

#[test]
fn memory_that_is_not_the_devices_is_noticed() {
    let served = Served::new(Until::Stopped);
    let other = Memfd::new(SIZE, Pages::Normal).unwrap();
    let mut vmm = Vmm::connect(&served.path, memory(other.file(), ADDR, SIZE));
    vmm.start(WANTED).unwrap();
    until("it is noticed", || served.said("is another file than this device's"));
    drop(vmm);
    let mut vmm = {
        until("it is gone", || served.said("the VMM is gone"));
        Vmm::connect(&served.path, memory(&served.file, 2 * ADDR, SIZE))
    };
    vmm.start(WANTED).unwrap();
    until("it is noticed", || served.said("the VMM has no memory"));
    assert_eq!(served.backend.status().driver, None);
}

#[test]
fn the_state_moves_to_another_backend() {
    let (here, there) = (Served::new(Until::Stopped), Served::new(Until::Stopped));
    here.backend.resize(64 * MIB).unwrap();
    let mut vmm = here.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(1, 5)), ack());
    vmm.stop();
    let (ours, theirs) = std::io::pipe().unwrap();
    let stopped = VhostTransferStatePhase::STOPPED;
    vmm.frontend.set_device_state_fd(VhostTransferStateDirection::SAVE, stopped, theirs.into()).unwrap();
    vmm.frontend.check_device_state().unwrap();
    assert!(here.backend.status().frozen);
    let mut arriving = there.vmm();
    arriving.frontend.set_device_state_fd(VhostTransferStateDirection::LOAD, stopped, ours.into()).unwrap();
    arriving.frontend.check_device_state().unwrap();
    arriving.start(WANTED).unwrap();
    assert_eq!(
        arriving.ask(&Request::new(RequestType::State, ADDR + BLOCK, 5)),
        Response::state(PlugState::Plugged)
    );
    assert_eq!(arriving.ask(&plug(0, 1)), ack());
    // The guest stays here after all.
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
}

#[test]
fn a_vmm_that_is_gone_changes_nothing_of_the_next_ones() {
    let served = Served::new(Until::Stopped);
    served.backend.resize(64 * MIB).unwrap();
    // What a device with nothing plugged saves.
    let saved = {
        let memory = Memfd::new(SIZE, Pages::Normal).unwrap();
        let settings = Settings { block_size: Some(BLOCK), ..Settings::new(ADDR, SIZE) };
        let empty = Backend::new(settings, memory, None, |_| ()).unwrap();
        serde_json::to_vec(&empty.snapshot()).unwrap()
    };
    // A state that does not come, and messages behind it: the backend waits.
    let vmm = served.vmm();
    let (theirs, mut ours) = std::io::pipe().unwrap();
    let stopped = VhostTransferStatePhase::STOPPED;
    vmm.frontend.set_device_state_fd(VhostTransferStateDirection::LOAD, stopped, theirs.into()).unwrap();
    // CHECK_DEVICE_STATE, and GET_VRING_BASE of ring 0: a device reset.
    for words in [&[43u32, 1, 0][..], &[11, 1, 8, 0, 0]] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // SAFETY: the front end has the descriptor open, and lives longer than this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(vmm.frontend.as_raw_fd()) };
        rustix::io::write(fd, &bytes).unwrap();
    }
    until("they are with the library", || !has_unread(&vmm));
    drop(vmm);
    until("it is gone", || served.said("the VMM is gone"));
    let mut next = served.vmm();
    next.start(WANTED).unwrap();
    assert_eq!(next.ask(&plug(0, 4)), ack());
    next.memory.write_obj(42u64, GuestAddress(ADDR)).unwrap();
    ours.write_all(&saved).unwrap();
    drop(ours);
    until("the state is refused", || served.said("saved state: its VMM is gone"));
    assert_eq!(served.backend.status().plugged_size, 4 * BLOCK);
    assert_eq!(next.memory.read_obj::<u64>(GuestAddress(ADDR)).unwrap(), 42);
    assert_eq!(next.ask(&plug(4, 1)), ack());
    assert!(!served.said("the driver has stopped"));
}

#[test]
fn a_device_that_has_moved_fills_memory_as_before() {
    let memory = Memfd::new(SIZE, Pages::Normal).unwrap().with_prealloc(true);
    let here = Served::on(Until::Stopped, memory);
    let mut vmm = here.vmm();
    vmm.frontend
        .set_device_state_fd(
            VhostTransferStateDirection::LOAD,
            VhostTransferStatePhase::STOPPED,
            saved_file(&here.backend),
        )
        .unwrap();
    vmm.frontend.check_device_state().unwrap();
    here.backend.resize(64 * MIB).unwrap();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    assert_eq!(here.backend.status().resident, BLOCK);
}

#[test]
fn stopping_ends_a_connection() {
    let mut served = Served::new(Until::Stopped);
    let mut vmm = served.vmm();
    vmm.start(WANTED).unwrap();
    served.stop.stop();
    served.end().unwrap();
    assert!(vmm.frontend.get_queue_num().is_err());
    assert!(!served.path.exists());
}
