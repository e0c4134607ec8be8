//! The `pagefold` command.

mod args;
mod boot;
mod cost;
mod covered;
mod deliver;
mod descriptors;
mod device;
mod diff;
mod exit;
mod explain;
mod export;
mod input;
mod interrupt;
mod lines;
mod map;
mod picture;
mod place;
mod plan;
mod rcu;
mod replay;
mod report;
mod run;
mod shell;
mod shortage;
mod size;
mod snapshot;
mod source;
mod stderr;
mod survey;
mod table;
mod tiles;
mod tty;
mod walkers;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::stderr::say;

/// Exit codes: 0 fine, 1 failure (or a violation, or numbers that disagree), 2 usage (clap's); and those of [`exit`] and
/// [`interrupt`].
fn main() -> ExitCode {
    shortage::end_without_a_crash();
    let args = Args::parse();
    interrupt::outlive_large_files();
    let done = run(&args.command).and_then(|code| deliver::finish().map(|()| code));
    let code = done.unwrap_or_else(|error| {
        say(format_args!("{error:#}"));
        exit::of_error(&error)
    });
    interrupt::code().unwrap_or(code)
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    if !matches!(command, Command::Replay(_) | Command::Run(_) | Command::Boot(_)) {
        shortage::keep_to_the_cgroup();
    }
    match command {
        Command::Report(args) => report::run(args),
        Command::Export(args) => export::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Map(args) => map::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Run(args) => run::run(args),
        Command::Boot(args) => boot::run(args),
        Command::Device(args) => device::run(args),
        Command::Snapshot(args) => snapshot::run(args).map(|()| ExitCode::SUCCESS),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    }
}
