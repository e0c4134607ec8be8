//! What lies in a memory block, as data.

use pagefold_machine::PageState;
use pagefold_machine::host::OnlineState;
use pagefold_machine::kernel::Has;
use serde::{Serialize, Serializer};

/// The version of this form.
pub const SCHEMA: u32 = 1;

/// Why a memory block can or cannot be taken offline.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold report --block"))]
pub struct BlockAnswer {
    /// Version of this form.
    pub schema: u32,
    /// Which machine.
    pub origin: String,
    /// The block's number.
    pub block: u64,
    /// Bytes in a block.
    pub size: u64,
    /// Whether the machine says so; else it is assumed.
    pub size_known: bool,
    /// Its physical address.
    pub address: u64,
    /// Its state; absent where nothing tells.
    pub state: Option<OnlineState>,
    /// Its zone, if it is in one and the kernel tells.
    pub zone: Option<String>,
    /// Its node, if the kernel tells.
    pub node: Option<u32>,
    /// Whether it can be taken offline, as far as it can be told.
    pub can: Has,
    /// Why, in sentences.
    pub reasons: Vec<String>,
    /// What its pages are used for (counted); empty where page flags cannot be read.
    pub states: Vec<StateInBlock>,
    /// Pages that cannot move, the longest ranges first.
    pub stuck: Vec<Stuck>,
    /// How many such ranges there are in all.
    pub stuck_ranges: u64,
    /// Processes that have pages of it mapped, the most pages first.
    pub mapped: Vec<OwnerRow>,
    /// Who allocated the pages that cannot move, as `page_owner` tells.
    pub allocated: Vec<OwnerRow>,
    /// Pages of anonymous memory, page cache and huge pages that no process has mapped, or none that could be looked at.
    pub unmapped: Option<u64>,
    /// What could not be found out, and why.
    pub not_found: Vec<String>,
    /// Whether something is missing that this kernel has (exit code 3).
    pub partial: bool,
}

/// Pages in one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StateInBlock {
    /// The state.
    #[serde(serialize_with = "name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub state: PageState,
    /// How many.
    pub pages: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether such pages can move, or need not.
    pub can_move: Has,
}

fn name<S: Serializer>(state: &PageState, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(state.name())
}

/// A range of pages that cannot move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stuck {
    /// The first one's number.
    pub pfn: u64,
    /// How many.
    pub pages: u64,
    /// What they are used for.
    pub state: &'static str,
}

/// Somebody who owns pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OwnerRow {
    /// A process, or who allocated.
    pub owner: String,
    /// The file or area that is mapped, or the function that allocated.
    pub what: String,
    /// Pages of the block.
    pub pages: u64,
    /// Bytes of memory.
    pub memory: u64,
}
