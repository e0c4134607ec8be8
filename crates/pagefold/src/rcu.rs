//! The kind of grace periods that an engine gets here.

use anyhow::{Context, Result};
use clap::ValueEnum;
use pagefold_engine::platform::Barrier;
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

/// What grace periods are made of. One type, so that what an engine is part of is compiled once and not once for each; asking
/// which it is costs a section a predicted branch. (The benchmarks name the barrier that they measure.)
#[derive(Clone, Copy)]
pub enum Rcu {
    Membarrier(Membarrier),
    Fences(YieldingFences),
}

impl Rcu {
    pub const fn name(self) -> &'static str {
        match self {
            Rcu::Membarrier(_) => "membarrier",
            Rcu::Fences(_) => "fences",
        }
    }
}

// SAFETY: all barriers of one platform are copies of one value, so both halves are those of the same kind.
unsafe impl Barrier for Rcu {
    #[inline]
    fn light(&self) {
        match self {
            Rcu::Membarrier(barrier) => barrier.light(),
            Rcu::Fences(barrier) => barrier.light(),
        }
    }
    fn heavy(&self) {
        match self {
            Rcu::Membarrier(barrier) => barrier.heavy(),
            Rcu::Fences(barrier) => barrier.heavy(),
        }
    }
    fn wait(&self, turn: u32) {
        match self {
            Rcu::Membarrier(barrier) => barrier.wait(turn),
            Rcu::Fences(barrier) => barrier.wait(turn),
        }
    }
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
