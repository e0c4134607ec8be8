//! `pagefold plan`: what would it save, and can this guest grow?

mod args;
mod base;
pub mod device;
mod device_print;
mod guest;
pub mod hotplug;
mod hotplug_print;
mod kernel;
mod model;
mod online;
mod pool;
mod print;
mod ways;
mod whatif;

use std::process::ExitCode;

use anyhow::Result;

pub use self::args::PlanArgs;
use self::kernel::KernelReport;
pub use self::model::Plan;
use crate::deliver;
use crate::exit;
use crate::lines::Lines;
use crate::report::model::Interval;

pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let units = args.units.units();
    if let Some(device) = &args.device {
        let (answer, is_partial) = device::answer(args, device)?;
        let print = |to: &mut _| device_print::print(&answer, units, &mut Lines::new(to));
        deliver::result(&answer, args.json, print)?;
        return Ok(exit::code(is_partial, !answer.works));
    }
    let (is_partial, is_no) = match args.hotplug {
        Some(asked) => {
            let guest = guest::PlannedGuest::of(args)?;
            let answer = guest.answer(asked);
            let print = |to: &mut _| hotplug_print::print(&answer, units, &mut Lines::new(to));
            deliver::result(&answer, args.json, print)?;
            (guest.partial, !answer.works)
        }
        None => {
            let base = base::base(args)?;
            let plan = Plan {
                schema: 1,
                origin: base.origin.clone(),
                kernel: base.planned.is_asked.then(|| KernelReport::of(&base.planned.kernel)),
                memory: base.memory,
                now: base.now.clone(),
                pools: base.pools.clone(),
                folios: Interval::computed(base.folios.least, base.folios.most, base.folios.from),
                scenarios: whatif::scenarios(&base),
                block_sizes: whatif::block_sizes(&base),
                partial: base.partial,
            };
            let print = |to: &mut _| print::plan(&plan, units, &mut Lines::new(to));
            deliver::result(&plan, args.json, print)?;
            (base.partial, false)
        }
    };
    Ok(exit::code(is_partial, is_no))
}
