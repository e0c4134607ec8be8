//! Parameters of the module `memory_hotplug`: which zone an added block goes to, if the kernel is to choose.

use serde::{Deserialize, Serialize};

use super::files::Files;

const DIR: &str = "sys/module/memory_hotplug/parameters";
const TELLS: &str = "which zone added memory goes to";

/// Which zone an added block goes to, where `online` (not `online_kernel` or `online_movable`) is what happens to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Onlining {
    /// `online_policy`, of Linux 5.15 and newer.
    pub policy: Option<OnlineRule>,
    /// `auto_movable_ratio`: what ZONE_MOVABLE may have, in percent of what kernel zones have.
    pub movable_ratio: Option<u64>,
    /// `auto_movable_numa_aware`: whether the ratio must hold for the block's own node too; kernels without NUMA do not tell.
    pub numa_aware: Option<bool>,
}

/// `online_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnlineRule {
    /// A kernel zone, unless the block lies in ZONE_MOVABLE.
    ContigZones,
    /// ZONE_MOVABLE, as far as the ratio allows.
    AutoMovable,
}

impl Onlining {
    /// What the kernel does unless told otherwise (`mm/memory_hotplug.c`).
    pub const USUAL_RATIO: u64 = 301;

    /// Reads the parameters.
    pub(super) fn read(files: &mut Files) -> Self {
        let policy = files.optional(&format!("{DIR}/online_policy"), TELLS, |text| match text {
            "contig-zones" => Some(OnlineRule::ContigZones),
            "auto-movable" => Some(OnlineRule::AutoMovable),
            _ => None,
        });
        let movable_ratio =
            files.optional(&format!("{DIR}/auto_movable_ratio"), TELLS, |text| text.parse().ok());
        let numa_aware =
            files.optional(&format!("{DIR}/auto_movable_numa_aware"), TELLS, |text| match text {
                "Y" | "1" => Some(true),
                "N" | "0" => Some(false),
                _ => None,
            });
        Self { policy, movable_ratio, numa_aware }
    }

    /// What ZONE_MOVABLE may have, in percent of kernel zones: what the kernel was told, or its usual ratio.
    pub fn ratio(&self) -> u64 {
        self.movable_ratio.unwrap_or(Self::USUAL_RATIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn parameters_are_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIR);
        fs::create_dir_all(&dir).unwrap();
        let read = || {
            let mut files = Files::new(root.path());
            (Onlining::read(&mut files), files.into_gaps().len())
        };
        assert_eq!(read(), (Onlining::default(), 0));
        assert_eq!(read().0.ratio(), 301);
        fs::write(dir.join("online_policy"), "auto-movable\n").unwrap();
        fs::write(dir.join("auto_movable_ratio"), "401\n").unwrap();
        fs::write(dir.join("auto_movable_numa_aware"), "N\n").unwrap();
        let wanted = Onlining {
            policy: Some(OnlineRule::AutoMovable),
            movable_ratio: Some(401),
            numa_aware: Some(false),
        };
        assert_eq!(read(), (wanted, 0));
        fs::write(dir.join("online_policy"), "by-chance\n").unwrap();
        fs::write(dir.join("auto_movable_ratio"), "-1\n").unwrap();
        fs::write(dir.join("auto_movable_numa_aware"), "perhaps\n").unwrap();
        assert_eq!(read(), (Onlining::default(), 3));
    }
}
