//! What the terminal can show.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use pagefold_picture::terminal::{Colors, Terminal};

use crate::lines::is_utf8;

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal that has them, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never: letters
    Never,
}

/// The terminal that stdout goes to; 80 characters wide if it is none.
pub fn terminal(when: ColorWhen) -> Terminal {
    let width = terminal_size::terminal_size_of(io::stdout()).map_or(80, |(width, _)| width.0);
    Terminal { width: width.max(20), colors: colors(when), is_utf8: is_utf8() }
}

/// The colours that stdout can show.
fn colors(when: ColorWhen) -> Colors {
    let wanted = match when {
        ColorWhen::Never => false,
        ColorWhen::Always => true,
        ColorWhen::Auto => {
            let forced = anstyle_query::clicolor_force();
            let able = io::stdout().is_terminal() && anstyle_query::term_supports_ansi_color();
            !anstyle_query::no_color() && (forced || able && anstyle_query::clicolor() != Some(false))
        }
    };
    match wanted {
        false => Colors::None,
        // Colours are drawn in half blocks, which not all terminals show.
        true if !is_utf8() => Colors::None,
        true if anstyle_query::truecolor() => Colors::All,
        true => Colors::Fixed,
    }
}
