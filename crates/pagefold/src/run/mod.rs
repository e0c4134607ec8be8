//! `pagefold run`: memory that grows and shrinks under walkers, through a real driver and device.

mod args;
mod barrier;
mod contents;
mod picture;
mod plan;
mod play;
pub mod report;
mod sample;
mod scenario;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pagefold_picture::amount::Bytes;

pub use self::args::RunArgs;
use self::plan::RunPlan;
use self::scenario::{SHIPPED, ScenarioMistake};
use crate::cost::available;
use crate::deliver;
use crate::exit::usage;
use crate::place::Place;
use crate::rcu::{self, RcuArg};

pub fn run(args: &RunArgs) -> Result<ExitCode> {
    if args.list {
        return list().map(|()| ExitCode::SUCCESS);
    }
    if let Some(name) = &args.show {
        let Some(text) = shipped(name) else { return Err(usage(unknown(name))) };
        deliver::stdout().write_all(text.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let svg = args.svg.as_deref().map(Place::public).transpose()?;
    // A mistake in the scenario is a mistake in what was asked for, as one on the command line is.
    let mut plan = find(args.scenario.as_deref()).map_err(|error| usage(format!("{error:#}")))?;
    plan.seed = args.seed.unwrap_or(plan.seed);
    let (touched, spare) = (plan.touched(), available().unwrap_or(u64::MAX));
    if touched > spare / 10 * 9 {
        bail!(
            "the scenario touches up to {}, and this machine can spare {}: make those workloads smaller, or leave out \
             'touch'",
            Bytes(touched),
            Bytes(spare)
        );
    }
    let report = play::play(&plan, rcu::choose(RcuArg::Auto)?)?;
    if let Some(place) = &svg {
        place.write_all(picture::draw(&report).as_bytes())?;
    }
    deliver::result(&report, args.json, |to| report.print(to))?;
    Ok(if report.is_fine() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| *text)
}

fn unknown(name: &str) -> String {
    let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
    format!("no scenario '{name}' comes with the command; there are {}", names.join(", "))
}

/// The scenario of that name, or in that file; the default if nothing is said.
fn find(scenario: Option<&str>) -> Result<RunPlan> {
    let (default, text) = SHIPPED[0];
    let Some(name) = scenario else { return Ok(RunPlan::read(default, text)?) };
    if let Some(text) = shipped(name) {
        return Ok(RunPlan::read(name, text)?);
    }
    match fs::read_to_string(name) {
        Ok(text) => Ok(RunPlan::read(name, &text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !name.contains(['/', '.']) => {
            bail!(unknown(name))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {name}")),
    }
}

fn list() -> Result<()> {
    let mut stdout = deliver::stdout();
    for (name, text) in SHIPPED {
        let about = RunPlan::read(name, text).map(|plan| plan.about);
        writeln!(
            stdout,
            "{name:<12} {}",
            about.unwrap_or_else(|mistake: ScenarioMistake| mistake.to_string())
        )?;
    }
    Ok(())
}
