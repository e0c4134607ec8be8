//! Pagefold's own kernel as a guest.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pagefold_boot::{BUILD, find_kernel_of};
use pagefold_boot_protocol::{Answer, Options, Request};
use pagefold_qemu::{Arch, Qemu, QemuBuilder, VirtioMem};

use super::{Account, MeasuredGuest, Source, TailSaving};
use crate::{GIB, counting_plugin};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// The kernel of `guest/` to be.
#[derive(Clone, Debug)]
pub struct Pagefold {
    /// Bytes of memory at boot (1 GiB).
    pub memory: u64,
    /// CPUs (1).
    pub cpus: u32,
    /// Bytes that its device has room for (4 GiB).
    pub device: u64,
    /// Pages that it can pin, spread over its memory blocks (none).
    pub pins: u64,
    /// Huge pages of 2 MiB that it can have (none).
    pub huge_pages: u64,
    /// The machine's architecture (x86-64).
    pub arch: Arch,
    /// What a table says of all that.
    pub label: String,
}

impl Default for Pagefold {
    fn default() -> Self {
        Pagefold {
            memory: GIB,
            cpus: 1,
            device: 4 * GIB,
            pins: 0,
            huge_pages: 0,
            arch: Arch::X86_64,
            label: String::new(),
        }
    }
}

impl Pagefold {
    /// Boots it. No walker runs in it, so that what it executes is for the requests alone.
    ///
    /// # Errors
    /// QEMU or the kernel is missing, or the guest does not come up.
    pub fn boot(&self) -> Result<PagefoldGuest> {
        let kernel = find_kernel_of(self.arch.into())
            .with_context(|| format!("no kernel of our own: {BUILD} makes it"))?;
        let mut work = Vec::new();
        if self.pins > 0 {
            work.push(format!("pinned={}K", self.pins * 4));
        }
        if self.huge_pages > 0 {
            work.push(format!("hugetlb={}M", self.huge_pages * 2));
        }
        let options = Options { walkers: Some(0), work, ..Options::default() };
        let builder = QemuBuilder::new()
            .arch(self.arch)
            .kernel(&kernel)
            .command_line(&options.to_string())
            .memory(self.memory)
            .cpus(self.cpus)
            .virtio_mem(VirtioMem::new(self.device))
            .count_instructions(counting_plugin()?);
        let mut guest = pagefold_boot::Guest::start(builder, Arc::new(AtomicBool::new(false)))?;
        guest.greeting()?;
        Ok(PagefoldGuest { guest, name: format!("Pagefold {}", self.label).trim_end().to_owned() })
    }
}

/// Pagefold's kernel that runs.
pub struct PagefoldGuest {
    guest: pagefold_boot::Guest,
    name: String,
}

impl PagefoldGuest {
    fn ask(&mut self, request: Request) -> Result<Answer> {
        Ok(self.guest.ask(&request, PATIENCE)?)
    }

    /// Begins its workloads; pages that they hold.
    fn populate(&mut self) -> Result<u64> {
        match self.ask(Request::Populate)? {
            Answer::Populated(_) => Ok(self.guest.report()?.folios.held),
            other => bail!("the guest holds nothing: {other:?}"),
        }
    }
}

impl MeasuredGuest for PagefoldGuest {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn qemu(&mut self) -> &mut Qemu {
        self.guest.qemu()
    }

    fn account(&mut self, plugged: u64) -> Result<Account> {
        // Its own word: its driver has as much, and has given up on the rest.
        let says = self.guest.status()?.first().map_or(0, |status| status.plugged);
        ensure!(says == plugged, "the guest says that {says} bytes are plugged, and QEMU {plugged}");
        let report = self.guest.report()?;
        Ok(Account {
            // Not the memory map alone: every table, and their page tables.
            descriptors: report.metadata(),
            source: Source::Measured,
            total: report.memory.boot + report.memory.plugged,
            free: report.memory.free,
        })
    }

    fn pin(&mut self) -> Result<u64> {
        self.populate()
    }

    fn unpin(&mut self) -> Result<()> {
        match self.ask(Request::Free(1000))? {
            Answer::Populated(_) => Ok(()),
            other => bail!("the guest does not let go: {other:?}"),
        }
    }

    fn huge_pages(&mut self, _: u64) -> Result<u64> {
        // As many as it was booted for.
        self.populate()
    }

    fn hvo(&mut self) -> Result<TailSaving> {
        Ok(TailSaving::Folds)
    }

    fn end(&mut self) -> Option<String> {
        None
    }
}
