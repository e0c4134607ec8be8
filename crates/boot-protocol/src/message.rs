//! Lines of JSON, down and up the second serial port.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Both ends must be of one version.
pub const VERSION: u32 = 2;

/// A byte that the host sends all the time, between the bytes of requests as well, which it is never one of (JSON writes
/// control characters otherwise). A guest that has had one and then none for [`SILENCE_SECONDS`] ends
/// ([`GuestExit::HostGone`](crate::GuestExit::HostGone)): a serial port does not tell that its other end was closed.
pub const PULSE: u8 = 0x16;
/// Seconds from one pulse to the next.
pub const PULSE_SECONDS: u64 = 1;
/// Seconds without a pulse that are too many.
pub const SILENCE_SECONDS: u64 = 20;

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Where the drivers stand: [`Answer::Status`].
    Status,
    /// What everything costs now: [`Answer::Report`].
    Report,
    /// All pages: [`Answer::Pages`] any number of times, then [`Answer::Done`].
    Pages,
    /// Let every workload of the command line grow to its size, and free and pin what it says: [`Answer::Populated`].
    Populate,
    /// Free a share (in thousandths) of the folios of every workload, at random: [`Answer::Populated`].
    Free(u16),
    /// Pin a share (in thousandths) of the folios of every workload, at random, and no others: they cannot be moved.
    /// [`Answer::Populated`].
    Pin(u16),
    /// Take memory from all over the machine, write to it, read it back, and free it again: [`Answer::Touched`].
    Touch,
    /// Fold and unfold so many folios of 2 MiB, some at a time, while walkers look: [`Answer::Cycles`].
    Cycle(u64),
    /// Drop the driver of a device, and probe the device anew: [`Answer::Done`] when the new one is there.
    RestartDriver(Restart),
    /// Hold every promise between classes, descriptors and frames against each other, with everybody stopped:
    /// [`Answer::Done`], or [`Answer::Refused`] with what is broken.
    Audit,
    /// End: [`Answer::Done`], then [`GuestExit::Stopped`](crate::GuestExit::Stopped).
    Stop,
}

/// How a driver is to be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restart {
    /// Which device's, from 0.
    pub device: u32,
    /// Take its memory out of the machine first, but leave it plugged: the new driver finds memory that no block has,
    /// as after the start of another kernel. [`LeftoversChoice`](crate::LeftoversChoice) says what it does about it.
    pub forget: bool,
}

/// What the guest answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is up.
    Hello(Hello),
    /// Where each driver stands.
    Status(Vec<DeviceStatus>),
    /// What everything costs.
    Report(Report),
    /// Some of the pages, ascending.
    Pages(Vec<PageRun>),
    /// Done.
    Done,
    /// The workloads stand; bytes that found no place.
    Populated(u64),
    /// Bytes that were taken, written and read back.
    Touched(u64),
    /// How folding and unfolding went.
    Cycles(Cycles),
    /// Not done, and why.
    Refused(String),
}

/// A guest that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// Processors that run.
    pub cpus: u32,
    /// Bytes of memory it booted with.
    pub boot_memory: u64,
    /// Bytes of that which the kernel took for itself at boot: image, heap, stacks, first frames.
    pub kernel: u64,
    /// Nanoseconds from the kernel's first instruction until now.
    pub boot_ns: u64,
    /// Its virtio-mem devices.
    pub devices: Vec<DeviceInfo>,
}

/// A virtio-mem device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceInfo {
    /// Where its region begins, in bytes.
    pub address: u64,
    /// Bytes of its region.
    pub size: u64,
    /// Bytes that are plugged and unplugged at once, at least.
    pub unit: u64,
    /// Whether the driver is in big-block mode.
    pub is_big: bool,
    /// Its NUMA node.
    pub node: u8,
    /// Whether its interrupts are messages (MSI-X), not PCI's lines.
    #[serde(default)]
    pub sends_messages: bool,
}

/// Whether a driver is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// As much is plugged as the host wants.
    Reached,
    /// It works.
    Working,
    /// It fell short, and tries again.
    Retrying,
    /// It fell short, and only a change of something helps.
    Asleep,
}

/// Where a driver stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceStatus {
    /// Bytes that the host wants plugged.
    pub requested: u64,
    /// Bytes plugged.
    pub plugged: u64,
    /// Whether it is done.
    pub settled: Settled,
    /// Why it fell short, if it did.
    pub shortfall: Option<String>,
    /// Attempts that fell short since the host's wish last changed.
    pub retries: u32,
    /// Nanoseconds that the driver worked since then.
    pub busy_ns: u64,
    /// Config interrupts since the boot.
    pub interrupts: u64,
}

/// What everything costs, at one moment, while nothing moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// Memory.
    pub memory: MemoryReport,
    /// The engine's tables.
    pub tables: Vec<TableReport>,
    /// Frames that hold page tables of the tables' range.
    pub page_tables: u64,
    /// The kernel's own frames.
    pub frames: FrameCounts,
    /// The workloads' folios.
    pub folios: FolioCounts,
    /// Walkers.
    pub walks: Walks,
    /// TLB flushes.
    pub flushes: Flushes,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryReport {
    /// At boot.
    pub boot: u64,
    /// Plugged.
    pub plugged: u64,
    /// In online memory blocks and at boot: what Linux would have descriptors for.
    pub described: u64,
    /// Free.
    pub free: u64,
    /// Memory blocks that are online.
    pub blocks: u64,
    /// Of those, how many are only partly plugged.
    pub partial_blocks: u64,
}

/// One of the engine's tables, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TableReport {
    /// Which.
    pub name: String,
    /// Address space.
    pub reserved: u64,
    /// Behind it by the engine's (memory map) or the table's own count.
    pub counted: u64,
    /// Behind it by what the page tables say.
    pub measured: u64,
}

/// The kernel's own frames of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Frames"))]
pub struct FrameCounts {
    /// Taken for itself at boot.
    pub boot: u64,
    /// Taken from the engine since, and not given back.
    pub taken: u64,
    /// In the reserve now.
    pub reserve: u64,
    /// The least that was in the reserve.
    pub lowest: u64,
    /// Behind tables, and as their page tables.
    pub tables: u64,
    /// In other use: stacks, the direct map, devices.
    pub other: u64,
}

/// The workloads' folios.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Folios"))]
pub struct FolioCounts {
    /// How many.
    pub held: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Moved so far.
    pub migrated: u64,
    /// Whose contents were not as they were left.
    pub lost: u64,
}

/// What walkers and owners did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Walks {
    /// Pages looked at.
    pub looks: u64,
    /// References taken.
    pub gets: u64,
    /// References put because what led there had changed.
    pub stale: u64,
    /// Broken promises.
    pub violations: u64,
    /// Operations of owners.
    pub owner_steps: u64,
    /// Map pages folded.
    pub folded: u64,
}

/// TLB flushes of all processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Flushes {
    /// For folding.
    pub folds: u64,
    /// Entries that those took away.
    pub folded_entries: u64,
    /// For unfolding, where the zero page had been looked at.
    pub unfolds: u64,
    /// Unfolds that needed none, since no CPU had.
    pub spared: u64,
    /// Flushes after entries were made, on processors that may report a walk from before as a fault.
    #[serde(default)]
    pub after_making: u64,
    /// Grace periods.
    pub barriers: u64,
}

/// How folding and unfolding went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cycles {
    /// Folios that were folded, and unfolded again.
    pub cycles: u64,
    /// Rounds: grace periods, and flushes.
    pub rounds: u64,
    /// Map pages folded in all.
    pub folded: u64,
    /// Map pages unfolded in all.
    pub unfolded: u64,
    /// Nanoseconds.
    pub ns: u64,
    /// Looks of walkers meanwhile.
    pub looks: u64,
    /// Times that a folio had to wait for a round because a walker held a piece of it.
    pub busy: u64,
    /// Times that there was no memory for a folio.
    pub no_memory: u64,
    /// Frames that were not where they should be afterwards.
    pub lost_frames: i64,
}

/// Adjacent pages that are alike, with flags as `/proc/kpageflags` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageRun(
    /// First page.
    pub u64,
    /// Pages.
    pub u64,
    /// Flags.
    pub u64,
);

impl Report {
    /// Bytes of all page metadata, as the page tables have it: every table, and their page tables.
    pub fn metadata(&self) -> u64 {
        self.tables.iter().map(|table| table.measured).sum::<u64>() + self.page_tables
    }
}

impl FrameCounts {
    /// Frames that are in none of the places where they may be; none, if all is well.
    pub fn lost(&self) -> i64 {
        (self.boot + self.taken) as i64 - (self.reserve + self.tables + self.other) as i64
    }
}

/// A line that is no message.
#[derive(Debug)]
pub struct LineError(serde_json::Error);

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a message: {}", self.0)
    }
}
impl core::error::Error for LineError {}

/// A message as a line, with its end.
///
/// # Errors
/// No memory for it.
pub fn to_line<T: Serialize>(message: &T) -> Result<String, LineError> {
    let mut line = serde_json::to_string(message).map_err(LineError)?;
    line.push('\n');
    Ok(line)
}

/// The message that a line is.
///
/// # Errors
/// It is none.
pub fn from_line<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, LineError> {
    serde_json::from_str(line).map_err(LineError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn messages_come_back_from_their_lines() {
        let answers = [
            Answer::Done,
            Answer::Pages(vec![PageRun(0, 512, 1 << 10)]),
            Answer::Report(Report::default()),
            Answer::Refused("no such device".into()),
        ];
        for answer in answers {
            let line = to_line(&answer).unwrap();
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
            assert_eq!(from_line::<Answer>(&line).unwrap(), answer);
        }
        for request in
            [Request::Status, Request::Free(500), Request::RestartDriver(Restart { device: 1, forget: true })]
        {
            assert_eq!(from_line::<Request>(&to_line(&request).unwrap()).unwrap(), request);
        }
        assert!(from_line::<Request>("\"dance\"").unwrap_err().to_string().starts_with("not a message"));
    }
}
