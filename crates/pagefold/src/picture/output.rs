//! Pictures in files.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};

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

    /// Whether one of them is to go to stdout, as `-`.
    pub fn is_stdout(&self) -> bool {
        [self.svg, self.png].contains(&Some(Path::new("-")))
    }

    /// Draws `grid` and writes the files. Names them on stdout, or on stderr if a picture goes there.
    ///
    /// # Errors
    /// A place that cannot be written, or both pictures for stdout.
    pub fn write(&self, subject: &Subject<'_>, grid: &Grid) -> Result<()> {
        if self.svg == self.png && self.is_stdout() {
            bail!("only one picture can go to stdout: give the other a name");
        }
        let scene = draw(subject, grid);
        if let Some(path) = self.svg {
            self.one(path, svg(&scene).as_bytes(), &scene, 1)?;
        }
        if let Some(path) = self.png {
            let mut bytes = Vec::new();
            png(&scene, &mut bytes)?;
            self.one(path, &bytes, &scene, SCALE)?;
        }
        Ok(())
    }

    fn one(&self, path: &Path, bytes: &[u8], scene: &Scene, scale: u32) -> Result<()> {
        if path == Path::new("-") {
            return deliver::to(None, bytes);
        }
        deliver::file(path, bytes)?;
        let (width, height) = (scene.width * scale, scene.height * scale);
        let line = format!("{}: {width} x {height} pixels", path.display());
        match self.is_stdout() {
            true => crate::say(line),
            false => writeln!(io::stdout(), "{line}")?,
        }
        Ok(())
    }
}
