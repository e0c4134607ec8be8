//! `pagefold completions` and `pagefold man`: what a package ships beside the program.

mod args;

use std::fs;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

pub use self::args::{CompletionsArgs, ManArgs};
use crate::args::Args;
use crate::deliver;

pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "pagefold", &mut script);
    deliver::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &ManArgs) -> Result<ExitCode> {
    let command = Args::command().disable_help_subcommand(true);
    match &args.output {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            deliver::stdout().write_all(&page)?;
        }
        Some(dir) => fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command, dir))
            .with_context(|| format!("cannot write to {}", dir.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}
