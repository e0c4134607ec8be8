//! The result of `pagefold plan` without a question.

use pagefold_machine::host::Pool;
use serde::Serialize;

use super::kernel::KernelReport;
use super::whatif::{Alternative, BlockSize};
use crate::report::model::{Figure, Interval};

/// What descriptors would cost.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "pagefold plan"))]
pub struct Plan {
    pub schema: u32,
    /// Which machine.
    pub origin: String,
    /// The kernel that was asked for; absent if it is the machine's own.
    pub kernel: Option<KernelReport>,
    /// Bytes of memory.
    pub memory: u64,
    /// What descriptors cost now; absent for sizes alone.
    pub now: Option<Figure>,
    pub pools: Vec<Pool>,
    /// Folios in use, outside of the pools.
    pub folios: Interval,
    pub scenarios: Vec<Alternative>,
    pub block_sizes: Vec<BlockSize>,
    pub partial: bool,
}
