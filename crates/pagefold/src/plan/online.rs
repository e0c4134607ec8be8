//! What happens to memory that is added: which zone it goes to, and whether it is used at all.
//!
//! The program that adds memory may bring it online (`memhp_default_state`, udev), else `auto_online_blocks` says what happens. If
//! that is `online`, the kernel chooses the zone: by `online_policy`, and `auto_movable_ratio` (mm/memory_hotplug.c).

use pagefold_machine::Host;
use pagefold_machine::host::{OnlineRule, Onlining};

use super::args::OnlineArg;
use super::kernel::PlannedKernel;

/// Where added blocks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlineTarget {
    pub zone: ZoneChoice,
    /// From what that is known.
    pub from: String,
    /// Whether blocks stay offline until somebody brings them online.
    pub stays_offline: bool,
    /// What ZONE_MOVABLE should have at most, in percent of kernel zones, and from what that is known.
    pub ratio: u64,
    pub ratio_from: &'static str,
    /// Whether the ratio must hold for the node of added memory too (`auto_movable_numa_aware`), and whether there are several.
    pub numa_aware: bool,
    pub several_nodes: bool,
}

/// The zone of added blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneChoice {
    Movable,
    Kernel,
    /// ZONE_MOVABLE up to the ratio, then a kernel zone.
    ByRatio,
}

impl ZoneChoice {
    /// Words for it.
    pub const fn name(self) -> &'static str {
        match self {
            ZoneChoice::Movable => "ZONE_MOVABLE",
            ZoneChoice::Kernel => "a kernel zone",
            ZoneChoice::ByRatio => "ZONE_MOVABLE and, above its ratio, a kernel zone",
        }
    }
}

const USUAL: &str = "the default of auto_movable_ratio, since Linux 5.15";

impl OnlineTarget {
    /// Of a guest that nothing is known of.
    pub fn of_sizes(online: Option<OnlineArg>) -> Self {
        Self {
            zone: if online == Some(OnlineArg::Kernel) { ZoneChoice::Kernel } else { ZoneChoice::Movable },
            from: if online.is_some() { "--online" } else { "assumed; --online kernel is the other" }.into(),
            stays_offline: false,
            ratio: Onlining::USUAL_RATIO,
            ratio_from: USUAL,
            numa_aware: true,
            several_nodes: false,
        }
    }

    /// Of a host, under a kernel, unless somebody asks for one zone.
    pub fn of_host(online: Option<OnlineArg>, host: &Host, planned: &PlannedKernel) -> Self {
        let auto = host.blocks.as_ref().and_then(|blocks| blocks.auto_online.as_deref());
        let usual = Self {
            stays_offline: auto == Some("offline"),
            ratio: host.onlining.ratio(),
            ratio_from: ratio_from(host),
            numa_aware: host.onlining.numa_aware.unwrap_or(true),
            several_nodes: host.nodes.len() > 1,
            ..Self::of_sizes(online)
        };
        // A kernel that was asked for may be older than the policy that this one has.
        let has_policy = !planned.is_asked || !planned.kernel.is_before((5, 15));
        let policy = host.onlining.policy.filter(|_| has_policy);
        let (zone, from) = match (auto, policy) {
            _ if online.is_some() => return usual,
            (Some("online_kernel"), _) => (ZoneChoice::Kernel, "auto_online_blocks is online_kernel"),
            (Some("online_movable"), _) => (ZoneChoice::Movable, "auto_online_blocks is online_movable"),
            (_, Some(OnlineRule::AutoMovable)) => (ZoneChoice::ByRatio, "online_policy is auto-movable"),
            (Some("online"), _) if !has_policy => (
                ZoneChoice::Kernel,
                "auto_online_blocks is online, and there is no online_policy before Linux 5.15",
            ),
            (Some("online"), _) => {
                (ZoneChoice::Kernel, "auto_online_blocks is online, and online_policy contig-zones")
            }
            _ => return usual,
        };
        Self { zone, from: from.into(), ..usual }
    }
}

fn ratio_from(host: &Host) -> &'static str {
    if host.onlining.movable_ratio.is_some() { "auto_movable_ratio" } else { USUAL }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::kernel::KernelArgs;
    use pagefold_machine::host::Blocks;

    #[test]
    fn the_machine_says_where_blocks_go() {
        let of = |auto: Option<&str>, policy, online| {
            let blocks = Blocks { size: 128 << 20, auto_online: auto.map(str::to_owned), list: Vec::new() };
            let onlining = Onlining { policy, movable_ratio: Some(401), numa_aware: None };
            let host = Host { blocks: Some(blocks), onlining, ..Host::default() };
            let planned = KernelArgs::default().planned(Some(&host)).unwrap();
            let target = OnlineTarget::of_host(online, &host, &planned);
            assert_eq!((target.ratio, target.ratio_from), (401, "auto_movable_ratio"));
            (target.zone, target.stays_offline)
        };
        let (contig, auto) = (Some(OnlineRule::ContigZones), Some(OnlineRule::AutoMovable));
        assert_eq!(of(Some("online"), contig, None), (ZoneChoice::Kernel, false));
        assert_eq!(of(Some("online"), auto, None), (ZoneChoice::ByRatio, false));
        assert_eq!(of(Some("online_kernel"), auto, None), (ZoneChoice::Kernel, false));
        assert_eq!(of(Some("online_movable"), contig, None), (ZoneChoice::Movable, false));
        assert_eq!(of(Some("offline"), contig, None), (ZoneChoice::Movable, true));
        assert_eq!(of(Some("offline"), auto, Some(OnlineArg::Kernel)), (ZoneChoice::Kernel, true));
        assert_eq!(of(None, None, None), (ZoneChoice::Movable, false));
        assert_eq!(of(Some("online_kernel"), contig, Some(OnlineArg::Movable)), (ZoneChoice::Movable, false));
        // A kernel without the policy does not follow it.
        let blocks = Blocks { size: 128 << 20, auto_online: Some("online".into()), list: Vec::new() };
        let onlining = Onlining { policy: auto, ..Onlining::default() };
        let host = Host { blocks: Some(blocks), onlining, ..Host::default() };
        let old = KernelArgs { kernel: Some("5.10".into()), ..KernelArgs::default() };
        let target = OnlineTarget::of_host(None, &host, &old.planned(Some(&host)).unwrap());
        assert_eq!(target.zone, ZoneChoice::Kernel);
    }
}
