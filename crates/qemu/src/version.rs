//! Which QEMU is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::spawn_bound;

/// A QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl Version {
    /// What `program` says, such as [`QEMU`](crate::QEMU); none if there is no such program, or it says none.
    pub fn of(program: impl AsRef<Path>) -> Option<Version> {
        let mut command = Command::new(program.as_ref());
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = spawn_bound(command, &[]).and_then(|child| child.wait_with_output()).ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.strip_prefix("QEMU emulator version ")?.split(|c: char| !c.is_ascii_digit());
        Some(Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }

    /// Whether it takes the plugin that counts instructions, which speaks version 1 of the plugin interface: QEMU 9.0 ended
    /// that (`plugins/plugin.h`, `QEMU_PLUGIN_MIN_VERSION`).
    pub fn counts_instructions(self) -> bool {
        (7..9).contains(&self.major)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version =
            Version::parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright")
                .unwrap();
        assert_eq!(version, Version { major: 7, minor: 2 });
        assert!(version.counts_instructions());
        let version = Version::parse("QEMU emulator version 10.0.2").unwrap();
        assert!(version > Version { major: 8, minor: 2 } && !version.counts_instructions());
        assert_eq!(Version::parse("qemu-img version 7.2.22"), None);
        assert_eq!(Version::of("/nowhere/qemu"), None);
    }
}
