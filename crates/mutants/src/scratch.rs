//! A copy of the workspace to be changed at will, with a target directory of its own.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::list::Mutant;

/// How the copy is built: quickly, and again and again. Loom is built once, so it may take its time.
const PROFILE: &str = "

[profile.mutants]
inherits = \"release\"
opt-level = 1
lto = false
codegen-units = 16
debug = 0
incremental = true

[profile.mutants.package.\"*\"]
opt-level = 3
";

/// The name of that profile.
pub const PROFILE_NAME: &str = "mutants";

/// What is copied.
const FILES: [&str; 2] = ["Cargo.toml", "Cargo.lock"];
const FOLDERS: [&str; 2] = ["crates", "docs"];

/// A copy of the workspace.
#[derive(Debug)]
pub struct Scratch {
    source: PathBuf,
    root: PathBuf,
}

impl Scratch {
    /// Makes `root` a copy of the workspace `source`. What is the same already is not touched, so that it need not be
    /// built again; what a mutant has left behind is undone.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn new(source: &Path, root: &Path) -> Result<Self> {
        let mut wanted = BTreeSet::new();
        for folder in FOLDERS {
            files_below(source, Path::new(folder), &mut wanted)?;
        }
        for folder in FOLDERS {
            let mut there = BTreeSet::new();
            files_below(root, Path::new(folder), &mut there)?;
            for stale in there.difference(&wanted) {
                fs::remove_file(root.join(stale))?;
                // Cargo takes a directory without files for a package. One that has files stays: it cannot be removed.
                let folders = stale.ancestors().skip(1).filter(|folder| *folder != Path::new(""));
                folders.take_while(|folder| fs::remove_dir(root.join(folder)).is_ok()).for_each(drop);
            }
        }
        let scratch = Self { source: source.to_owned(), root: root.to_owned() };
        for file in wanted.iter().map(PathBuf::as_path).chain(FILES.iter().map(Path::new)) {
            let mut content = fs::read(source.join(file)).with_context(|| format!("{}", file.display()))?;
            if file == Path::new("Cargo.toml") {
                content.extend_from_slice(PROFILE.as_bytes());
            }
            scratch.write(file, &content)?;
        }
        Ok(scratch)
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What stands in `file` of the workspace that this is a copy of.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn original(&self, file: &Path) -> Result<String> {
        let path = self.source.join(file);
        fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
    }

    /// Gives `file` this content; leaves it alone if it has it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &Path, content: &[u8]) -> Result<()> {
        let path = self.root.join(file);
        match fs::read(&path) {
            Ok(now) if now == content => return Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{}", path.display()));
            }
            _ => {}
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| format!("{}", path.display()))
    }

    /// Changes the copy as `mutant` says, runs `then`, and undoes the change, whatever came of it. `None` if the mutant
    /// has no place.
    ///
    /// # Errors
    /// If a file cannot be read or written, or `then`'s.
    pub fn with<T>(&self, mutant: &Mutant, then: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let original = self.original(&mutant.file)?;
        let Ok(changed) = mutant.apply(&original) else { return Ok(None) };
        self.write(&mutant.file, changed.as_bytes())?;
        let done = then();
        self.write(&mutant.file, original.as_bytes())?;
        done.map(Some)
    }
}

/// All files below `folder` (from `root`), as paths from `root`.
fn files_below(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("{}", root.join(folder).display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != OsStr::new("target") {
            files_below(root, &path, files)?;
        } else if kind.is_file() {
            files.insert(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("Cargo.toml", "[workspace]"),
            ("Cargo.lock", ""),
            ("crates/a/src/lib.rs", "fn one() {}\n"),
            ("docs/guide.md", ""),
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn mutant(old: &str) -> Mutant {
        let text = format!(
            "subject = 's'\nfile = 'crates/a/src/lib.rs'\n[[mutant]]\nid = 'm'\nold = {old:?}\nnew = 'two'\n\
             breaks = 'b'\nequivalent = 'e'"
        );
        crate::list::parse(&text).unwrap().remove(0)
    }

    #[test]
    fn a_package_that_is_gone_leaves_no_folder_in_the_copy() {
        let (source, copy) = (workspace(), tempfile::tempdir().unwrap());
        let package = source.path().join("crates/gone");
        fs::create_dir_all(package.join("src")).unwrap();
        fs::write(package.join("src/lib.rs"), "").unwrap();
        Scratch::new(source.path(), copy.path()).unwrap();
        assert!(copy.path().join("crates/gone/src/lib.rs").exists());
        fs::remove_dir_all(&package).unwrap();
        Scratch::new(source.path(), copy.path()).unwrap();
        assert!(!copy.path().join("crates/gone").exists());
        assert!(copy.path().join("crates/a/src/lib.rs").exists());
    }

    #[test]
    fn a_change_is_made_in_the_copy_alone_and_undone() {
        let (source, copy) = (workspace(), tempfile::tempdir().unwrap());
        let scratch = Scratch::new(source.path(), copy.path()).unwrap();
        let read = |root: &Path| fs::read_to_string(root.join("crates/a/src/lib.rs")).unwrap();
        let seen = scratch.with(&mutant("one"), || Ok(read(copy.path()))).unwrap();
        assert_eq!(seen.as_deref(), Some("fn two() {}\n"));
        assert_eq!(
            (read(copy.path()), read(source.path())),
            ("fn one() {}\n".into(), "fn one() {}\n".into())
        );
        let failed = scratch.with(&mutant("one"), || -> Result<()> { anyhow::bail!("no") });
        assert!(failed.is_err());
        assert_eq!(read(copy.path()), "fn one() {}\n");
        assert!(scratch.with(&mutant("nowhere"), || Ok(())).unwrap().is_none());
    }

    #[test]
    fn what_an_interrupted_run_left_is_undone_and_what_is_gone_goes() {
        let (source, copy) = (workspace(), tempfile::tempdir().unwrap());
        Scratch::new(source.path(), copy.path()).unwrap();
        fs::write(copy.path().join("crates/a/src/lib.rs"), "mutated").unwrap();
        fs::write(copy.path().join("crates/a/src/old.rs"), "").unwrap();
        fs::create_dir_all(copy.path().join("target")).unwrap();
        fs::write(copy.path().join("target/kept"), "").unwrap();
        Scratch::new(source.path(), copy.path()).unwrap();
        assert_eq!(fs::read_to_string(copy.path().join("crates/a/src/lib.rs")).unwrap(), "fn one() {}\n");
        assert!(!copy.path().join("crates/a/src/old.rs").exists());
        assert!(copy.path().join("target/kept").exists());
    }
}
