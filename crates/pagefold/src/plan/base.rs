//! What a plan starts from: a machine, or sizes alone.

use anyhow::{Result, bail};
use pagefold_machine::PageState;
use pagefold_machine::cost::Shape;
use pagefold_machine::geometry::ORDERS;
use pagefold_machine::host::{Hvo, Pool};
use pagefold_picture::amount::Bytes;

use super::args::PlanArgs;
use crate::exit::usage;
use crate::report::model::{Figure, How, Interval};
use crate::report::{Accounts, folding, pools};
use crate::survey::Survey;

/// A machine as far as a plan needs it.
pub struct Base {
    /// A word for where it comes from.
    pub origin: String,
    pub shape: Shape,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of memory with descriptors.
    pub described: u64,
    /// What page metadata costs now; absent for sizes alone.
    pub now: Option<Figure>,
    /// What descriptors of memory cost now, of that; for sizes alone, all of them.
    pub descriptors_now: Interval,
    /// Whether the machine's kernel has HVO, and has it on.
    pub hvo: Hvo,
    pub pools: Vec<Pool>,
    /// Descriptors that folding would leave, of all but the pools.
    pub folded: Interval,
    /// The engine's tables, at most.
    pub tables: u64,
    /// Bytes in use, outside of the pools.
    pub in_use: u64,
    /// Folios in use, outside of the pools.
    pub folios: Folios,
    /// Whether something could not be read.
    pub partial: bool,
}

/// How many folios are in use.
pub struct Folios {
    pub least: u64,
    pub most: u64,
    pub from: &'static str,
}

impl Base {
    /// From a machine.
    pub fn of(survey: &Survey) -> Self {
        let accounts = Accounts::of(survey);
        let shape = accounts.shape;
        let pools: Vec<Pool> = pools(survey).into_iter().filter(|pool| pool.pages > 0).collect();
        let kept = kept(&pools, shape);
        let folding = folding(survey, &accounts);
        let folded = Interval {
            min: folding.descriptors.min.saturating_sub(kept),
            max: folding.descriptors.max.saturating_sub(kept),
            ..folding.descriptors
        };
        let (in_use, folios) = match &survey.pages {
            Some(pages) => {
                let tally = &pages.tally;
                let free = PageState::ALL.into_iter().filter(|state| {
                    state.is_free() || matches!(state, PageState::Offline | PageState::Hugetlb)
                });
                let free = free.fold(0u64, |sum, state| sum.saturating_add(tally.state(state).pages));
                let folios: u64 = (0..ORDERS)
                    .map(|order| tally.folios[order].saturating_sub(tally.hugetlb[order]))
                    .fold(0, u64::saturating_add);
                let in_use = accounts.memory.bytes.saturating_sub(free.saturating_mul(shape.page));
                (in_use, Folios { least: folios, most: folios, from: "this machine's folios" })
            }
            None => {
                let free = survey.host.meminfo.get("MemFree").unwrap_or(0);
                let in_pools = pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
                let in_use = accounts.memory.bytes.saturating_sub(free).saturating_sub(in_pools);
                (in_use, Folios::in_use(in_use, shape))
            }
        };
        let descriptors_now = match accounts.descriptors.how {
            How::Counted => {
                let (least, most) = accounts.excess.bytes();
                let bytes = accounts.descriptors.bytes;
                Interval {
                    min: bytes.saturating_sub(most),
                    max: bytes.saturating_sub(least),
                    ..accounts.descriptors.clone().into()
                }
            }
            // How much memory has descriptors is one question for now and then: only what HVO has saved is open.
            _ => Interval {
                min: accounts.full.max.saturating_sub(accounts.saved.max),
                max: accounts.full.max.saturating_sub(accounts.saved.min),
                ..accounts.computed.clone()
            },
        };
        Self {
            origin: survey.origin.clone(),
            shape,
            descriptors_now,
            hvo: survey.host.hvo,
            memory: accounts.memory.bytes,
            described: accounts.described.max,
            now: Some(accounts.descriptors),
            pools,
            folded,
            tables: folding.tables.bytes,
            in_use,
            folios,
            partial: survey.host.is_partial(),
        }
    }

    /// From sizes: what is neither free nor in a pool is in use as small pages.
    pub fn of_sizes(memory: u64, free: u64, pools: Vec<Pool>) -> Result<Self> {
        let shape = Shape::USUAL;
        let in_pools = pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
        let taken = in_pools.checked_add(free).filter(|&taken| taken <= memory);
        let Some(taken) = taken else {
            return Err(usage(format!(
                "pools of {} and {} free are more than the memory, {}",
                Bytes(in_pools),
                Bytes(free),
                Bytes(memory)
            )));
        };
        let in_use = memory - taken;
        let folded = shape.descriptors(in_use);
        let map_pages = shape.descriptors(memory) / shape.page;
        Ok(Self {
            origin: "sizes alone".into(),
            shape,
            memory,
            described: memory,
            now: None,
            descriptors_now: Interval::computed(
                shape.descriptors(memory),
                shape.descriptors(memory),
                "a descriptor for each page",
            ),
            hvo: Hvo::Unknown,
            pools,
            folded: Interval::computed(folded / 8, folded, "what is in use, in 2 MiB folios to small pages"),
            tables: map_pages * 9 + map_pages / 8 + memory / (128 << 20) * 4096,
            in_use,
            folios: Folios::in_use(in_use, shape),
            partial: false,
        })
    }

    /// With the pools that were asked for in place of those there are. What is in them now becomes free, and they take
    /// free memory.
    ///
    /// # Errors
    /// They do not fit beside what is in use.
    pub fn with_pools(mut self, pools: Vec<Pool>) -> Result<Self> {
        let bytes = pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
        if bytes > self.memory.saturating_sub(self.in_use) {
            bail!(
                "pools of {} do not fit into {} beside {} in use",
                Bytes(bytes),
                Bytes(self.memory),
                Bytes(self.in_use)
            );
        }
        self.pools = pools;
        Ok(self)
    }

    /// Descriptors of all memory, if none were saved.
    pub fn full(&self) -> u64 {
        self.shape.descriptors(self.described)
    }

    /// What folding leaves in all.
    pub fn folded_in_all(&self) -> Interval {
        let more = kept(&self.pools, self.shape).saturating_add(self.tables);
        Interval {
            min: self.folded.min.saturating_add(more),
            max: self.folded.max.saturating_add(more),
            ..self.folded.clone()
        }
    }
}

impl Folios {
    fn in_use(bytes: u64, shape: Shape) -> Self {
        let pages = bytes / shape.page.max(1);
        Self { least: pages / 512, most: pages, from: "what is in use, in 2 MiB folios to small pages" }
    }
}

/// Descriptors that folding leaves of huge pages: one map page each.
fn kept(pools: &[Pool], shape: Shape) -> u64 {
    pools.iter().fold(0u64, |sum, pool| {
        sum.saturating_add(shape.descriptors(pool.size).min(shape.page).saturating_mul(pool.pages))
    })
}

/// The base that the arguments ask for.
pub fn base(args: &PlanArgs) -> Result<Base> {
    let pools = args.hugetlb.as_ref().map(|shape| shape.0.clone());
    match args.memory {
        Some(memory) => Base::of_sizes(memory, args.free.unwrap_or(0), pools.unwrap_or_default()),
        None => {
            let base = Base::of(&args.survey.survey()?);
            match pools {
                Some(pools) => base.with_pools(pools),
                None => Ok(base),
            }
        }
    }
}
