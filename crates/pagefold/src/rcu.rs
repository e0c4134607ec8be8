//! The kind of grace periods that an engine gets here.

use anyhow::{Context, Result};
use clap::ValueEnum;
use pagefold_linux::{Membarrier, YieldingFences};

use crate::stderr::say;

/// How grace periods reach the walkers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RcuArg {
    /// membarrier where the kernel has it, else fences
    Auto,
    /// membarrier(2): walkers pay nothing
    Membarrier,
    /// Sequentially consistent fences on both sides: works everywhere
    Fences,
}

/// What grace periods are made of.
pub enum Rcu {
    Membarrier(Membarrier),
    Fences(YieldingFences),
}

/// What was asked for, or the best that is here.
///
/// # Errors
/// There is no membarrier, and nothing else will do.
pub fn choose(arg: RcuArg) -> Result<Rcu> {
    if arg == RcuArg::Fences {
        return Ok(Rcu::Fences(YieldingFences::default()));
    }
    match Membarrier::register() {
        Ok(barrier) => Ok(Rcu::Membarrier(barrier)),
        Err(error) if arg == RcuArg::Auto => {
            say(format_args!(
                "no membarrier here ({error}); grace periods use fences, which cost walkers a little"
            ));
            Ok(Rcu::Fences(YieldingFences::default()))
        }
        Err(error) => Err(error).context("no membarrier here; try --rcu fences"),
    }
}
