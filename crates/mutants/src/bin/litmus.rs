//! Runs every litmus test and compares what comes out with what the test says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use pagefold_mutants::litmus;

/// Runs the litmus tests in the architectures' memory models, with herd7.
///
/// Exit code 0 if all come out as they say, 1 if one does not, 3 if herd7 is not there (crates/model/litmus/setup brings
/// it).
#[derive(Parser)]
struct Arguments {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// The workspace.
    #[arg(long, default_value_os_t = pagefold_mutants::workspace())]
    root: PathBuf,
    /// What herd7 was unpacked into, beside its C library.
    #[arg(long)]
    herd: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let herd = arguments.herd.unwrap_or_else(|| arguments.root.join(litmus::HERD));
    let tests = litmus::read(&arguments.root.join(litmus::FOLDER))?;
    if litmus::herd(&herd).is_none() {
        println!("left out: {} litmus tests: no herd7 in {}", tests.len(), herd.display());
        return Ok(ExitCode::from(3));
    }
    let (mut ran, mut failed) = (0, 0);
    for test in tests {
        if arguments.filter.as_ref().is_some_and(|filter| !test.name.contains(filter)) {
            continue;
        }
        let Some(command) = litmus::herd(&herd) else { break };
        ran += 1;
        match litmus::run(command, &test)? {
            None => println!("{:<50} {:?}", test.name, test.expected),
            Some(why) => {
                failed += 1;
                println!("{:<50} FAILED: {why}", test.name);
            }
        }
    }
    println!("{} litmus tests as expected, {failed} not", ran - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
