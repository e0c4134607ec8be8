//! Pictures in files.

use std::io::Write;
use std::path::Path;

use anyhow::Result;

use super::Subject;
use super::draw::draw;
use super::grid::{Grid, Size};
use super::png::{SCALE, png};
use super::scene::Scene;
use super::svg::svg;
use crate::deliver;
use crate::exit::usage;
use crate::place::Place;

/// The size of a grid on paper.
pub const PAPER: Size = Size { columns: 128, rows: 160 };

/// Which files to write.
#[derive(Debug)]
pub struct Output {
    svg: Option<To>,
    png: Option<To>,
}

/// Where a picture goes.
#[derive(Debug)]
enum To {
    Stdout,
    Place(Place),
}

impl To {
    fn new(path: &Path) -> Result<To> {
        if path == Path::new("-") { Ok(To::Stdout) } else { Place::public(path).map(To::Place) }
    }
}

impl Output {
    /// Looks at the places, before there is anything to write.
    ///
    /// # Errors
    /// A place that cannot be written, or one place for both pictures.
    pub fn new(svg: Option<&Path>, png: Option<&Path>) -> Result<Output> {
        if let (Some(svg), Some(png)) = (svg, png)
            && svg == png
        {
            let where_to = if svg == Path::new("-") { "stdout".into() } else { svg.display().to_string() };
            return Err(usage(format!("only one picture can go to {where_to}: give the other a name")));
        }
        Ok(Output { svg: svg.map(To::new).transpose()?, png: png.map(To::new).transpose()? })
    }

    /// Whether any is wanted.
    pub fn is_file(&self) -> bool {
        self.svg.is_some() || self.png.is_some()
    }

    /// Whether one of them is to go to stdout, as `-`.
    pub fn is_stdout(&self) -> bool {
        [&self.svg, &self.png].into_iter().flatten().any(|to| matches!(to, To::Stdout))
    }

    /// Draws `grid` and writes the files. Names them on stdout, or on stderr if a picture goes there.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub fn write(&self, subject: &Subject<'_>, grid: &Grid) -> Result<()> {
        let scene = draw(subject, grid);
        if let Some(to) = &self.svg {
            self.one(to, svg(&scene).as_bytes(), &scene, 1)?;
        }
        if let Some(to) = &self.png {
            let mut bytes = Vec::new();
            png(&scene, &mut bytes)?;
            self.one(to, &bytes, &scene, SCALE)?;
        }
        Ok(())
    }

    fn one(&self, to: &To, bytes: &[u8], scene: &Scene, scale: u32) -> Result<()> {
        let To::Place(place) = to else { return deliver::to(None, bytes) };
        place.write_all(bytes)?;
        let (width, height) = (scene.width * scale, scene.height * scale);
        let line = format!("{}: {width} x {height} pixels", place.path().display());
        match self.is_stdout() {
            true => crate::say(line),
            false => writeln!(deliver::stdout(), "{line}")?,
        }
        Ok(())
    }
}
