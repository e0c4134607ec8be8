//! What `vhost-user-backend` asks of a device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use pagefold_virtio_mem_device::{Device, Memfd, QUEUE_SIZE, Snapshot};
use rustix::fs::fstat;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vm_memory::{GuestMemory, GuestMemoryRegion, Permissions};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::backend::Backend;
use crate::event::Event;
use crate::guard;

/// `VHOST_USER_F_PROTOCOL_FEATURES` (bit 30) and `VHOST_F_LOG_ALL` (bit 26): between VMM and backend, none of the device's.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
/// The most bytes of a saved state that is read: 16 bytes a run of blocks, in text.
const MAX_STATE: u64 = 64 << 20;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The device, for one VMM's connection.
#[derive(Clone)]
pub(crate) struct Handler(Arc<Inner>);

struct Inner {
    backend: Backend,
    memory: Memory,
    /// The driver's features, from the VMM; for the next driver that becomes ready.
    accepted: AtomicU64,
    /// The connection has ended: nothing is served any more.
    closed: AtomicBool,
    /// Pages that were gone when it was last told.
    gone: AtomicU64,
    /// A saved state on its way in; what it comes to is asked for later.
    loading: Mutex<Option<JoinHandle<io::Result<Snapshot>>>>,
}

impl Handler {
    pub(crate) fn new(backend: Backend, memory: Memory) -> Self {
        Self(Arc::new(Inner {
            backend,
            memory,
            accepted: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            gone: AtomicU64::new(guard::pages_gone()),
            loading: Mutex::default(),
        }))
    }

    /// Ends serving for good. When it returns, nothing of this connection touches the device again.
    pub(crate) fn close(&self) {
        let mut device = self.0.backend.device();
        // Relaxed: it is read and written with the device locked, and the lock orders it.
        self.0.closed.store(true, Ordering::Relaxed);
        device.device_reset();
    }

    /// How many regions of guest memory there are.
    pub(crate) fn regions(&self) -> usize {
        self.0.memory.memory().num_regions()
    }

    fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// The device, while the connection lasts. A thread of the library's may wait for something of a VMM's that is long
    /// gone; when it goes on, the device is another VMM's.
    fn device(&self) -> Option<MutexGuard<'_, Device<Memfd>>> {
        let device = self.0.backend.device();
        // Relaxed: as in `close`.
        (!self.0.closed.load(Ordering::Relaxed)).then_some(device)
    }

    /// Whether the VMM's memory is this device's where the device's region is, each byte of it. `Err` says what is wrong.
    fn check_memory(memory: &GuestMemoryMmap, addr: u64, len: u64, own: &File) -> Result<(), String> {
        if !GuestMemory::check_range(memory, GuestAddress(addr), len as usize, Permissions::ReadWrite) {
            return Err(format!(
                "the VMM has no memory of {len:#x} bytes at {addr:#x}, where this device's region is: give it the \
                 device's memory file there"
            ));
        }
        // The VMM may have it in several parts.
        for region in memory.iter() {
            let start = region.start_addr().0;
            let (from, to) = (start.max(addr), start.saturating_add(region.len()).min(addr + len));
            if from >= to {
                continue;
            }
            let Some(found) = region.file_offset().filter(|found| is_same(found.file(), own)) else {
                return Err(format!(
                    "the VMM's memory at {from:#x} is another file than this device's: give both the same"
                ));
            };
            let offset = found.start().saturating_add(from - start);
            if offset != from - addr {
                return Err(format!(
                    "the VMM's memory at {from:#x} is at {offset:#x} of the file, this device's at {:#x}: map the file \
                     from its beginning at {addr:#x}",
                    from - addr
                ));
            }
        }
        Ok(())
    }

    /// Makes the driver known to the device, if it is not yet. False where there is no driver to serve.
    fn activate(&self, memory: &GuestMemoryMmap) -> bool {
        let Some(mut device) = self.device() else { return false };
        if device.negotiated_features().is_some() {
            return true;
        }
        // Relaxed: the features were stored by the thread that then enabled the ring, which is how this one came to run.
        let accepted = self.0.accepted.load(Ordering::Relaxed) & !(PROTOCOL_FEATURES | LOG_ALL);
        let config = device.config();
        let (addr, len) = (config.addr.get(), config.region_size.get());
        if let Err(why) = Self::check_memory(memory, addr, len, device.backing().file()) {
            drop(device);
            self.backend().log(Event::WrongMemory(why));
            return false;
        }
        let thawed = Backend::thaw(&mut device);
        let done = device.activate(accepted);
        drop(device);
        if let Err(error) = thawed {
            self.backend().log(Event::HostFailed(error.to_string()));
        }
        self.backend().log(match &done {
            Ok(()) => Event::DriverReady(accepted),
            Err(why) => Event::DriverRefused(*why),
        });
        done.is_ok()
    }

    fn reset(&self) {
        let Some(mut device) = self.device() else { return };
        let was_ready = device.negotiated_features().is_some();
        device.device_reset();
        drop(device);
        if was_ready {
            self.backend().log(Event::DriverGone);
        }
    }

    fn serve(&self, vring: &VringMutex) {
        let memory = self.0.memory.memory();
        if !self.activate(&memory) {
            return;
        }
        loop {
            let mut state = vring.get_mut();
            let Some(mut device) = self.device() else { return };
            let before = device.host_failures().0;
            let served = device.serve_and_tell(state.get_queue_mut(), &*memory, &mut |request, response| {
                self.backend().log(Event::Request(*request, *response));
            });
            let (failures, last) = device.host_failures();
            let failed = (failures > before).then(|| last.map(ToString::to_string)).flatten();
            drop(device);
            if served.interrupt {
                // A VMM that has given no descriptor, or a bad one, does without interrupts.
                let _ = state.signal_used_queue();
            }
            // Before the next round: the VMM's messages need the ring too.
            drop(state);
            // Relaxed: a number that stands for itself.
            let gone = guard::pages_gone();
            if self.0.gone.swap(gone, Ordering::Relaxed) < gone {
                self.backend().log(Event::MemoryGone);
            }
            if let Some(why) = failed {
                self.backend().log(Event::HostFailed(why));
            }
            if served.needs_reset {
                self.backend().log(Event::DriverBroken);
            }
            if !served.more {
                return;
            }
        }
    }
}

impl VhostUserBackend for Handler {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        self.backend().device().features() | PROTOCOL_FEATURES
    }

    fn acked_features(&self, features: u64) {
        // Relaxed: see `activate`.
        self.0.accepted.store(features, Ordering::Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::DEVICE_STATE
    }

    fn reset_device(&self) {
        self.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The device tells the queue itself.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // The library has bounded the size: 256 bytes.
        let mut data = vec![0; size as usize];
        self.backend().device().read_config(offset.into(), &mut data);
        data
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory();
        let bytes = memory.iter().map(GuestMemoryRegion::len).sum();
        self.backend().log(Event::Memory { regions: memory.num_regions(), bytes });
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, _queue: u32) -> io::Result<()> {
        // The thread that serves holds the device: when it is held here, every chain that was taken has come back.
        self.reset();
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        if let Some(vring) = vrings.get(usize::from(event)) {
            self.serve(vring);
        }
        // An error would end the thread that serves.
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        mut file: File,
    ) -> io::Result<Option<File>> {
        match direction {
            VhostTransferStateDirection::SAVE => {
                // It stays frozen until the next driver is ready here: then the guest has stayed.
                let snapshot = self.device().ok_or_else(gone)?.snapshot();
                let text = serde_json::to_vec(&snapshot)?;
                let backend = self.backend().clone();
                // The VMM reads at its leisure.
                thread::Builder::new().name("save".into()).spawn(move || {
                    let saved = file.write_all(&text).is_ok();
                    backend.log(Event::Migrated(if saved { "saved" } else { "not taken by the VMM" }));
                })?;
            }
            VhostTransferStateDirection::LOAD => {
                let load = move || {
                    let mut text = Vec::new();
                    file.take(MAX_STATE).read_to_end(&mut text)?;
                    Ok(serde_json::from_slice(&text)?)
                };
                let thread = thread::Builder::new().name("load".into()).spawn(load)?;
                *self.0.loading.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
            }
        }
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        let loading = self.0.loading.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(loading) = loading else { return Ok(()) };
        let loaded = loading.join().unwrap_or_else(|_| Err(io::Error::other("it could not be read")));
        let restored = loaded.and_then(|snapshot| {
            let mut device = self.device().ok_or_else(gone)?;
            self.backend().restore(&mut device, &snapshot).map_err(io::Error::other)
        });
        match &restored {
            Ok(()) => self.backend().log(Event::Migrated("restored")),
            Err(why) => self.backend().log(Event::Disconnected(Some(format!("saved state: {why}")))),
        }
        restored
    }
}

fn is_same(one: &File, other: &File) -> bool {
    let (Ok(one), Ok(other)) = (fstat(one), fstat(other)) else { return false };
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "its VMM is gone")
}
