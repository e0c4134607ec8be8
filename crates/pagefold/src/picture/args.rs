//! The arguments of every command that draws physical memory.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::layout::Layout;
use super::output::Output;
use super::terminal::ColorWhen;

/// How memory is drawn, and where the picture goes.
#[derive(Debug, Args)]
pub struct PictureArgs {
    /// How addresses run through the picture
    #[arg(long, value_enum, default_value_t = Layout::Linear)]
    pub layout: Layout,

    /// Write the picture as an SVG file (- for stdout, and nothing else there)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub svg: Option<PathBuf>,

    /// Write the picture as a PNG file (- for stdout, and nothing else there)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub png: Option<PathBuf>,

    /// When to use colours on the terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorWhen::Auto, help_heading = "Output")]
    pub color: ColorWhen,
}

impl PictureArgs {
    /// The files that are wanted.
    ///
    /// # Errors
    /// As of [`Output::new`].
    pub fn output(&self) -> Result<Output> {
        Output::new(self.svg.as_deref(), self.png.as_deref())
    }
}
