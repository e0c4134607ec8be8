//! The kernels that there are, and their modules.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pagefold_qemu::Arch;

/// Where `crates/lab/setup` puts kernels: a directory for each, named after its release.
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/kernels");

/// Where `crates/lab/setup-qemu` puts newer ones.
const NEWER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/newer/kernels");

/// A kernel from Debian's archive, unpacked: `vmlinuz`, its virtio modules in `modules/`, and `modules.builtin`.
#[derive(Clone, Debug)]
pub struct Kernel {
    release: String,
    dir: PathBuf,
}

impl Kernel {
    /// All that `crates/lab/setup` has brought, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read. That it is not there is no error: there are none then.
    pub fn all() -> Result<Vec<Kernel>> {
        Self::in_dir(KERNELS)
    }

    /// All that `crates/lab/setup-qemu` has brought, for x86-64 and for arm64, oldest first: for the newer QEMU.
    ///
    /// # Errors
    /// As of [`all`](Self::all).
    pub fn newer() -> Result<Vec<Kernel>> {
        Self::in_dir(NEWER)
    }

    fn in_dir(dir: &str) -> Result<Vec<Kernel>> {
        if !Path::new(dir).exists() {
            return Ok(Vec::new());
        }
        let mut kernels = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read {dir}"))? {
            let entry = entry?;
            let release = entry.file_name().to_string_lossy().into_owned();
            if entry.path().join("vmlinuz").exists() {
                kernels.push(Kernel { release, dir: entry.path() });
            }
        }
        kernels.sort_by_key(Kernel::version);
        Ok(kernels)
    }

    /// What `uname -r` says.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers =
            self.release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// Whether it is one for arm64.
    pub fn is_arm64(&self) -> bool {
        self.release.ends_with("arm64")
    }

    /// The architecture that it is for.
    pub fn arch(&self) -> Arch {
        if self.is_arm64() { Arch::Aarch64 } else { Arch::X86_64 }
    }

    /// The image that QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The files of these modules and of all that they need, in the order to load them in; modules that are part of the
    /// image have none.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let path = self.dir.join("modules.builtin");
        let builtin = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let builtin =
            builtin.lines().filter_map(|line| Path::new(line).file_stem()?.to_str()).map(plain).collect();
        let mut order = ModuleOrder {
            modules: self.dir.join("modules"),
            builtin,
            seen: HashSet::new(),
            files: Vec::new(),
        };
        for name in names {
            order.add(name).with_context(|| format!("Linux {}", self.release))?;
        }
        Ok(order.files)
    }
}

/// Module names, as files and `depends` spell them differently.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

struct ModuleOrder {
    modules: PathBuf,
    builtin: HashSet<String>,
    seen: HashSet<String>,
    files: Vec<PathBuf>,
}

impl ModuleOrder {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.modules.join(format!("{name}.ko"));
        let Ok(bytes) = fs::read(&path) else { bail!("has no module {name} ({})", path.display()) };
        for needed in depends(&bytes) {
            self.add(&needed)?;
        }
        self.files.push(path);
        Ok(())
    }
}

/// What a module needs: `depends=` in its `.modinfo`, a string that ends in a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        let version = |release: &str| Kernel { release: release.into(), dir: PathBuf::new() }.version();
        assert_eq!(version("6.1.0-56-cloud-amd64"), (6, 1));
        assert!(version("6.12.117+deb12-cloud-amd64") > version("6.1.0-56-cloud-amd64"));
        assert_eq!(version("none"), (0, 0));
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("modules")).unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/base/built-in.ko\n").unwrap();
        for (name, text) in [
            ("top", "\x7fELF\0license=GPL\0depends=left,built-in,right\0name=top\0"),
            ("left", "\0depends=base\0"),
            ("right", "\0depends=base\0"),
            ("base", "\0depends=\0"),
        ] {
            fs::write(dir.path().join(format!("modules/{name}.ko")), text).unwrap();
        }
        let kernel = Kernel { release: "1.2".into(), dir: dir.path().into() };
        let names = |wanted: &[&str]| -> Vec<String> {
            let files = kernel.modules(wanted).unwrap();
            files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&["top"]), ["base", "left", "right", "top"]);
        assert_eq!(names(&["built_in", "right", "base"]), ["base", "right"]);
        let error = format!("{:#}", kernel.modules(&["none"]).unwrap_err());
        assert!(error.contains("Linux 1.2") && error.contains("no module none"), "{error}");
    }
}
