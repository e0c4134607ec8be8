//! The arguments of every command that draws physical memory.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use pagefold_picture::CellOrder;
use pagefold_picture::terminal::Terminal;

use super::files::PictureFiles;
use super::terminal::{ColorWhen, terminal};

/// How addresses run through the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// Line by line, from left to right
    Linear,
    /// Along a Hilbert curve: near addresses lie near each other in all directions
    Hilbert,
}

/// How memory is drawn, and where the picture goes.
#[derive(Debug, Args)]
pub struct PictureArgs {
    /// How addresses run through the picture
    #[arg(long, value_enum, default_value_t = LayoutArg::Linear)]
    layout: LayoutArg,

    /// Write the picture as an SVG file (- for stdout, and nothing else there)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,

    /// Write the picture as a PNG file (- for stdout, and nothing else there)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    png: Option<PathBuf>,

    /// When to use colours on the terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorWhen::Auto, help_heading = "Output")]
    color: ColorWhen,
}

impl PictureArgs {
    /// Where cells lie.
    pub fn order(&self) -> CellOrder {
        match self.layout {
            LayoutArg::Linear => CellOrder::Linear,
            LayoutArg::Hilbert => CellOrder::Hilbert,
        }
    }

    /// The terminal that stdout goes to, in the colours that are wanted.
    pub fn terminal(&self) -> Terminal {
        terminal(self.color)
    }

    /// The files that are wanted.
    ///
    /// # Errors
    /// As of [`PictureFiles::new`].
    pub fn files(&self) -> Result<PictureFiles> {
        PictureFiles::new(self.svg.as_deref(), self.png.as_deref())
    }
}
