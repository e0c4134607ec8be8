//! The device itself: served from this process, with all that it tells, and what a QEMU is to be given for it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use pagefold_qemu::QemuBuilder;
use pagefold_virtio_mem_device::{Memfd, Pages, Settings, Snapshot};
use pagefold_virtio_mem_vhost::{Backend, Event, Server, Socket, Stop, Until};
use tempfile::TempDir;

/// The socket's name.
const SOCKET: &str = "socket";
/// Bytes of virtio-mem's config space.
const CONFIG: usize = size_of::<pagefold_virtio_mem_spec::ConfigSpace>();

/// Our device, on a socket of its own.
pub struct Served {
    /// The device.
    pub backend: Backend,
    block: u64,
    size: u64,
    /// The region's memory.
    pub(super) file: File,
    said: Arc<Said>,
    serving: Serving,
    /// Where the socket is.
    dir: TempDir,
}

/// The thread that serves the device.
struct Serving {
    stop: Stop,
    server: Option<JoinHandle<()>>,
}

/// All that the device has told, and a bell for who waits.
#[derive(Default)]
struct Said {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Served {
    /// Serves a new device: bytes of a block and of the region, and where that is.
    ///
    /// # Errors
    /// The system does not give what it takes.
    pub fn new(block: u64, size: u64, addr: u64) -> Result<Self> {
        let memory = Memfd::new(size, Pages::Normal)?;
        let file = memory.file().try_clone()?;
        let said = Arc::new(Said::default());
        let backend = device(block, size, addr, memory, None, &said)?;
        let dir = TempDir::new()?;
        let serving = Serving::new(&backend, dir.path())?;
        Ok(Self { backend, block, size, file, said, serving, dir })
    }

    /// Ends the device and keeps its state; from then on a device is served there that goes on from it.
    ///
    /// # Errors
    /// The state does not fit, or has not all of it.
    pub fn restart(&mut self) -> Result<()> {
        self.serving.end();
        let (status, snapshot) = (self.backend.status(), self.backend.snapshot());
        let memory = Memfd::from_file(self.file.try_clone()?, self.size)?;
        self.backend = device(self.block, self.size, status.addr, memory, Some(&snapshot), &self.said)?;
        self.serving = Serving::new(&self.backend, self.dir.path())?;
        let now = self.backend.status();
        ensure!(now.plugged == status.plugged && now.requested_size == status.requested_size, "{now:?}");
        Ok(())
    }

    /// What the device has told so far.
    pub fn events(&self) -> Vec<Event> {
        self.said.events().clone()
    }

    /// How many events that is.
    pub(super) fn told(&self) -> usize {
        self.said.events().len()
    }

    /// Waits until the device has told more than `seen` events, at most so long.
    pub(super) fn wait_for_more(&self, seen: usize, within: Duration) {
        let events = self.said.events();
        if events.len() == seen {
            drop(self.said.more.wait_timeout(events, within).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A PC with shared memory and the device; for another machine than a PC, `dimm` is `nvdimm`.
    pub fn give_to(&self, qemu: QemuBuilder, dimm: &str) -> QemuBuilder {
        // QEMU opens the file by this process's name of it.
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        let (size, addr) = (self.size, self.backend.status().addr);
        let socket = self.dir.path().join(SOCKET);
        let device = format!(
            "vhost-user-test-device-pci,chardev=device,virtio-id=24,num_vqs=1,vq_size=128,config_size={CONFIG}"
        );
        qemu.option("-object", &format!("memory-backend-file,id=dm,mem-path={path},share=on,size={size}"))
            .option("-device", &format!("{dimm},id=d0,memdev=dm,addr={addr:#x}"))
            .option("-chardev", &format!("socket,id=device,path={}", socket.display()))
            .option("-device", &device)
    }
}

impl Serving {
    fn new(backend: &Backend, dir: &Path) -> Result<Self> {
        let mut server = Server::new(backend.clone(), Socket::new(dir.join(SOCKET))?)?;
        let stop = server.stopper();
        let server = std::thread::Builder::new().name("device".into()).spawn(move || {
            // What was wrong with a VMM is among the events.
            let _ = server.run(Until::Stopped);
        })?;
        Ok(Self { stop, server: Some(server) })
    }

    fn end(&mut self) {
        self.stop.stop();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

impl Said {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device, which tells what happens to who waits.
fn device(
    block: u64,
    size: u64,
    addr: u64,
    memory: Memfd,
    saved: Option<&Snapshot>,
    said: &Arc<Said>,
) -> Result<Backend> {
    let settings = Settings { block_size: Some(block), ..Settings::new(addr, size) };
    let tell = Arc::clone(said);
    Ok(Backend::new(settings, memory, saved, move |event| {
        tell.events().push(event);
        tell.more.notify_all();
    })?)
}
