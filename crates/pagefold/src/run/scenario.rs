//! Scenario files: what may stand in them, and the ones that come with the command.

use std::fmt;
use std::ops::Range;

use pagefold_workload::{Use, WalkerKind};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::size::parse_bytes;

/// Name and text of the scenarios that come with the command; the first is the default.
pub const SHIPPED: [(&str, &str); 6] = [
    ("elastic", include_str!("scenarios/elastic.toml")),
    ("terabyte", include_str!("scenarios/terabyte.toml")),
    ("fragmented", include_str!("scenarios/fragmented.toml")),
    ("numa", include_str!("scenarios/numa.toml")),
    ("hugetlb", include_str!("scenarios/hugetlb.toml")),
    ("classic", include_str!("scenarios/classic.toml")),
];

/// A mistake in a scenario file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{origin}:{line}:{column}: {message}")]
pub struct ScenarioMistake {
    origin: String,
    line: usize,
    column: usize,
    message: String,
}

impl ScenarioMistake {
    /// `span` is in bytes of `text`.
    pub fn new(origin: &str, text: &str, span: Range<usize>, message: impl fmt::Display) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        // One mistake, one line.
        let message = message.to_string().trim().replace('\n', ", ");
        Self { origin: origin.to_owned(), line, column, message }
    }
}

/// Reads the text of a scenario. What it says is not judged yet; see [`super::plan`].
pub fn parse(origin: &str, text: &str) -> Result<Scenario, ScenarioMistake> {
    toml::from_str(text)
        .map_err(|error| ScenarioMistake::new(origin, text, error.span().unwrap_or(0..0), error.message()))
}

/// A size in bytes: `"4 GiB"`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeSpec(pub u64);

impl<'de> Deserialize<'de> for SizeSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = SizeSpec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512 MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SizeSpec, E> {
                parse_bytes(text).map(SizeSpec).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<SizeSpec, E> {
                u64::try_from(bytes).map(SizeSpec).map_err(|_| E::custom("a size cannot be negative"))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// A scenario, as it stands in its file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// A line about it.
    pub about: String,
    pub machine: MachineSpec,
    #[serde(default, rename = "device")]
    pub devices: Vec<DeviceSpec>,
    #[serde(default, rename = "workload")]
    pub workloads: Vec<WorkloadSpec>,
    #[serde(default)]
    pub walkers: Walkers,
    #[serde(default, rename = "step")]
    pub steps: Vec<StepSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineSpec {
    /// Boot memory of each node, from page 0 up.
    pub boot: Vec<Spanned<SizeSpec>>,
    #[serde(default)]
    pub memory_block: Option<Spanned<SizeSpec>>,
    #[serde(default)]
    pub online: OnlineSpec,
    /// For `online = "auto-movable"`: movable memory in per cent of kernel memory.
    #[serde(default)]
    pub ratio: Option<Spanned<u32>>,
    #[serde(default)]
    pub fake_offline: FakeOfflineName,
    /// Seconds to go on trying when what is in use may be free in a moment.
    #[serde(default)]
    pub patience: Option<Spanned<f64>>,
    /// Decides all random choices.
    #[serde(default)]
    pub seed: u64,
}

/// Where added memory goes online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnlineSpec {
    #[default]
    Movable,
    Kernel,
    AutoMovable,
}

/// How fake-offline memory is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FakeOfflineName {
    /// Without descriptors.
    #[default]
    Folded,
    /// As Linux: a descriptor with a reference for each page.
    Classic,
    /// The same, and walkers are waited for before the references are dropped.
    ClassicRcu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceSpec {
    #[serde(default)]
    pub node: Option<Spanned<u8>>,
    pub size: Spanned<SizeSpec>,
    #[serde(default)]
    pub block: Option<Spanned<SizeSpec>>,
    /// Address; by itself behind whatever comes before it.
    #[serde(default)]
    pub at: Option<Spanned<SizeSpec>>,
}

/// A use of memory by its name.
#[derive(Clone, Copy, Debug)]
pub struct UseName(pub Use);

impl<'de> Deserialize<'de> for UseName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        Use::named(&name).map(Self).ok_or_else(|| de::Error::unknown_variant(&name, &Use::NAMES))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkloadSpec {
    pub name: Spanned<String>,
    pub kind: UseName,
    /// Which part of it lies in folios of which order; if nothing is said 9 for hugetlb, otherwise 0.
    #[serde(default)]
    pub orders: Vec<Spanned<ShareSpec>>,
    /// As much of what it takes is given back in between, folio by folio, at random: 0 (none) to below 1.
    #[serde(default)]
    pub fragmentation: Option<Spanned<f64>>,
    /// Write to its memory, as a guest does, so that the device's memory is really there.
    #[serde(default)]
    pub touch: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShareSpec {
    pub order: u32,
    pub share: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Walkers {
    /// Threads.
    pub count: Spanned<u16>,
    /// What they imitate, in turn; all kinds if nothing is said.
    #[serde(default)]
    pub kinds: Vec<WalkerName>,
}

impl Default for Walkers {
    fn default() -> Self {
        Self { count: Spanned::new(0..0, 4), kinds: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalkerName {
    Gup,
    PageCache,
    Compaction,
    Kpageflags,
}

impl From<WalkerName> for WalkerKind {
    fn from(name: WalkerName) -> Self {
        match name {
            WalkerName::Gup => WalkerKind::Gup,
            WalkerName::PageCache => WalkerKind::PageCache,
            WalkerName::Compaction => WalkerKind::Compaction,
            WalkerName::Kpageflags => WalkerKind::Kpageflags,
        }
    }
}

/// A step: workloads change first, one after the other, then devices are resized, one after the other.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StepSpec {
    pub name: String,
    #[serde(default)]
    pub change: Vec<Spanned<ChangeSpec>>,
    #[serde(default)]
    pub resize: Vec<Resize>,
    /// Falling short of a requested size is a failure.
    #[serde(default)]
    pub must: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resize {
    pub device: Spanned<usize>,
    pub to: Spanned<SizeSpec>,
}

/// A change of one workload: exactly one of the others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChangeSpec {
    pub workload: Spanned<String>,
    /// Grow or shrink to this size.
    #[serde(default)]
    pub to: Option<Spanned<SizeSpec>>,
    /// Free this part of its folios, at random.
    #[serde(default)]
    pub free: Option<Spanned<f64>>,
    /// Pin this part of its folios, at random; 0 unpins all.
    #[serde(default)]
    pub pin: Option<Spanned<f64>>,
}
