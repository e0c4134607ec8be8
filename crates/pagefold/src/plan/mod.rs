//! `pagefold plan`: what would it save, and can this guest grow?

mod args;
mod base;
mod guest;
mod hotplug;
mod hotplug_print;
mod model;
mod online;
mod pool;
mod print;
mod ways;
mod whatif;

use std::process::ExitCode;

use anyhow::Result;

pub use self::args::PlanArgs;
use self::model::Plan;
use crate::deliver;
use crate::exit;
use crate::lines::Lines;
use crate::report::model::Interval;

pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let mut stdout = deliver::stdout();
    let units = args.units.units();
    let (is_partial, is_no) = match args.hotplug {
        Some(asked) => {
            let guest = guest::PlannedGuest::of(args)?;
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
