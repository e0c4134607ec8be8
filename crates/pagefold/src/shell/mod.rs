//! `pagefold completions` and `pagefold man`: what a package ships beside the program.

mod args;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

pub use self::args::{CompletionsArgs, ManArgs};
use crate::args::Args;
use crate::deliver;
use crate::place::Place;

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
            Man::new(command).render(&mut page)?;
            deliver::stdout().write_all(&page)?;
        }
        Some(dir) => {
            let name = dir.display();
            if dir.exists() && !dir.is_dir() {
                bail!("{name} is not a directory: name one, and the pages are written into it");
            }
            fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {name}"))?;
            let mut command = command;
            command.build();
            write_pages(dir, command)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages of a command and of those below it: each page whole, or as it was.
fn write_pages(dir: &Path, command: Command) -> Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(dir, command.clone())?;
    }
    let page = Man::new(command);
    let mut text = Vec::new();
    page.render(&mut text)?;
    Place::public(&dir.join(page.get_filename()))?.write_all(&text)
}
