//! `pagefold completions` and `pagefold man`: what a package ships beside the program.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{args, deliver};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold completions bash > /usr/share/bash-completion/completions/pagefold
  pagefold completions zsh > /usr/share/zsh/site-functions/_pagefold
  pagefold completions fish > /usr/share/fish/vendor_completions.d/pagefold.fish
")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Print the man page, or write all of them to a directory
///
/// One page for the program and one for each subcommand.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold man | man -l -
  pagefold man --output /usr/share/man/man1
")]
pub struct ManArgs {
    /// Write pagefold.1 and a page for each subcommand there; the directory is made
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::Args::command(), "pagefold", &mut script);
    deliver::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &ManArgs) -> Result<ExitCode> {
    let command = args::Args::command().disable_help_subcommand(true);
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
