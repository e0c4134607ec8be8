//! Where the kernel is.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use pagefold_qemu::Arch;

/// What makes it: a script in the sources.
pub const BUILD: &str = "guest/build";

/// The environment's variable that names it.
pub const VARIABLE: &str = "PAGEFOLD_GUEST";

/// A guest's kernel, of which there is one for each of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelKind {
    /// For x86-64.
    #[default]
    X86_64,
    /// For arm64 with atomic instructions (FEAT_LSE).
    Aarch64,
    /// For arm64 without them, such as Cortex-A72.
    Aarch64LlSc,
}

impl KernelKind {
    /// The file's name.
    pub const fn name(self) -> &'static str {
        match self {
            KernelKind::X86_64 => "pagefold-guest",
            KernelKind::Aarch64 => "pagefold-guest-aarch64",
            KernelKind::Aarch64LlSc => "pagefold-guest-aarch64-llsc",
        }
    }
}

impl From<Arch> for KernelKind {
    /// The one for processors as they are made today.
    fn from(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => KernelKind::X86_64,
            Arch::Aarch64 => KernelKind::Aarch64,
        }
    }
}

/// The guest's kernel for x86-64: [`find_kernel_of`].
pub fn find_kernel() -> Option<PathBuf> {
    find_kernel_of(KernelKind::X86_64)
}

/// The guest's kernel, in the first of these places that has it:
///
/// 1. the file that [`VARIABLE`] names; then no other place counts,
/// 2. beside the program that runs,
/// 3. `guest/` in the directory `target` that the program was built in, where [`BUILD`] leaves it,
/// 4. `pagefold/` in the user's data directory and in the system's (`XDG_DATA_HOME`, `XDG_DATA_DIRS`), where
///    `guest/build --install` puts it.
pub fn find_kernel_of(kind: KernelKind) -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return Some(named.into()).filter(|path: &PathBuf| path.is_file());
    }
    let program = env::current_exe().ok();
    let places =
        near(program.as_deref()).into_iter().chain(data_directories().map(|dir| dir.join("pagefold")));
    places.map(|place| place.join(kind.name())).find(|path| path.is_file())
}

/// The directories that belong to a program.
fn near(program: Option<&Path>) -> Vec<PathBuf> {
    let Some(directory) = program.and_then(Path::parent) else { return Vec::new() };
    let target = directory.ancestors().find(|above| above.file_name() == Some(OsStr::new("target")));
    [Some(directory.to_owned()), target.map(|target| target.join("guest"))].into_iter().flatten().collect()
}

/// The user's data directory, then the system's, as the XDG base directory specification has them.
fn data_directories() -> impl Iterator<Item = PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let of_user = set("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/share")));
    let of_system = set("XDG_DATA_DIRS").unwrap_or_else(|| "/usr/local/share:/usr/share".into());
    let of_system: Vec<PathBuf> = env::split_paths(&of_system).collect();
    // Relative ones are invalid.
    of_user.into_iter().chain(of_system).filter(|directory| directory.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_built_here_finds_what_was_built_here() {
        let near = |program: &str| near(Some(Path::new(program)));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(near("/usr/bin/pagefold"), paths(&["/usr/bin"]));
        assert_eq!(
            near("/src/target/release/pagefold"),
            paths(&["/src/target/release", "/src/target/guest"])
        );
        assert_eq!(
            near("/src/target/x86_64-unknown-linux-gnu/release/deps/boot-1"),
            paths(&["/src/target/x86_64-unknown-linux-gnu/release/deps", "/src/target/guest"])
        );
    }
}
