//! Unplugging in big-block mode: big blocks that are offline first, which cost their owners nothing; then those that are free;
//! then those whose owners can move what they have there. What lies in the movable zone before what lies in the normal one,
//! from high to low.
//!
//! A step looks at a *window*: big blocks of one zone. What can be had of them comes out of use together, and goes back to the
//! host in as few requests as there are runs. What is known to be pinned is left out.

use alloc::vec::Vec;
use core::ops::Range;

use pagefold_engine::geometry::PAGE_SHIFT;
use pagefold_engine::hotplug::{BlockError, BlockId, OnlineTo};
use pagefold_engine::{BlockState, Platform, Zone};
use pagefold_virtio_mem_spec::RequestType;

use super::blocks::BigState;
use super::{BigMode, Pass};
use crate::context::{Context, Taken};
use crate::stop::{Result, Stop};
use crate::window::{STEP_REQUESTS, Way, window_span};

const ORDER: [(Usage, Way); 7] = [
    (Usage::Offline, Way::Offline),
    (Usage::Online(Zone::Movable), Way::Free),
    (Usage::Online(Zone::Normal), Way::Free),
    (Usage::Online(Zone::Movable), Way::Asking),
    (Usage::Mixed { has_normal: false }, Way::Asking),
    (Usage::Online(Zone::Normal), Way::Asking),
    (Usage::Mixed { has_normal: true }, Way::Asking),
];

/// How the memory blocks of a big block are used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// None is online.
    Offline,
    /// All of them are, in one zone.
    Online(Zone),
    /// Somebody has taken some of them offline, or brought them online elsewhere.
    Mixed { has_normal: bool },
}

impl Usage {
    /// The zone that is told of if it stays.
    fn zone(self) -> Option<Zone> {
        match self {
            Usage::Offline => None,
            Usage::Online(zone) => Some(zone),
            Usage::Mixed { has_normal } => Some(if has_normal { Zone::Normal } else { Zone::Movable }),
        }
    }
}

/// Big blocks that one step looks at.
struct Window {
    /// Runs of them, ascending.
    runs: Vec<Range<u64>>,
    /// How many were left out, since something in them is pinned.
    pinned: u64,
    /// All below was not looked at.
    from: u64,
}

impl BigMode {
    /// Looks at the next window of the pass, and unplugs up to `most` big blocks of it.
    pub(crate) fn unplug(&mut self, cx: &mut Context<'_, '_, impl Platform>, most: u64) -> Result {
        let all = self.blocks.states.used();
        let mut pass = self.pass.take().unwrap_or_else(|| {
            cx.owners.begin_pass();
            Pass { order: 0, end: all, span: 0, stuck: None }
        });
        while let Some(&(usage, way)) = ORDER.get(pass.order) {
            let span = match usage {
                // One at a time: its memory blocks are not taken together.
                Usage::Mixed { .. } => 1,
                // All of these can be had.
                Usage::Offline => window_span(0, most, self.geometry.sub_pages()),
                Usage::Online(_) => window_span(pass.span, most, self.geometry.sub_pages()),
            };
            let window = self.window(cx, pass.end, usage, way, span)?;
            // The next step goes on here even if a panic of an owner ends this one.
            self.pass = Some(pass);
            let is_empty = window.runs.is_empty();
            let done = match (way, usage) {
                _ if is_empty => Ok((window.from, None)),
                (Way::Offline, _) | (_, Usage::Mixed { .. }) => self.take_each(cx, &window, usage, &mut pass),
                _ => self.take_together(cx, &window, usage, way, most, &mut pass),
            };
            // Whatever stopped it, the same window is looked at again.
            let (end, stop) = done.unwrap_or_else(|stop| (pass.end, Some(stop)));
            if end < pass.end {
                (0..window.pinned).for_each(|_| note_stuck(cx, &mut pass, usage, Stop::PINNED));
            }
            (pass.end, pass.span) = (end, span * 2);
            self.pass = Some(pass);
            match stop {
                Some(stop) => return Err(stop),
                None if !is_empty => return Ok(()),
                None => (pass.order, pass.end, pass.span) = (pass.order + 1, all, 0),
            }
        }
        self.pass = None;
        Err(pass.stuck.unwrap_or(Stop::IN_USE))
    }

    /// The next window below `end` of big blocks that are used so.
    fn window(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        end: u64,
        usage: Usage,
        way: Way,
        span: u64,
    ) -> Result<Window> {
        let mut window = Window { runs: Vec::new(), pinned: 0, from: 0 };
        if !self.unplug_online && usage != Usage::Offline {
            return Ok(window);
        }
        let walker = cx.hotplug.engine().walker()?;
        let (mut below, mut top) = (end, None);
        while let Some(unit) = self.blocks.states.last(below, BigState::Added) {
            if usage_of(cx, unit) != usage {
                below = unit;
                continue;
            }
            if unit < top.map_or(0, |top: u64| top.saturating_sub(span)) || window.runs.len() >= STEP_REQUESTS
            {
                window.from = unit + 1;
                break;
            }
            below = unit;
            if way != Way::Offline && cx.owners.refusals.stands(&walker, unit, 0) {
                window.pinned += u64::from(way == Way::Asking);
                continue;
            }
            top = top.or(Some(unit + 1));
            match window.runs.last_mut() {
                Some(above) if above.start == unit + 1 => above.start = unit,
                _ => {
                    window.runs.try_reserve(1).map_err(|_| Stop::NO_MEMORY)?;
                    window.runs.push(unit..unit + 1);
                }
            }
        }
        window.runs.reverse();
        Ok(window)
    }

    /// Takes big blocks one by one, as they are, and gives them back. Returns the unit from which on everything was looked at,
    /// and what ends the step.
    fn take_each(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        usage: Usage,
        pass: &mut Pass,
    ) -> Result<(u64, Option<Stop>)> {
        match self.give_to_host(cx, &window.runs, usage, pass) {
            // The next attempt goes on behind it.
            Err(Stop::NO_ROOM) => Ok((window.from, Some(Stop::NO_ROOM))),
            done => done.map(|()| (window.from, None)),
        }
    }

    /// Takes what can be had of a window, all of it at once, and gives it back. Returns as [`take_each`](Self::take_each).
    fn take_together(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        usage: Usage,
        way: Way,
        most: u64,
        pass: &mut Pass,
    ) -> Result<(u64, Option<Stop>)> {
        // One big block is never too much for a step.
        let questions = &mut cx.owners.questions;
        questions.left = questions.left.max(self.geometry.sub_pages());
        cx.link.heed()?;
        let Taken { runs: taken, considered_from, withdrawn } = cx.withdraw(&window.runs, most, way)?;
        for unit in taken.iter().flat_map(Range::clone) {
            self.blocks.states.set(unit, BigState::FakeOffline);
        }
        self.give_to_host(cx, &taken, usage, pass)?;
        let from = match window.runs.first() {
            Some(run) if run.start < considered_from => considered_from,
            _ => window.from,
        };
        if way == Way::Free {
            return Ok((from, None));
        }
        let lacking = withdrawn.lacks_room().then_some(considered_from);
        let is_left = |unit: &u64| *unit >= from && lacking != Some(*unit);
        for unit in window.runs.iter().flat_map(Range::clone).filter(is_left) {
            if let Some(stop) = Stop::of_fates(&withdrawn, &self.geometry.pages(unit, 0..1)) {
                note_stuck(cx, pass, usage, stop);
            }
        }
        match (lacking, cx.owners.questions.spent()) {
            (None, _) => Ok((from, None)),
            // It comes first in the next step, which has a question for each of its pages.
            (Some(unit), Some(_)) if unit + 1 < pass.end => Ok((unit + 1, None)),
            (Some(_), spent) => {
                let stop = spent.map_or(Stop::NO_ROOM, |_| Stop::IN_USE);
                note_stuck(cx, pass, usage, stop);
                Ok((from, (stop == Stop::NO_ROOM).then_some(stop)))
            }
        }
    }

    /// Removes big blocks, and gives them back to the host, from high to low. If it does not take one, or wants something else
    /// by now, the rest is as before.
    fn give_to_host(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        runs: &[Range<u64>],
        usage: Usage,
        pass: &mut Pass,
    ) -> Result {
        for (index, run) in runs.iter().enumerate().rev() {
            let mut rest = run.clone();
            let heeded = cx.link.heed();
            if let Err(stop) = heeded.and_then(|()| self.give_run(cx, &mut rest, usage, pass)) {
                let below = runs.get(..index).unwrap_or_default();
                for unit in below.iter().flat_map(Range::clone).chain(rest) {
                    self.put_back(cx, unit, &[]);
                }
                return Err(stop);
            }
        }
        Ok(())
    }

    /// Removes `rest`, from high to low, with one request for as many as follow on each other. What is still there if that
    /// fails was not looked at.
    fn give_run(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        rest: &mut Range<u64>,
        usage: Usage,
        pass: &mut Pass,
    ) -> Result {
        while rest.start < rest.end {
            let end = rest.end;
            let mut removed = Ok(());
            while removed.is_ok() && rest.start < rest.end {
                rest.end -= 1;
                removed = self.remove(cx, rest.end);
            }
            let from = rest.end + u64::from(removed.is_err());
            if from < end {
                self.change(cx, RequestType::Unplug, from..end)?;
            }
            match removed {
                Err(stuck) if stuck.is_stuck() || stuck == Stop::NO_ROOM => {
                    note_stuck(cx, pass, usage, stuck);
                    if stuck == Stop::NO_ROOM {
                        return Err(stuck);
                    }
                }
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Takes all memory blocks of a big block offline, asking the owners of what is in use still, and removes them; or none.
    /// Those that cannot go back online at once are owed. Once all are offline, the next clean-up goes on after an error.
    pub(super) fn remove(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        // Which blocks are online where, for the way back, and room to owe all of them.
        let mut online: Vec<(BlockId, OnlineTo)> = Vec::new();
        let count = self.geometry.blocks_per_unit();
        online.try_reserve_exact(count as usize).map_err(|_| Stop::NO_MEMORY)?;
        cx.adder.reserve(count)?;
        let zones = cx.added_blocks(unit).filter_map(|(block, zone)| Some((block, OnlineTo::Zone(zone?))));
        online.extend(zones);
        self.blocks.states.set(unit, BigState::FakeOffline);
        for (done, &(block, _)) in online.iter().enumerate() {
            // In one piece, or not at all.
            cx.owners.questions.left = u64::MAX;
            if let Err(error) = cx.offline(block) {
                self.put_back(cx, unit, online.get(..done).unwrap_or_default());
                return Err(error.into());
            }
        }
        for block in self.geometry.memory_blocks(unit) {
            if cx.hotplug.block(block).is_some() {
                cx.hotplug.remove(block)?;
            }
        }
        self.blocks.states.set(unit, BigState::Plugged);
        cx.owners.refusals.forget(unit);
        Ok(())
    }

    /// Puts a big block back to use that was about to be removed: what was taken out of use, and `offline`, which was taken
    /// offline. Without memory for that it stays as it is, and the next clean-up removes it.
    fn put_back(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64, offline: &[(BlockId, OnlineTo)]) {
        let size = self.geometry.memory_block >> PAGE_SHIFT;
        for block in self.geometry.memory_blocks(unit) {
            if cx.hotplug.block(block).is_some_and(|info| info.state == BlockState::Online) {
                let pages = block.0 * size..(block.0 + 1) * size;
                match cx.hotplug.fake_online(pages) {
                    // It had not been taken.
                    Ok(()) | Err(BlockError::NotFakeOffline(_)) => {}
                    Err(_) => return,
                }
            }
        }
        self.blocks.states.set(unit, BigState::Added);
        cx.adder.owed.extend(offline.iter().rev());
        while cx.adder.bring_online(cx.hotplug) == Ok(true) {}
    }
}

/// How the memory blocks of `unit` are used.
fn usage_of(cx: &Context<'_, '_, impl Platform>, unit: u64) -> Usage {
    let of_block = |(_, zone): (BlockId, Option<Zone>)| zone.map_or(Usage::Offline, Usage::Online);
    let together = |a: Usage, b: Usage| {
        let has_normal = [a, b].iter().any(|usage| usage.zone() == Some(Zone::Normal));
        if a == b { a } else { Usage::Mixed { has_normal } }
    };
    // Nor is a block online that somebody has removed.
    let is_whole = cx.added_blocks(unit).count() as u64 == cx.link.geometry.blocks_per_unit();
    let others = (!is_whole).then_some(Usage::Offline);
    cx.added_blocks(unit).map(of_block).chain(others).reduce(together).unwrap_or(Usage::Offline)
}

fn note_stuck(cx: &mut Context<'_, '_, impl Platform>, pass: &mut Pass, usage: Usage, stop: Stop) {
    if let Some(zone) = usage.zone() {
        cx.owners.note_stuck(zone, stop);
    }
    pass.stuck = Some(stop);
}
