//! Real Linux on our own virtio-mem device: the device is served from this process, by vhost-user, to a QEMU that is new
//! enough to have a generic vhost-user device (`crates/lab/setup-qemu` brings one).
//!
//! The device's region is guest memory that Linux does not take for its own: on x86-64 a DIMM that ACPI does not tell of, on
//! arm64 an NVDIMM. Its file is this process's and QEMU's.

mod served;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pagefold_virtio_mem_device::Stats;
use pagefold_virtio_mem_vhost::{Backend, Event, Status};
use rustix::fs::{SeekFrom, seek};

pub use self::served::Served;
pub use crate::newer::qemu_for;
use crate::newer::{busybox_for_arm64, wanted_qemu_for};
use crate::{GIB, Kernel, MIB, Vm, VmBuilder};

/// When Linux is asked anew for what it has not done.
const AGAIN: Duration = Duration::from_secs(15);

/// Our device, and a Linux machine that has it.
pub struct Driven {
    /// The machine.
    pub machine: Vm,
    /// The device.
    pub served: Served,
    kernel: Kernel,
    wanted: Wanted,
    /// MemTotal of the guest with nothing plugged, in bytes.
    pub boot_memory: u64,
    patience: Duration,
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
    /// The guest can start its kernel anew without a reset: `lab-kexec /kernel /disk`.
    pub kexec: bool,
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
            kexec: false,
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
        let served = Served::new(wanted.block, wanted.size, addr)?;
        let machine = boot(kernel, wanted, &served).map_err(|error| {
            let told: Vec<String> = served.events().iter().map(ToString::to_string).collect();
            error.context(format!("the device said: {}", told.join("; ")))
        })?;
        let patience = Duration::from_secs(180);
        let (kernel, wanted) = (kernel.clone(), wanted.clone());
        let mut driven = Self { machine, served, kernel, wanted, boot_memory: 0, patience };
        driven.take_boot_memory()?;
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
        self.served.restart()?;
        self.boot_again()
    }

    fn kill_qemu(&mut self) -> Result<()> {
        self.machine.qemu().end();
        let deadline = Instant::now() + self.patience;
        while self.backend().status().connected {
            ensure!(Instant::now() < deadline, "the device does not notice that QEMU is gone");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn boot_again(&mut self) -> Result<()> {
        self.machine = boot(&self.kernel, &self.wanted, &self.served)?;
        self.wait_for("a driver", |status| status.driver.is_some()).map(|_| ())
    }

    /// MemTotal of the guest, in bytes.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn mem_total(&mut self) -> Result<u64> {
        Ok(self.machine.number("/proc/meminfo", "MemTotal")? << 10)
    }

    /// Takes the guest's MemTotal as that of a guest with nothing plugged, from here on: it is another kernel's.
    ///
    /// # Errors
    /// The guest does not answer, or something is plugged.
    pub fn take_boot_memory(&mut self) -> Result<()> {
        let status = self.backend().status();
        ensure!(status.plugged_size == 0, "{status:?}");
        self.boot_memory = self.mem_total()?;
        Ok(())
    }

    /// Asks for `bytes` plugged, and waits until they are. What Linux could not unplug at once it tries again after 50 s, or when
    /// it is asked anew; so it is asked anew. As long as something is plugged or unplugged, it goes on.
    ///
    /// # Errors
    /// Nothing has changed for a long time.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        self.backend().resize(bytes)?;
        let what = format!("{} MiB plugged", bytes >> 20);
        let is_so = |status: &Status| status.plugged_size == bytes;
        let status = self.backend().status();
        let more = bytes + status.block_size;
        let other = if more <= status.region_size { more } else { bytes - status.block_size };
        let (mut seen, mut since) = (status.plugged_size, Instant::now());
        loop {
            let Err(error) = self.wait_within(AGAIN, &what, is_so) else { return Ok(()) };
            let now = self.backend().status().plugged_size;
            if now != seen {
                (seen, since) = (now, Instant::now());
                continue;
            }
            if since.elapsed() > self.patience || self.machine.qemu().has_ended() {
                return Err(error);
            }
            self.backend().resize(other)?;
            self.backend().resize(bytes)?;
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
            let seen = self.served.told();
            let status = self.backend().status();
            if is_so(&status) {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.machine.qemu().has_ended() {
                let events = self.events();
                let last: Vec<String> = events.iter().rev().take(8).rev().map(ToString::to_string).collect();
                bail!(
                    "no {what}: {status:?}\nthe device's last words: {}\n{}",
                    last.join("; "),
                    self.machine.qemu().console().tail()
                );
            }
            // A look now and then, should QEMU end.
            self.served.wait_for_more(seen, left.min(Duration::from_millis(500)));
        }
    }

    /// The device.
    pub fn backend(&self) -> &Backend {
        &self.served.backend
    }

    /// What the device has told so far.
    pub fn events(&self) -> Vec<Event> {
        self.served.events()
    }

    /// What the device has done.
    pub fn stats(&self) -> Stats {
        self.backend().stats()
    }

    /// Holds all accounts beside each other, and waits until they agree: what the device says is plugged, how much more
    /// memory Linux has than without it, and where the file has memory.
    ///
    /// # Errors
    /// They do not agree in time; or the file has memory where nothing is plugged.
    pub fn agree(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            let before = self.backend().status();
            let more = self.mem_total()?.checked_sub(self.boot_memory);
            let status = self.backend().status();
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
            let start = match seek(&self.served.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No more data.
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error).context("the file cannot be looked at"),
            };
            let end = seek(&self.served.file, SeekFrom::Hole(start))?;
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
/// on its console what the driver asks, and what QEMU is asked itself.
///
/// # Errors
/// As of [`Driven::boot`].
pub fn boot_on_qemus_own(kernel: &Kernel, wanted: &Wanted, trace: bool) -> Result<Vm> {
    let Wanted { memory, size, block, .. } = *wanted;
    let mut builder = plain_machine(kernel, wanted)?.change_qemu(|it| {
        it.dimms(size + GIB)
            .option("-object", &format!("memory-backend-memfd,id=dm,share=on,size={size},reserve=off"))
            .option(
                "-device",
                &format!("virtio-mem-pci,id=vmem0,memdev=dm,block-size={block},requested-size=0"),
            )
    });
    if trace {
        builder = builder
            .change_qemu(|it| it.option("-trace", "virtio_mem_*").option("-trace", "handle_qmp_command"));
    }
    builder.memory(memory).boot()
}

/// Boots a machine with our device.
fn boot(kernel: &Kernel, wanted: &Wanted, served: &Served) -> Result<Vm> {
    let dimm = if kernel.is_arm64() { "nvdimm" } else { "pc-dimm" };
    let mut builder = plain_machine(kernel, wanted)?
        .change_qemu(|qemu| served.give_to(qemu.dimms(wanted.size + GIB), dimm));
    // What is in it is read when the machine boots.
    let dir = tempfile::tempdir()?;
    if wanted.kexec {
        builder = builder.with_kexec(dir.path())?;
    }
    if kernel.is_arm64() { builder } else { builder.command_line("acpi_no_memhotplug") }.boot()
}

/// A machine with shared memory, as the kernel's architecture needs it, without a device.
fn plain_machine(kernel: &Kernel, wanted: &Wanted) -> Result<VmBuilder> {
    let qemu = wanted_qemu_for(kernel)?;
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
        builder = builder.console_and_busybox("ttyAMA0", busybox_for_arm64());
    }
    if !kernel.is_arm64() {
        // On a busy host, an emulated timer does not tick as often as Linux expects while it looks whether it does at all.
        builder = builder.command_line("no_timer_check");
    }
    for (guest, host) in &wanted.files {
        builder = builder.file(guest, host);
    }
    if let Some(plugin) = &wanted.counting_plugin {
        builder = builder.change_qemu(|qemu| qemu.count_instructions(plugin));
    }
    Ok(builder.command_line(&wanted.command_line))
}
