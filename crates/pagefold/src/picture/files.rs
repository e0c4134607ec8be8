//! Pictures in files.

use std::io::Write;
use std::path::Path;

use anyhow::Result;

use pagefold_picture::draw::draw;
use pagefold_picture::png::{SCALE, png};
use pagefold_picture::scene::Scene;
use pagefold_picture::svg::svg;
use pagefold_picture::{Grid, GridSize, Subject};

use crate::deliver;
use crate::exit::usage;
use crate::place::{self, Place};
use crate::stderr::say;

/// The size of a grid on paper.
pub const PAPER: GridSize = GridSize { columns: 128, rows: 160 };

/// Which files to write.
#[derive(Debug)]
pub struct PictureFiles {
    svg: Option<PictureTarget>,
    png: Option<PictureTarget>,
}

/// Where a picture goes.
#[derive(Debug)]
enum PictureTarget {
    Stdout,
    Place(Place),
}

impl PictureTarget {
    fn new(path: &Path) -> Result<Self> {
        if path == Path::new("-") { Ok(Self::Stdout) } else { Place::public(path).map(Self::Place) }
    }
}

impl PictureFiles {
    /// Looks at the places, before there is anything to write.
    ///
    /// # Errors
    /// A place that cannot be written, or one place for both pictures.
    pub fn new(svg: Option<&Path>, png: Option<&Path>) -> Result<PictureFiles> {
        if let (Some(svg), Some(png)) = (svg, png)
            && (svg == png || place::is_one_file(svg, png))
        {
            let where_to = if svg == Path::new("-") { "stdout".into() } else { svg.display().to_string() };
            return Err(usage(format!("only one picture can go to {where_to}: give the other a name")));
        }
        Ok(PictureFiles {
            svg: svg.map(PictureTarget::new).transpose()?,
            png: png.map(PictureTarget::new).transpose()?,
        })
    }

    /// Whether any is wanted.
    pub fn is_file(&self) -> bool {
        self.svg.is_some() || self.png.is_some()
    }

    /// Whether one of them is to go to stdout, as `-`.
    pub fn is_stdout(&self) -> bool {
        [&self.svg, &self.png].into_iter().flatten().any(|to| matches!(to, PictureTarget::Stdout))
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

    fn one(&self, to: &PictureTarget, bytes: &[u8], scene: &Scene, scale: u32) -> Result<()> {
        let PictureTarget::Place(place) = to else { return deliver::to(None, bytes) };
        place.write_all(bytes)?;
        let (width, height) = (scene.width * scale, scene.height * scale);
        let line = format!("{}: {width} x {height} pixels", place.path().display());
        match self.is_stdout() {
            true => say(line),
            false => writeln!(deliver::stdout(), "{line}")?,
        }
        Ok(())
    }
}
