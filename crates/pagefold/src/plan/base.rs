//! What a plan starts from: a machine, or sizes alone.

use anyhow::{Result, bail};
use pagefold_machine::PageState;
use pagefold_machine::cost::Shape;
use pagefold_machine::geometry::ORDERS;
use pagefold_machine::host::{Hvo, Pool};
use pagefold_picture::amount::Bytes;

use super::args::PlanArgs;
use super::kernel::PlannedKernel;
use crate::exit::usage;
use crate::report::memdesc::{tables_at_most, words_of};
use crate::report::model::{Figure, How, Interval, MemdescReport};
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
    /// The kernel that descriptors are of.
    pub planned: PlannedKernel,
    /// Whether that kernel has HVO, and has it on.
    pub hvo: Hvo,
    pub pools: Vec<Pool>,
    /// Descriptors that folding would leave, of all but the pools.
    pub folded: Interval,
    /// The engine's tables, at most.
    pub tables: u64,
    /// Words that folding would leave if descriptors were memdescs, of all but the pools.
    pub words: Interval,
    /// Bytes in use, outside of the pools.
    pub in_use: u64,
    /// Folios in use, outside of the pools.
    pub folios: Folios,
    /// Blocks of reserved memory, as large as fit, as far as page states tell: objects beside those of folios.
    pub reserved: u64,
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
    /// From a machine, as it would be under a kernel.
    pub fn of(survey: &Survey, planned: PlannedKernel) -> Self {
        let accounts = Accounts::of(survey);
        let own = accounts.shape;
        let shape = if planned.is_asked { planned.shape() } else { own };
        let pools: Vec<Pool> = pools(survey).into_iter().filter(|pool| pool.pages > 0).collect();
        let kept = kept(&pools, own);
        let folding = folding(survey, &accounts);
        let folded = folding.descriptors.map(|bytes| bytes.saturating_sub(kept));
        let kept_words = kept_words(&pools, own);
        let words = folding.memdesc.words.map(|bytes| bytes.saturating_sub(kept_words));
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
                let in_use = accounts.memory.bytes.saturating_sub(free.saturating_mul(own.page));
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
        let reserved = survey.pages.as_ref().map_or(0, |pages| {
            let tally = &pages.tally;
            tally.memdesc.folios.saturating_sub(tally.folios.iter().sum())
        });
        let memory = accounts.memory.bytes;
        // Page states of this kernel say nothing of folios in larger pages.
        let (folded, tables, words, folios) = if shape == own {
            (folded, folding.tables.bytes, words, folios)
        } else {
            let folded = folded_in_use(in_use, shape);
            (folded, tables(memory, shape), words_in_use(in_use, shape), Folios::in_use(in_use, shape))
        };
        Self {
            origin: survey.origin.clone(),
            shape,
            descriptors_now,
            hvo: planned.hvo,
            planned,
            memory,
            described: accounts.described.max,
            now: Some(accounts.descriptors),
            pools,
            folded,
            tables,
            words,
            in_use,
            folios,
            reserved,
            partial: survey.host.is_partial(),
        }
    }

    /// From sizes: what is neither free nor in a pool is in use as small pages.
    pub fn of_sizes(memory: u64, free: u64, pools: Vec<Pool>, planned: PlannedKernel) -> Result<Self> {
        let shape = planned.shape();
        let in_pools = pools.iter().fold(0u64, |sum, pool| sum.saturating_add(pool.bytes()));
        let taken = in_pools.checked_add(free).filter(|&taken| taken <= memory);
        let Some(taken) = taken else {
            let pools =
                if in_pools > 0 { format!("pools of {} and ", Bytes(in_pools)) } else { String::new() };
            let (free, memory) = (Bytes(free), Bytes(memory));
            return Err(usage(format!(
                "{pools}{free} of free memory are more than the machine has, {memory}"
            )));
        };
        let in_use = memory - taken;
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
            hvo: planned.hvo,
            planned,
            pools,
            folded: folded_in_use(in_use, shape),
            tables: tables(memory, shape),
            words: words_in_use(in_use, shape),
            in_use,
            folios: Folios::in_use(in_use, shape),
            reserved: 0,
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
        self.folded.clone().map(|bytes| bytes.saturating_add(more))
    }

    /// What folding leaves in all, with words and objects.
    pub fn memdesc_in_all(&self) -> Interval {
        let more = kept_words(&self.pools, self.shape);
        let words = self.words.clone().map(|bytes| bytes.saturating_add(more));
        let others = self.pools.iter().fold(self.reserved, |sum, pool| sum.saturating_add(pool.pages));
        let (least, most) =
            (self.folios.least.saturating_add(others), self.folios.most.saturating_add(others));
        let folios = Interval::computed(least, most, self.folios.from);
        let tables = tables_at_most(self.memory, self.shape, words.max, most);
        MemdescReport::new(words, &folios, tables).total
    }
}

impl Folios {
    fn in_use(bytes: u64, shape: Shape) -> Self {
        let pages = bytes / shape.page.max(1);
        Self { least: bytes >> 21, most: pages, from: IN_USE }
    }
}

const IN_USE: &str = "what is in use, in 2 MiB folios to small pages";

/// Descriptors that folding leaves of memory in use, if nothing tells of folios.
fn folded_in_use(in_use: u64, shape: Shape) -> Interval {
    let most = shape.descriptors(in_use);
    // Of each 2 MiB one map page, or all there is if that is less.
    let least = (in_use >> 21).saturating_mul(shape.page.min(shape.descriptors(2 << 20)));
    Interval::computed(least.min(most), most, IN_USE)
}

/// Words that folding leaves of memory in use, if nothing tells of folios: none of large ones.
fn words_in_use(in_use: u64, shape: Shape) -> Interval {
    Interval::computed(0, words_of(shape).descriptors(in_use), IN_USE)
}

/// Words that folding leaves of huge pages: none, but of those that fill no map page.
fn kept_words(pools: &[Pool], shape: Shape) -> u64 {
    let words = words_of(shape);
    let small = pools.iter().filter(|pool| pool.size < words.described_by_map_page());
    small.fold(0u64, |sum, pool| sum.saturating_add(words.descriptors(pool.bytes())))
}

/// The engine's tables, at most.
fn tables(memory: u64, shape: Shape) -> u64 {
    let map_pages = shape.descriptors(memory) / shape.page.max(1);
    map_pages * 9 + map_pages / 8 + memory / (128 << 20) * 4096
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
        Some(memory) => {
            let planned = args.kernel.planned(None)?;
            Base::of_sizes(memory, args.free.unwrap_or(0), pools.unwrap_or_default(), planned)
        }
        None => {
            let survey = args.survey.survey()?;
            let planned = args.kernel.planned(Some(&survey.host))?;
            let base = Base::of(&survey, planned);
            match pools {
                Some(pools) => base.with_pools(pools),
                None => Ok(base),
            }
        }
    }
}
