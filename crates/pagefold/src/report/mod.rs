//! `pagefold report`: what page metadata costs a machine, where, and what would save it.

mod accounts;
mod answer;
mod args;
pub mod block;
mod checks;
mod columns;
mod costs;
mod excess;
mod folding;
mod limits;
pub mod memdesc;
pub mod model;
mod print;
mod rows;
mod went;

use std::process::ExitCode;

use anyhow::{Result, bail};

pub use self::accounts::{Accounts, pools};
pub use self::args::ReportArgs;
pub use self::folding::folding;
use self::model::{How, HvoReport, MachineFacts, Report, SCHEMA, percent};
use crate::deliver;
use crate::exit;
use crate::lines::Lines;
use crate::survey::Survey;

pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    if let Some(block) = args.block {
        return block::run(args, block);
    }
    let report = Report::of(&args.survey.survey()?);
    let mut stdout = deliver::stdout();
    if args.json {
        deliver::json(&report, &mut stdout)?;
    } else if !args.output.is_empty() {
        let Some(blocks) = &report.blocks else {
            bail!("{} has no memory blocks to list (--output)", report.machine.origin);
        };
        let units = args.units.units();
        columns::print(blocks, &args.output, args.blocks, units, &mut stdout)?;
    } else {
        print::print(&report, args.units.units(), args.blocks, &mut Lines::new(&mut stdout))?;
    }
    Ok(exit::code(report.partial, args.fail_over.is_some_and(|limit| report.share() > limit)))
}

impl Report {
    /// Everything a survey tells.
    pub fn of(survey: &Survey) -> Self {
        let host = &survey.host;
        let accounts = Accounts::of(survey);
        let offline = rows::offline(survey, &accounts);
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            machine: MachineFacts {
                origin: survey.origin.clone(),
                kernel: host.kernel.clone(),
                arch: host.arch.clone(),
                page_size: host.page_size.bytes,
                page_size_from: host.page_size.from,
                descriptor_size: accounts.shape.descriptor,
                descriptor_size_known: host.structs.page.is_some(),
                scanned: survey.pages.is_some(),
            },
            memory: accounts.memory.clone(),
            descriptors: accounts.descriptors.clone(),
            descriptors_excess: accounts.excess.clone(),
            descriptors_computed: accounts.computed.clone(),
            descriptors_counted: accounts.counted.clone(),
            places: rows::places(host, &accounts),
            memory_went: went::went(survey, &accounts),
            nodes: rows::nodes(host, &accounts),
            zones: rows::zones(host, &accounts),
            blocks: rows::blocks(survey, &accounts),
            huge_pages: rows::huge_pages(survey, &accounts),
            hvo: HvoReport {
                state: host.hvo,
                boot_option: host.boot.hvo,
                saved: accounts.saved.clone(),
                left: accounts.left(),
            },
            states: rows::states(survey),
            folios: rows::folios(survey),
            offline,
            folding: folding(survey, &accounts),
            other_costs: costs::other_costs(host, &accounts),
            checks: checks::checks(survey, &accounts),
            gaps: host.gaps.clone(),
            partial: host.is_partial(),
        }
    }

    /// Descriptors in percent of memory: the least that they can be, where they are only known within limits.
    pub fn share(&self) -> f64 {
        let least = match self.descriptors.how {
            How::Computed => self.descriptors_computed.min,
            _ => self.descriptors.bytes,
        };
        percent(least, self.memory.bytes)
    }
}
