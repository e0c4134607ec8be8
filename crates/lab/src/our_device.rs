//! Real Linux on our own virtio-mem device: the device is served from this process, by vhost-user, to a QEMU that is new
//! enough to have a generic vhost-user device (`crates/lab/setup-qemu` brings one).
//!
//! The device's region is guest memory that Linux does not take for its own: on x86-64 a DIMM that ACPI does not tell of, on
//! arm64 an NVDIMM. Its file is this process's and QEMU's.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pagefold_virtio_mem_device::{Memfd, Pages, Settings, Snapshot, Stats};
use pagefold_virtio_mem_vhost::{Backend, Event, Server, Socket, Status, Stop, Until};
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;

use crate::{GIB, Kernel, MIB, Vm, VmBuilder};

/// Where `crates/lab/setup-qemu` puts QEMU.
const NEWER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/newer");
/// When Linux is asked anew for what it has not done.
const AGAIN: Duration = Duration::from_secs(15);
/// The socket's name.
const SOCKET: &str = "socket";
/// Bytes of virtio-mem's config space.
const CONFIG: usize = size_of::<pagefold_virtio_mem_spec::ConfigSpace>();

/// The newer QEMU for a kernel, where there is one.
pub fn qemu_for(kernel: &Kernel) -> Option<PathBuf> {
    let name = if kernel.is_arm64() { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
    Some(Path::new(NEWER).join("bin").join(name)).filter(|path| path.exists())
}

/// Our device, and a Linux machine that has it.
pub struct Driven {
    /// The machine.
    pub machine: Vm,
    /// The device.
    pub backend: Backend,
    kernel: Kernel,
    wanted: Wanted,
    file: File,
    said: Arc<Said>,
    serving: Serving,
    /// MemTotal of the guest with nothing plugged, in bytes.
    pub boot_memory: u64,
    patience: Duration,
}

/// The thread that serves the device.
struct Serving {
    stop: Stop,
    server: Option<JoinHandle<()>>,
    /// Where the socket is.
    dir: TempDir,
}

impl Serving {
    fn new(backend: &Backend) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut server = Server::new(backend.clone(), Socket::new(dir.path().join(SOCKET))?)?;
        let stop = server.stopper();
        let server = std::thread::Builder::new().name("device".into()).spawn(move || {
            // What was wrong with a VMM is among the events.
            let _ = server.run(Until::Stopped);
        })?;
        Ok(Self { stop, server: Some(server), dir })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// All that the device has told, and a bell for who waits.
#[derive(Default)]
struct Said {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Said {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the machine is to be like.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Bytes of a device block.
    pub block: u64,
    /// Bytes of the region.
    pub size: u64,
    /// Bytes of RAM.
    pub memory: u64,
    /// More for the kernel's command line.
    pub command_line: String,
    /// A guest that resets starts again.
    pub resets: bool,
    /// Files for the guest: its path, and ours.
    pub files: Vec<(String, PathBuf)>,
    /// Count what the guest executes, with this plugin ([`newer_counting_plugin`](crate::newer_counting_plugin)).
    pub counting_plugin: Option<PathBuf>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            block: 2 * MIB,
            size: 4 * GIB,
            memory: GIB / 2,
            command_line: "memhp_default_state=online_movable".into(),
            resets: false,
            files: Vec::new(),
            counting_plugin: None,
        }
    }
}

impl Driven {
    /// Boots a kernel on a device with nothing plugged.
    ///
    /// # Errors
    /// There is no such QEMU, or the guest does not come up.
    pub fn boot(kernel: &Kernel, wanted: &Wanted) -> Result<Self> {
        // Below the guest's memory block of 128 MiB nothing can be added; arm64's RAM begins at 1 GiB.
        let addr = if kernel.is_arm64() { 2 * GIB } else { 4 * GIB };
        let memory = Memfd::new(wanted.size, Pages::Normal)?;
        let file = memory.file().try_clone()?;
        let said = Arc::new(Said::default());
        let backend = device(wanted, addr, memory, None, &said)?;
        let serving = Serving::new(&backend)?;
        let machine = boot(kernel, wanted, &serving, &file, addr).map_err(|error| {
            let told: Vec<String> = said.events().iter().map(ToString::to_string).collect();
            error.context(format!("the device said: {}", told.join("; ")))
        })?;
        let patience = Duration::from_secs(180);
        let (kernel, wanted) = (kernel.clone(), wanted.clone());
        let mut driven =
            Self { machine, backend, kernel, wanted, file, said, serving, boot_memory: 0, patience };
        driven.boot_memory = driven.mem_total()?;
        driven.wait_for("a driver", |status| status.driver.is_some())?;
        Ok(driven)
    }

    /// Kills QEMU, and boots the guest anew in another one.
    ///
    /// # Errors
    /// As of [`Driven::boot`]; or the device does not notice.
    pub fn restart_qemu(&mut self) -> Result<()> {
        self.kill_qemu()?;
        self.boot_again()
    }

    /// Kills QEMU, ends the device and keeps its state; a device that goes on from it serves the guest, which boots anew.
    ///
    /// # Errors
    /// As of [`Driven::restart_qemu`]; or the state does not fit.
    pub fn restart_both(&mut self) -> Result<()> {
        self.kill_qemu()?;
        let (status, snapshot) = (self.backend.status(), self.backend.snapshot());
        let memory = Memfd::from_file(self.file.try_clone()?, self.wanted.size)?;
        self.backend = device(&self.wanted, status.addr, memory, Some(&snapshot), &self.said)?;
        self.serving = Serving::new(&self.backend)?;
        let now = self.backend.status();
        ensure!(now.plugged == status.plugged && now.requested_size == status.requested_size, "{now:?}");
        self.boot_again()
    }

    fn kill_qemu(&mut self) -> Result<()> {
        self.machine.qemu().end();
        let deadline = Instant::now() + self.patience;
        while self.backend.status().connected {
            ensure!(Instant::now() < deadline, "the device does not notice that QEMU is gone");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn boot_again(&mut self) -> Result<()> {
        let addr = self.backend.status().addr;
        self.machine = boot(&self.kernel, &self.wanted, &self.serving, &self.file, addr)?;
        self.wait_for("a driver", |status| status.driver.is_some()).map(|_| ())
    }

    /// MemTotal of the guest, in bytes.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn mem_total(&mut self) -> Result<u64> {
        Ok(self.machine.number("/proc/meminfo", "MemTotal")? << 10)
    }

    /// Asks for `bytes` plugged, and waits until they are. What Linux could not unplug at once it tries again after 50 s, or when
    /// it is asked anew; so it is asked anew. As long as something is plugged or unplugged, it goes on.
    ///
    /// # Errors
    /// Nothing has changed for a long time.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        self.backend.resize(bytes)?;
        let what = format!("{} MiB plugged", bytes >> 20);
        let is_so = |status: &Status| status.plugged_size == bytes;
        let status = self.backend.status();
        let more = bytes + status.block_size;
        let other = if more <= status.region_size { more } else { bytes - status.block_size };
        let (mut seen, mut since) = (status.plugged_size, Instant::now());
        loop {
            let Err(error) = self.wait_within(AGAIN, &what, is_so) else { return Ok(()) };
            let now = self.backend.status().plugged_size;
            if now != seen {
                (seen, since) = (now, Instant::now());
                continue;
            }
            if since.elapsed() > self.patience || self.machine.qemu().has_ended() {
                return Err(error);
            }
            self.backend.resize(other)?;
            self.backend.resize(bytes)?;
        }
    }

    /// Waits until the device is so; looks whenever it tells something.
    ///
    /// # Errors
    /// It is not in time; with the last that it told, and the console's last lines.
    pub fn wait_for(&mut self, what: &str, is_so: impl Fn(&Status) -> bool) -> Result<Status> {
        self.wait_within(self.patience, what, is_so)
    }

    fn wait_within(
        &mut self,
        within: Duration,
        what: &str,
        is_so: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = Instant::now() + within;
        loop {
            let seen = self.said.events().len();
            let status = self.backend.status();
            if is_so(&status) {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut events = self.said.events();
            if left.is_zero() || self.machine.qemu().has_ended() {
                let last: Vec<String> = events.iter().rev().take(8).rev().map(ToString::to_string).collect();
                drop(events);
                bail!(
                    "no {what}: {status:?}\nthe device's last words: {}\n{}",
                    last.join("; "),
                    self.machine.qemu().console().tail()
                );
            }
            if events.len() == seen {
                // A look now and then, should QEMU end.
                let rest = left.min(Duration::from_millis(500));
                events = self.said.more.wait_timeout(events, rest).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(events);
        }
    }

    /// What the device has told so far.
    pub fn events(&self) -> Vec<Event> {
        self.said.events().clone()
    }

    /// What the device has done.
    pub fn stats(&self) -> Stats {
        self.backend.stats()
    }

    /// Holds all accounts beside each other, and waits until they agree: what the device says is plugged, how much more
    /// memory Linux has than without it, and where the file has memory.
    ///
    /// # Errors
    /// They do not agree in time; or the file has memory where nothing is plugged.
    pub fn agree(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            let before = self.backend.status();
            let more = self.mem_total()?.checked_sub(self.boot_memory);
            let status = self.backend.status();
            let sum: u64 = status.plugged.iter().map(|range| range.1).sum();
            ensure!(sum == status.plugged_size, "the bitmap has {sum} bytes: {status:?}");
            // Linux has onlined, or withdrawn, a block a little before the device hears of it, or after.
            if more == Some(status.plugged_size) && before.plugged == status.plugged {
                return self.file_agrees(&status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "Linux has {more:?} bytes more than at boot, the device {} plugged\n{}",
                    status.plugged_size,
                    self.machine.qemu().console().tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the file has memory only where blocks are plugged: the rest reads as zeros and costs nothing.
    ///
    /// # Errors
    /// It has memory elsewhere, or cannot be looked at.
    pub fn file_agrees(&self, status: &Status) -> Result<()> {
        let mut at = 0;
        loop {
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No more data.
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error).context("the file cannot be looked at"),
            };
            let end = seek(&self.file, SeekFrom::Hole(start))?;
            let (from, to) = (status.addr + start, status.addr + end);
            let mut covered = from;
            for &(addr, len) in &status.plugged {
                if addr <= covered && covered < addr + len {
                    covered = addr + len;
                }
            }
            ensure!(
                covered >= to,
                "the file has memory from {from:#x} to {to:#x}; plugged is {:x?}",
                status.plugged
            );
            at = end;
        }
        ensure!(status.resident <= status.plugged_size, "{} bytes resident: {status:?}", status.resident);
        Ok(())
    }
}

/// The same QEMU and kernel with QEMU's own device, `vmem0`, on memory of the same kind: to compare with. `trace` has QEMU tell
/// on its console what the driver asks.
///
/// # Errors
/// As of [`Driven::boot`].
pub fn boot_on_qemus_own(kernel: &Kernel, wanted: &Wanted, trace: bool) -> Result<Vm> {
    let Wanted { memory, size, block, .. } = *wanted;
    let mut builder = plain_machine(kernel, wanted)?.dimms(size + GIB).change_qemu(|it| {
        it.option("-object", &format!("memory-backend-memfd,id=dm,share=on,size={size},reserve=off")).option(
            "-device",
            &format!("virtio-mem-pci,id=vmem0,memdev=dm,block-size={block},requested-size=0"),
        )
    });
    if trace {
        builder = builder.change_qemu(|it| it.option("-trace", "virtio_mem_*"));
    }
    builder.memory(memory).boot()
}

/// The device, which tells what happens to who waits.
fn device(
    wanted: &Wanted,
    addr: u64,
    memory: Memfd,
    saved: Option<&Snapshot>,
    said: &Arc<Said>,
) -> Result<Backend> {
    let settings = Settings { block_size: Some(wanted.block), ..Settings::new(addr, wanted.size) };
    let tell = Arc::clone(said);
    Ok(Backend::new(settings, memory, saved, move |event| {
        tell.events().push(event);
        tell.more.notify_all();
    })?)
}

/// Boots a machine with our device.
fn boot(kernel: &Kernel, wanted: &Wanted, serving: &Serving, file: &File, addr: u64) -> Result<Vm> {
    machine(kernel, wanted, &serving.dir.path().join(SOCKET), file, addr)?.boot()
}

/// A machine with shared memory, as the kernel's architecture needs it, without a device.
fn plain_machine(kernel: &Kernel, wanted: &Wanted) -> Result<VmBuilder> {
    let qemu = qemu_for(kernel).ok_or_else(|| anyhow!("no newer QEMU: crates/lab/setup-qemu brings it"))?;
    let (memory, resets) = (wanted.memory, wanted.resets);
    let mut builder = Vm::builder().kernel(kernel).memory(memory).change_qemu(|mut it| {
        it = it
            .program(qemu)
            .option("-object", &format!("memory-backend-memfd,id=ram,size={memory},share=on"));
        it = match kernel.is_arm64() {
            false => it.machine("q35,memory-backend=ram"),
            true => it.machine("virt,gic-version=3,nvdimm=on,memory-backend=ram"),
        };
        if resets { it.resets() } else { it }
    });
    if kernel.is_arm64() {
        builder = builder.console_and_busybox("ttyAMA0", Path::new(NEWER).join("busybox-arm64"));
    }
    if !kernel.is_arm64() {
        // On a busy host, an emulated timer does not tick as often as Linux expects while it looks whether it does at all.
        builder = builder.command_line("no_timer_check");
    }
    for (guest, host) in &wanted.files {
        builder = builder.file(guest, host);
    }
    if let Some(plugin) = &wanted.counting_plugin {
        builder = builder.count_instructions(plugin);
    }
    Ok(builder.command_line(&wanted.command_line))
}

/// The machine with our device.
fn machine(kernel: &Kernel, wanted: &Wanted, socket: &Path, file: &File, addr: u64) -> Result<VmBuilder> {
    let size = wanted.size;
    // QEMU opens it by this process's name of it.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let dimm = if kernel.is_arm64() { "nvdimm" } else { "pc-dimm" };
    let socket = socket.display();
    let device = format!(
        "vhost-user-test-device-pci,chardev=device,virtio-id=24,num_vqs=1,vq_size=128,config_size={CONFIG}"
    );
    let builder = plain_machine(kernel, wanted)?.dimms(size + GIB).change_qemu(|it| {
        it.option("-object", &format!("memory-backend-file,id=dm,mem-path={path},share=on,size={size}"))
            .option("-device", &format!("{dimm},id=d0,memdev=dm,addr={addr:#x}"))
            .option("-chardev", &format!("socket,id=device,path={socket}"))
            .option("-device", &device)
    });
    Ok(if kernel.is_arm64() { builder } else { builder.command_line("acpi_no_memhotplug") })
}
