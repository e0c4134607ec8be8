//! From a machine's pages to the engine's folios.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{Descriptors, Engine, Folio, Kind, Order, Page64, Pfn, Platform, RawFolio};
use pagefold_machine::{Extent, PageState};
use pagefold_workload::{Stamp, share};

use crate::tiles::Tiles;

/// What was loaded.
pub struct Loaded<'e, P: Platform> {
    /// Folios that owners may move, free and split.
    pub movable: Vec<Folio<'e, P>>,
    /// Folios that stay: kernel memory of all sorts. Their references are never put.
    pub fixed: u64,
    /// Those of them that are large enough to fold.
    pub fixed_large: Vec<RawFolio>,
    /// Pages by state.
    pub pages: HashMap<PageState, u64>,
    /// Hugetlb folios: those that Linux can optimise.
    pub hugetlb: u64,
}

/// What a state is called in a descriptor; `None` for what has none.
fn kind_of(state: PageState) -> Option<Kind> {
    match state {
        PageState::Anon => Some(Kind::Anon),
        PageState::File => Some(Kind::File),
        PageState::Slab => Some(Kind::Slab),
        PageState::PageTable => Some(Kind::PageTable),
        PageState::Hugetlb => Some(Kind::Hugetlb),
        PageState::Kernel => Some(Kind::Kernel),
        PageState::Reserved => Some(Kind::Reserved),
        // The odd page at the edge of a stretch; stretches are gaps. It is taken, and has no owner.
        PageState::Offline | PageState::NoPage => Some(Kind::Reserved),
        PageState::Free | PageState::Deferred | PageState::HwPoison => None,
    }
}

/// Brings the machine's memory online: all of it but the gaps.
pub fn online<P: Platform>(engine: &mut Engine<P>, tiles: &Tiles<'_>) -> Result<()> {
    let gaps = tiles.gaps(P::Descriptors::PAGES_PER_MAP_PAGE);
    let mut gaps_left = gaps.iter().peekable();
    let add = |engine: &mut Engine<P>, start: u64, end: u64| -> Result<()> {
        if start < end {
            engine.online(start..end).with_context(|| format!("adding memory at {}", Pfn(start)))?;
        }
        Ok(())
    };
    for range in tiles.memory() {
        let mut at = range.start;
        while let Some((gap, state)) = gaps_left.next_if(|(gap, _)| gap.start < range.end) {
            add(engine, at, gap.start)?;
            if *state == PageState::Offline {
                engine.add_offline(gap.clone()).with_context(|| format!("adding {}", Pfn(gap.start)))?;
            }
            at = gap.end;
        }
        add(engine, at, range.end)?;
    }
    Ok(())
}

/// Makes the machine's folios. Free memory needs nothing. `tile_done` is asked after every tile whether to go on.
pub fn load<'e, P: Platform<Owner = Stamp>>(
    engine: &'e Engine<P>,
    tiles: &Tiles<'_>,
    bar: &ProgressBar,
    mut tile_done: impl FnMut(&Loaded<'e, P>) -> Result<()>,
) -> Result<Loaded<'e, P>> {
    let mut tile_end = tiles.span();
    let mut loaded =
        Loaded { movable: Vec::new(), fixed: 0, fixed_large: Vec::new(), pages: HashMap::new(), hugetlb: 0 };
    let gaps = tiles.gaps(P::Descriptors::PAGES_PER_MAP_PAGE);
    let in_gap = |pfn: u64| {
        let at = gaps.partition_point(|(gap, _)| gap.end <= pfn);
        gaps.get(at).is_some_and(|(gap, _)| gap.contains(&pfn))
    };
    let walker = engine.walker()?;
    bar.set_length(tiles.end());
    for extent in tiles.extents() {
        bar.set_position(extent.start);
        if extent.start >= tile_end {
            tile_done(&loaded)?;
            tile_end += tiles.span();
        }
        *loaded.pages.entry(extent.state).or_default() += extent.pages;
        if extent.state == PageState::HwPoison {
            for pfn in extent.start..extent.start + extent.pages {
                walker.poison(Pfn(pfn))?;
            }
            continue;
        }
        let Some(kind) = kind_of(extent.state) else { continue };
        let is_gap = matches!(extent.state, PageState::Offline | PageState::NoPage);
        for (pfn, order) in folios(&extent) {
            if is_gap && in_gap(pfn.0) {
                continue;
            }
            let mut frozen = engine
                .alloc_at(pfn, order, kind)
                .map_err(|error| anyhow!("loading {pfn} ({}): {error}", extent.state.name()))?;
            frozen.owner_mut().mapcount = extent.mapcount;
            loaded.hugetlb += u64::from(kind == Kind::Hugetlb && Page64::is_foldable(order));
            let folio = share(frozen);
            if matches!(kind, Kind::Anon | Kind::File | Kind::Hugetlb) {
                loaded.movable.try_reserve(1).context("no memory for the list of folios")?;
                loaded.movable.push(folio);
            } else {
                loaded.fixed += 1;
                let raw = folio.into_raw();
                if P::Descriptors::is_foldable(order) {
                    loaded.fixed_large.push(raw);
                }
            }
        }
    }
    bar.finish_and_clear();
    // Whatever the snapshot does not speak of is free.
    let known: u64 = loaded.pages.values().sum();
    *loaded.pages.entry(PageState::Free).or_default() += tiles.pages().saturating_sub(known);
    Ok(loaded)
}

/// The folios of an extent. Reserved memory is one owner's and never given back page by page: blocks as large as fit.
fn folios(extent: &Extent) -> impl Iterator<Item = (Pfn, Order)> {
    let Extent { start, pages, order, state, .. } = *extent;
    let end = start + pages;
    let mut next = start;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let pfn = Pfn(next);
        let order = match state {
            PageState::Reserved => Order::fitting(pfn, end - next),
            _ => Order::new(order).unwrap_or(Order::ZERO),
        };
        next += order.pages();
        Some((pfn, order))
    })
}

/// Bytes of materialised map pages by the states of the pages they describe, and of objects by those of their folios. A map
/// page that describes pages of several states is shared out by the pages in use (or, if none is, by all).
pub fn attribute<P: Platform>(engine: &Engine<P>, tiles: &Tiles<'_>) -> HashMap<PageState, f64> {
    let mut bytes = HashMap::new();
    // The map page being summed up, and its pages by state.
    let mut current = (0, Vec::<(PageState, u64)>::new());
    let described = P::Descriptors::PAGES_PER_MAP_PAGE;
    let object = P::Descriptors::shape::<P::Owner>().object_bytes as f64;
    let flush = |bytes: &mut HashMap<PageState, f64>, map_page: u64, parts: &mut Vec<(PageState, u64)>| {
        if !parts.is_empty() && engine.class(Pfn(map_page * described)).1 {
            let in_use = |part: &&(PageState, u64)| !part.0.is_free();
            let all: u64 = parts.iter().filter(in_use).map(|part| part.1).sum();
            let total: u64 = parts.iter().map(|part| part.1).sum();
            for (state, pages) in parts.iter() {
                let share = match (all, state.is_free()) {
                    (0, _) => *pages as f64 / total as f64,
                    (_, true) => 0.0,
                    (all, false) => *pages as f64 / all as f64,
                };
                *bytes.entry(*state).or_default() += share * 4096.0;
            }
        }
        parts.clear();
    };
    for extent in tiles.extents() {
        let end = extent.start + extent.pages;
        let mut at = extent.start;
        if object != 0.0 && kind_of(extent.state).is_some() {
            *bytes.entry(extent.state).or_default() += folios(&extent).count() as f64 * object;
        }
        while at < end {
            let map_page = at / described;
            if map_page != current.0 {
                flush(&mut bytes, current.0, &mut current.1);
                current.0 = map_page;
            }
            let stop = end.min((map_page + 1) * described);
            current.1.push((extent.state, stop - at));
            at = stop;
        }
    }
    flush(&mut bytes, current.0, &mut current.1);
    bytes
}
