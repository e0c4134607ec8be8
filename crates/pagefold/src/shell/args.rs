//! The arguments of `pagefold completions` and `pagefold man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

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
