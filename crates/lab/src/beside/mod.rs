//! Guests side by side: the same steps, over the same QEMU and its machine protocol, whatever kernel it is.
//!
//! A [`MeasuredGuest`] is anything that QEMU boots with a virtio-mem device. [`play`] takes it through [`Step`]s, and each resize
//! becomes a [`ResizeOutcome`]; [`table`] prints rows of any guests as one Markdown table.

mod huge;
mod linux;
mod pagefold;
mod table;

use std::time::Duration;

use anyhow::Result;
use pagefold_qemu::Qemu;
pub use pagefold_qemu::ResizeFigures;

pub use huge::{HugePages, allocate, huge_table};
pub use linux::{Linux, LinuxGuest};
pub use pagefold::{Pagefold, PagefoldGuest};
pub use table::table;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The device is asked for so many bytes plugged.
    Resize(u64),
    /// One page of each memory block that is plugged becomes unmovable.
    Pin,
    /// And movable, or free, again.
    Unpin,
}

/// What a guest says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Bytes of page descriptors; of a guest that measures them, with all other page metadata.
    pub descriptors: u64,
    /// Where that comes from.
    pub source: Source,
    /// Bytes that the guest's allocator manages.
    pub total: u64,
    /// Bytes of it that are free.
    pub free: u64,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The guest counts it.
    Counted,
    /// It follows from other figures of the guest.
    Computed,
    /// The guest's page tables say so.
    Measured,
}

/// Whether descriptors of huge pages' tails are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailSaving {
    /// The kernel has no HVO: no `/proc/sys/vm/hugetlb_optimize_vmemmap`.
    Missing,
    /// It is off.
    Off,
    /// It is on.
    On,
    /// The guest folds them, and has no descriptors of what is free.
    Folds,
}

/// A guest with a virtio-mem device.
pub trait MeasuredGuest {
    /// What a table calls it.
    fn name(&self) -> String;

    /// The QEMU that it runs in, with instructions counted.
    fn qemu(&mut self) -> &mut Qemu;

    /// The guest rests with so many bytes plugged in its device: what it says itself.
    ///
    /// # Errors
    /// The guest does not answer, or it is not done with these bytes.
    fn account(&mut self, plugged: u64) -> Result<Account>;

    /// Pins a page in each plugged block; returns how many.
    ///
    /// # Errors
    /// It cannot.
    fn pin(&mut self) -> Result<u64>;

    /// Lets go of them.
    ///
    /// # Errors
    /// The guest does not answer.
    fn unpin(&mut self) -> Result<()>;

    /// Allocates so many huge pages of 2 MiB and keeps them; returns how many it has.
    ///
    /// # Errors
    /// It does not answer.
    fn huge_pages(&mut self, count: u64) -> Result<u64>;

    /// Whether it gives back descriptors of their tails.
    ///
    /// # Errors
    /// It does not answer.
    fn hvo(&mut self) -> Result<TailSaving>;

    /// Why the guest has ended, if it has by itself, in its own words: a panic.
    fn end(&mut self) -> Option<String>;
}

/// What came of a resize.
#[derive(Clone, Debug)]
pub struct ResizeOutcome {
    /// The guest.
    pub guest: String,
    /// Bytes plugged before.
    pub from: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// Pages pinned at the time.
    pub pins: u64,
    /// What the device and the plugin say, unless the guest ended before it came to rest.
    pub settled: Option<ResizeFigures>,
    /// What the guest says; or why it ended.
    pub account: Result<Account, String>,
}

/// Takes a guest through steps on its device `vmem0`. Each must come to rest within this time. A guest that ends by itself
/// has a last row that says so.
///
/// # Errors
/// A step fails, or the guest does not come to rest. That it plugs or unplugs less than it was asked for is no error.
pub fn play(guest: &mut dyn MeasuredGuest, steps: &[Step], within: Duration) -> Result<Vec<ResizeOutcome>> {
    let mut rows = Vec::new();
    let mut pins = 0;
    for &step in steps {
        match step {
            Step::Pin => pins = guest.pin()?,
            Step::Unpin => {
                guest.unpin()?;
                pins = 0;
            }
            Step::Resize(asked) => {
                let row = resize(guest, asked, pins, within)?;
                let has_ended = row.account.is_err();
                rows.push(row);
                if has_ended {
                    break;
                }
            }
        }
    }
    Ok(rows)
}

fn resize(guest: &mut dyn MeasuredGuest, asked: u64, pins: u64, within: Duration) -> Result<ResizeOutcome> {
    let from = guest.qemu().qmp().plugged(0)?;
    let (settled, account) = match guest.qemu().resize_and_settle(0, asked, within) {
        Ok(settled) => (Some(settled), guest.account(settled.plugged)),
        Err(error) => (None, Err(error.into())),
    };
    let account = match account {
        Ok(account) => Ok(account),
        Err(error) => match guest.end() {
            Some(reason) => Err(reason),
            None => {
                return Err(error.context(format!("{}\n{}", guest.name(), guest.qemu().console().tail())));
            }
        },
    };
    Ok(ResizeOutcome { guest: guest.name(), from, asked, pins, settled, account })
}
