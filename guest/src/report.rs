//! What everything costs, and where each driver stands.

use alloc::format;
use alloc::string::ToString;
use core::sync::atomic::{AtomicU64, Ordering};

use pagefold_boot_protocol::{
    DeviceInfo, DeviceStatus, Flushes, FolioCounts, FrameCounts, Hello, MemoryReport, Report, Settled,
    TableReport, VERSION,
};
use pagefold_engine::hotplug::BlockInfo;
use pagefold_engine::platform::Mapping;
use pagefold_engine::{BlockState, Class, Order, Pfn};
use pagefold_pagetable::Counts;
use pagefold_virtio_mem::{Mode, Next};

use crate::arch::flush;
use crate::kernel::{Device, Kernel};
use crate::layout::PAGE;
use crate::machine::Choice;
use crate::{clock, cpu, devices, frames, machine, paging, tables};

impl<C: Choice> Kernel<C> {
    pub(crate) fn hello(&self) -> Hello {
        let devices = self.drivers.iter().map(|device| {
            let geometry = device.driver.geometry();
            DeviceInfo {
                address: geometry.addr,
                size: (device.driver.pages().end - device.driver.pages().start) * PAGE,
                unit: match geometry.mode {
                    Mode::SubBlock { size } | Mode::BigBlock { size } => size,
                },
                is_big: matches!(geometry.mode, Mode::BigBlock { .. }),
                node: device.driver.node(),
                sends_messages: devices::sends_messages(device.place),
            }
        });
        Hello {
            version: VERSION,
            cpus: cpu::count() as u32,
            boot_memory: machine::BOOT_MEMORY.load(Ordering::Relaxed),
            kernel: machine::KERNEL_MEMORY.load(Ordering::Relaxed),
            boot_ns: clock::now(),
            devices: devices.collect(),
        }
    }

    pub(crate) fn report(&self) -> Report {
        let plugged = self.drivers.iter().map(|device| device.driver.status().plugged).sum();
        let online = || self.hotplug.blocks().filter(|block| block.state == BlockState::Online);
        let blocks = online().count() as u64;
        let is_offline = |pfn: u64| self.engine.class(Pfn(pfn)).0 == Class::Offline;
        let areas = |block: BlockInfo| self.hotplug.pages(block.id).step_by(Order::AREA.pages() as usize);
        let partial = online().filter(|&block| areas(block).any(is_offline));
        let mut behind = 0;
        let mut page_tables = 0;
        let rows = self.engine.tables().map(|(kind, table)| {
            let (counted, measured) = (table.counted(), table.measured());
            behind += measured.pages + measured.tables;
            page_tables += measured.tables;
            TableReport {
                name: format!("{kind:?}"),
                reserved: table.len(),
                counted: counted.pages * PAGE,
                measured: measured.pages * PAGE,
            }
        });
        let (reserve, lowest) = frames::reserve();
        let count = |which: fn(&Counts) -> &AtomicU64| {
            tables::counts().map_or(0, |counts| which(counts).load(Ordering::Relaxed))
        };
        Report {
            memory: MemoryReport {
                boot: machine::BOOT_MEMORY.load(Ordering::Relaxed),
                plugged,
                described: machine::BOOT_MEMORY.load(Ordering::Relaxed)
                    + blocks * self.hotplug.config().block_pages * PAGE,
                free: self.engine.free_pages() * PAGE,
                blocks,
                partial_blocks: partial.count() as u64,
            },
            tables: rows.collect(),
            page_tables: page_tables * PAGE,
            frames: FrameCounts {
                boot: frames::of_boot(),
                taken: machine::TAKEN.load(Ordering::Relaxed),
                reserve,
                lowest,
                tables: behind,
                other: paging::frames_taken() + tables::SHARED_FRAMES,
            },
            folios: FolioCounts {
                held: self.population.folios(),
                bytes: self.population.in_use().iter().sum(),
                migrated: self.population.migrated(),
                lost: self.population.lost(),
            },
            walks: self.crew.counts(),
            flushes: Flushes {
                folds: count(|counts| &counts.fold_flushes),
                folded_entries: count(|counts| &counts.folded_entries),
                unfolds: count(|counts| &counts.unfold_flushes),
                spared: count(|counts| &counts.spared),
                after_making: flush::after_making(),
                barriers: machine::GRACE_PERIODS.load(Ordering::Relaxed),
            },
        }
    }
}

impl Device {
    /// Where it stands.
    pub(crate) fn status(&self) -> DeviceStatus {
        let status = self.driver.status();
        DeviceStatus {
            requested: status.requested,
            plugged: status.plugged,
            settled: match self.step {
                Next::Reached => Settled::Reached,
                Next::Again => Settled::Working,
                Next::Later(..) => Settled::Retrying,
                Next::Asleep(_) => Settled::Asleep,
            },
            shortfall: status.shortfall.map(|why| why.to_string()),
            retries: self.retries,
            busy_ns: self.busy_ns,
            interrupts: devices::count(self.place as u8),
        }
    }
}
