//! `pagefold plan`: what would it save, and can this guest grow?

mod args;
mod base;
mod hotplug;
mod hotplug_print;
mod online;
mod pool;
mod print;
mod ways;
mod whatif;

use std::process::ExitCode;

use anyhow::Result;
use pagefold_machine::host::Pool;
use serde::Serialize;

pub use self::args::PlanArgs;
use self::whatif::{BlockSize, Scenario};
use crate::deliver;
use crate::exit;
use crate::lines::Lines;
use crate::report::model::{Figure, Interval};

/// What descriptors would cost.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub schema: u32,
    /// Which machine.
    pub origin: String,
    /// Bytes of memory.
    pub memory: u64,
    /// What descriptors cost now; absent for sizes alone.
    pub now: Option<Figure>,
    pub pools: Vec<Pool>,
    /// Folios in use, outside of the pools.
    pub folios: Interval,
    pub scenarios: Vec<Scenario>,
    pub block_sizes: Vec<BlockSize>,
    pub partial: bool,
}

pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let mut stdout = deliver::stdout();
    let units = args.units.units();
    let (is_partial, is_no) = match args.hotplug {
        Some(asked) => {
            let guest = hotplug::Guest::of(args)?;
            let answer = guest.answer(asked);
            if args.json {
                deliver::json(&answer, &mut stdout)?;
            } else {
                hotplug_print::print(&answer, units, &mut Lines::new(&mut stdout))?;
            }
            (guest.partial, !answer.works)
        }
        None => {
            let base = base::base(args)?;
            let plan = Plan {
                schema: 1,
                origin: base.origin.clone(),
                memory: base.memory,
                now: base.now.clone(),
                pools: base.pools.clone(),
                folios: Interval::computed(base.folios.least, base.folios.most, base.folios.from),
                scenarios: whatif::scenarios(&base),
                block_sizes: whatif::block_sizes(&base),
                partial: base.partial,
            };
            if args.json {
                deliver::json(&plan, &mut stdout)?;
            } else {
                print::plan(&plan, units, &mut Lines::new(&mut stdout))?;
            }
            (base.partial, false)
        }
    };
    Ok(exit::code(is_partial, is_no))
}
