//! Pictures in files.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;

use super::Subject;
use super::draw::draw;
use super::grid::{Grid, Size};
use super::png::{SCALE, png};
use super::scene::Scene;
use super::svg::svg;
use crate::deliver;

/// The size of a grid on paper.
pub const PAPER: Size = Size { columns: 128, rows: 160 };

/// Which files to write.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    pub svg: Option<&'a Path>,
    pub png: Option<&'a Path>,
}

impl Output<'_> {
    /// Whether any is wanted.
    pub fn is_file(&self) -> bool {
        self.svg.is_some() || self.png.is_some()
    }

    /// Draws `grid`, writes the files and names them on stdout.
    pub fn write(&self, subject: &Subject<'_>, grid: &Grid) -> Result<()> {
        let scene = draw(subject, grid);
        let mut stdout = io::stdout().lock();
        if let Some(path) = self.svg {
            let text = svg(&scene);
            if path == Path::new("-") {
                stdout.write_all(text.as_bytes())?;
            } else {
                deliver::file(path, text.as_bytes())?;
                writeln!(stdout, "{}", line(path, &scene, 1))?;
            }
        }
        if let Some(path) = self.png {
            let mut bytes = Vec::new();
            png(&scene, &mut bytes)?;
            deliver::file(path, &bytes)?;
            let line = line(path, &scene, SCALE);
            // Not into the SVG that is on stdout.
            match self.svg == Some(Path::new("-")) {
                true => crate::say(line),
                false => writeln!(stdout, "{line}")?,
            }
        }
        Ok(())
    }
}

fn line(path: &Path, scene: &Scene, scale: u32) -> String {
    format!("{}: {} x {} pixels", path.display(), scene.width * scale, scene.height * scale)
}
