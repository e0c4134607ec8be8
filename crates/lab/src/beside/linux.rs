//! Real Linux as a guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pagefold_qemu::{Arch, Exit, Qemu};

use super::{Account, MeasuredGuest, Source, TailSaving};
use crate::newer::machine_for;
use crate::{GIB, Kernel, Vm, counting_plugin, static_pin, static_pin_arm64};

/// Where the guest has the program that pins.
const PIN: &str = "/bin/lab-pin";
/// How long a QEMU that has hung up may take to end.
const MOMENT: Duration = Duration::from_secs(5);
const PAGE: u64 = 4096;
/// `sizeof(struct page)` of all these kernels.
const DESCRIPTOR: u64 = 64;

/// A Linux to be.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The kernel.
    pub kernel: Kernel,
    /// Bytes of memory at boot (1 GiB).
    pub memory: u64,
    /// CPUs (1).
    pub cpus: u32,
    /// Bytes that its device has room for (4 GiB).
    pub device: u64,
    /// More for its command line: into which zone added memory goes, at least (`memhp_default_state=online_movable`).
    pub command_line: String,
    /// What a table says of all that, behind the release.
    pub label: String,
    /// Whether it is to pin pages: it then has the program for that in its memory.
    pub pins: bool,
    /// How long the boot and each command may take.
    pub patience: Duration,
}

impl Linux {
    /// 1 GiB, one CPU, a device of 4 GiB, added memory movable.
    pub fn new(kernel: &Kernel) -> Self {
        Linux {
            kernel: kernel.clone(),
            memory: GIB,
            cpus: 1,
            device: 4 * GIB,
            command_line: "memhp_default_state=online_movable".to_owned(),
            label: String::new(),
            pins: false,
            patience: Duration::from_secs(300),
        }
    }

    /// Boots it.
    ///
    /// # Errors
    /// QEMU or a file is missing, or the guest does not come up; with the console's last lines.
    pub fn boot(&self) -> Result<LinuxGuest> {
        let mut builder = machine_for(&self.kernel);
        if self.pins {
            let pin = match self.kernel.arch() {
                Arch::X86_64 => static_pin()?,
                Arch::Aarch64 => static_pin_arm64()?.context("crates/lab/setup-arm64 brings what pins")?,
            };
            builder = builder.file(PIN, pin);
        }
        let plugin = counting_plugin()?;
        let mut machine = builder
            .memory(self.memory)
            .cpus(self.cpus)
            .virtio_mem(self.device)
            .command_line(&self.command_line)
            .patience(self.patience)
            .change_qemu(|qemu| qemu.count_instructions(plugin))
            .boot()?;
        let block = machine.run("cat /sys/devices/system/memory/block_size_bytes")?;
        let block = u64::from_str_radix(block.trim(), 16).context("the guest's block size")?;
        let (boot_blocks, _) = blocks(&mut machine)?;
        let name = format!("Linux {} {}", self.kernel.release(), self.label).trim_end().to_owned();
        Ok(LinuxGuest { machine, name, block, boot_blocks })
    }
}

/// A Linux that runs.
pub struct LinuxGuest {
    machine: Vm,
    name: String,
    /// Bytes of a memory block.
    block: u64,
    boot_blocks: u64,
}

/// Memory blocks that there are, and those online.
fn blocks(machine: &mut Vm) -> Result<(u64, u64)> {
    let states = machine.run("cat /sys/devices/system/memory/memory*/state")?;
    let online = states.lines().filter(|&state| state == "online").count();
    Ok((states.lines().count() as u64, online as u64))
}

impl LinuxGuest {
    /// The machine.
    pub fn machine(&mut self) -> &mut Vm {
        &mut self.machine
    }

    /// Bytes of page descriptors: counted since Linux 6.10; before, of all pages that zones have.
    fn descriptors(&mut self) -> Result<(u64, Source)> {
        if let Ok(boot) = self.machine.number("/proc/vmstat", "nr_memmap_boot_pages") {
            let later = self.machine.number("/proc/vmstat", "nr_memmap_pages")?;
            return Ok(((boot + later) * PAGE, Source::Counted));
        }
        let present =
            self.machine.run("awk '$1 == \"present\" { pages += $2 } END { print pages }' /proc/zoneinfo")?;
        let present: u64 = present.trim().parse().context("the guest's present pages")?;
        Ok((present * DESCRIPTOR, Source::Computed))
    }
}

impl MeasuredGuest for LinuxGuest {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn qemu(&mut self) -> &mut Qemu {
        self.machine.qemu()
    }

    fn account(&mut self, plugged: u64) -> Result<Account> {
        let (blocks, online) = blocks(&mut self.machine)?;
        // Its own word that it is done: what is plugged is in blocks that are online, and no block is left that is not.
        ensure!(
            blocks == online && (blocks - self.boot_blocks) * self.block >= plugged,
            "{} rests with {plugged} bytes plugged, but has {blocks} memory blocks, {online} of them online, and booted \
             with {}",
            self.name,
            self.boot_blocks
        );
        let (descriptors, source) = self.descriptors()?;
        let mut kib = |key: &str| self.machine.number("/proc/meminfo", key);
        Ok(Account { descriptors, source, total: kib("MemTotal")? << 10, free: kib("MemFree")? << 10 })
    }

    fn pin(&mut self) -> Result<u64> {
        let start = self.qemu().qmp().address(0)?;
        let end = start + self.qemu().qmp().plugged(0)?;
        let held = self.machine.run(&format!(
            "rm -f /tmp/pins; {PIN} {start:x} {end:x} {:x} >/tmp/pins 2>/tmp/pin-error & echo $! >/tmp/pin\n\
             until [ -s /tmp/pins ]; do kill -0 $! || {{ cat /tmp/pin-error >&2; exit 1; }}; sleep 0.1; done\n\
             cat /tmp/pins",
            self.block
        ))?;
        held.trim().parse().with_context(|| format!("how many pages are pinned? The guest says '{held}'"))
    }

    fn unpin(&mut self) -> Result<()> {
        // The pages are free when it has ended.
        self.machine
            .run("kill $(cat /tmp/pin); while kill -0 $(cat /tmp/pin) 2>/dev/null; do sleep 0.05; done")?;
        Ok(())
    }

    fn huge_pages(&mut self, count: u64) -> Result<u64> {
        const POOL: &str = "/proc/sys/vm/nr_hugepages";
        let has = self.machine.run(&format!("echo {count} >{POOL}; cat {POOL}"))?;
        has.trim().parse().with_context(|| format!("how many huge pages are there? The guest says '{has}'"))
    }

    fn hvo(&mut self) -> Result<TailSaving> {
        let switch = "/proc/sys/vm/hugetlb_optimize_vmemmap";
        let says = self.machine.run(&format!("[ ! -e {switch} ] || cat {switch}"))?;
        Ok(match says.trim() {
            "" => TailSaving::Missing,
            "0" => TailSaving::Off,
            _ => TailSaving::On,
        })
    }

    fn end(&mut self) -> Option<String> {
        // A panic resets the machine, which ends QEMU, and the console is complete then. But a QEMU that is asked something
        // just when it ends may not come to it (seen with 7.2): the console's word is enough.
        let has_ended = matches!(self.qemu().wait(MOMENT), Ok(Exit::Off));
        let console = self.machine.console();
        let panic = console.lines().rev().find_map(|line| Some(line.split_once("Kernel panic - ")?.1.trim()));
        match panic {
            Some(words) => Some(format!("kernel panic, {words}")),
            None => has_ended.then(|| "it turned itself off".to_owned()),
        }
    }
}
