//! Unplugging in sub-block mode: offline memory blocks first, which cost their owners nothing; then what is free, wherever it
//! is; then what owners can move. The movable zone before the normal one, partly plugged blocks before full ones, so that
//! whole blocks become free; from high to low.
//!
//! A step looks at a *window*: plugged sub-blocks of any number of memory blocks in one state. What can be had of it comes out
//! of use together, and goes back to the host in as few requests as there are runs. What is known to be pinned is left out.

use alloc::vec::Vec;
use core::ops::Range;

use pagefold_engine::hotplug::Withdrawn;
use pagefold_engine::{Pfn, Platform, Zone};
use pagefold_virtio_mem_spec::RequestType;

use crate::context::{Context, Taken};
use crate::owners::STEP_QUESTIONS;
use crate::stop::{Result, Stop};
use crate::sub::state::{SubState, Trigger};
use crate::sub::{Pass, SubMode};
use crate::window::{STEP_REQUESTS, Way, window_span};

const ORDER: [(SubState, Way); 10] = [
    (SubState::OfflinePartial, Way::Offline),
    (SubState::Offline, Way::Offline),
    (SubState::MovablePartial, Way::Free),
    (SubState::KernelPartial, Way::Free),
    (SubState::Movable, Way::Free),
    (SubState::Kernel, Way::Free),
    (SubState::MovablePartial, Way::Asking),
    (SubState::KernelPartial, Way::Asking),
    (SubState::Movable, Way::Asking),
    (SubState::Kernel, Way::Asking),
];

/// Runs that a window has at most.
const WINDOW_RUNS: usize = 1024;

/// Plugged sub-blocks that one step looks at, counted through all units.
struct Window {
    /// Runs of them, ascending.
    runs: Vec<Range<u64>>,
    /// Those left out, since something in them is pinned.
    pinned: Vec<u64>,
    /// All below was not looked at, and all from `end` on before.
    from: u64,
    end: u64,
}

impl SubMode {
    /// Looks at the next window of the pass, and unplugs up to `subs` sub-blocks of it. Removes memory blocks of which nothing
    /// is left.
    pub(crate) fn unplug(&mut self, cx: &mut Context<'_, '_, impl Platform>, subs: u64) -> Result {
        let all = self.blocks.states.used() * self.geometry.per_unit();
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                cx.owners.begin_pass();
                if self.all_is_pinned(cx)? {
                    return Err(Stop::PINNED);
                }
                Pass { order: 0, end: all, span: 0, paused: None, stuck: None }
            }
        };
        while let Some(&(state, way)) = ORDER.get(pass.order) {
            let span = window_span(pass.span, subs, self.geometry.sub_pages());
            let Some(window) = self.window(cx, pass.end, state, way, span)? else {
                (pass.order, pass.end, pass.span) = (pass.order + 1, all, 0);
                continue;
            };
            // The next step goes on here even if a panic of an owner ends this one.
            self.pass = Some(pass);
            let is_empty = window.runs.is_empty();
            let (end, stop) = match is_empty {
                true => (window.from, None),
                false => self.unplug_window(cx, &window, way, subs, &mut pass),
            };
            if way == Way::Asking {
                let pinned = window.pinned.iter().filter(|&&sub| sub >= end);
                pinned.for_each(|&sub| self.note_stuck(cx, &mut pass, sub, Stop::PINNED));
            }
            let removed = self.remove_emptied(cx, end..window.end, &mut pass);
            (pass.end, pass.span) = (end, span * 2);
            self.pass = Some(pass);
            removed?;
            match stop {
                Some(stop) => return Err(stop),
                None if !is_empty => return Ok(()),
                None => {}
            }
        }
        self.pass = None;
        Err(pass.stuck.unwrap_or(Stop::IN_USE))
    }

    /// Whether all that is plugged is known to be pinned, so that a pass would change nothing. It is noted as stuck then.
    fn all_is_pinned(&self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        if !self.unplug_online || !cx.owners.refusals.are_any() {
            return Ok(false);
        }
        let walker = cx.hotplug.engine().walker()?;
        let mut pinned = [0u64; 2];
        cx.owners.refusals.each_standing(&walker, |unit, sub| match self.blocks.states.get(unit).zone() {
            Some(Zone::Normal) if self.blocks.is_plugged(unit, sub) => pinned[0] += 1,
            Some(Zone::Movable) if self.blocks.is_plugged(unit, sub) => pinned[1] += 1,
            _ => {}
        });
        let all = self.blocks.plugged_bytes() / self.geometry.sub_block();
        if all == 0 || pinned[0] + pinned[1] != all {
            return Ok(false);
        }
        for (zone, count) in [Zone::Normal, Zone::Movable].into_iter().zip(pinned) {
            (0..count).for_each(|_| cx.owners.note_stuck(zone, Stop::PINNED));
        }
        Ok(true)
    }

    /// The next window below `end` of memory blocks in `state`.
    fn window(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        end: u64,
        state: SubState,
        way: Way,
        span: u64,
    ) -> Result<Option<Window>> {
        let (states, per) = (&self.blocks.states, self.geometry.per_unit());
        let is_allowed = self.unplug_online || state.zone().is_none();
        // A unit that the pass is within has changed its state since.
        let unit_below = |end: u64| {
            let within = Some(end / per).filter(|_| !end.is_multiple_of(per));
            let is_same = |unit: &u64| {
                let now = states.get(*unit);
                now.is_added() && now.zone() == state.zone()
            };
            within.filter(is_same).or_else(|| states.last(end / per, state))
        };
        if !is_allowed || unit_below(end).is_none() {
            return Ok(None);
        }
        let walker = cx.hotplug.engine().walker()?;
        let mut window = Window { runs: Vec::new(), pinned: Vec::new(), from: end, end };
        let mut top = None;
        while window.from > 0 {
            let Some(unit) = unit_below(window.from) else {
                window.from = 0;
                break;
            };
            window.from = window.from.min((unit + 1) * per);
            let bottom = top.map_or(0, |top: u64| top.saturating_sub(span));
            let below = window.from - unit * per;
            let Some(run) = self.blocks.last_run(unit, below) else {
                window.from = unit * per;
                continue;
            };
            let mut run = unit * per + run.start..unit * per + run.end;
            let last = run.end - 1;
            if way != Way::Offline && cx.owners.refusals.stands(&walker, unit, last % per) {
                window.pinned.try_reserve(1).map_err(|_| Stop::NO_MEMORY)?;
                window.pinned.push(last);
                window.from = last;
                continue;
            }
            top = top.or(Some(run.end));
            if last < bottom || window.runs.len() >= WINDOW_RUNS {
                window.from = run.end;
                break;
            }
            run.start = run.start.max(bottom);
            if way != Way::Offline && cx.owners.refusals.has_any(unit) {
                let stands = |sub: &u64| cx.owners.refusals.stands(&walker, unit, sub % per);
                run.start = (run.start..last).rev().find(stands).map_or(run.start, |sub| sub + 1);
            }
            window.from = run.start;
            match window.runs.last_mut() {
                Some(above) if above.start == run.end => above.start = run.start,
                _ => {
                    window.runs.try_reserve(1).map_err(|_| Stop::NO_MEMORY)?;
                    window.runs.push(run);
                }
            }
        }
        window.runs.reverse();
        Ok(Some(window))
    }

    /// Unplugs what can be had of a window. Returns the sub-block from which on everything was looked at, and what ends the
    /// step.
    fn unplug_window(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        way: Way,
        subs: u64,
        pass: &mut Pass,
    ) -> (u64, Option<Stop>) {
        let done = cx.link.heed().and_then(|()| match way {
            Way::Offline => self.unplug_offline(cx, window, subs),
            Way::Free | Way::Asking => self.unplug_online(cx, window, way, subs, pass),
        });
        // Whatever stopped it, the same window is looked at again.
        done.unwrap_or_else(|stop| (window.end, Some(stop)))
    }

    fn unplug_offline(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        subs: u64,
    ) -> Result<(u64, Option<Stop>)> {
        let mut left = subs;
        let mut from = window.from;
        let mut runs = Vec::new();
        runs.try_reserve_exact(window.runs.len()).map_err(|_| Stop::NO_MEMORY)?;
        for run in window.runs.iter().rev() {
            if left == 0 || runs.len() >= STEP_REQUESTS {
                from = run.end;
                break;
            }
            let start = run.start.max(run.end.saturating_sub(left));
            left -= run.end - start;
            runs.push(start..run.end);
        }
        runs.reverse();
        self.give_to_host(cx, &runs, false)?;
        Ok((from, None))
    }

    fn unplug_online(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        way: Way,
        subs: u64,
        pass: &mut Pass,
    ) -> Result<(u64, Option<Stop>)> {
        let Taken { runs, considered_from, withdrawn } = cx.withdraw(&window.runs, subs, way)?;
        self.give_to_host(cx, &runs, true)?;
        let from = match window.runs.first() {
            Some(run) if run.start < considered_from => considered_from,
            _ => window.from,
        };
        if way == Way::Free {
            return Ok((from, None));
        }
        self.note_fates(cx, window, from, &withdrawn, pass);
        if !withdrawn.lacks_room() {
            return Ok((from, None));
        }
        Ok(self.without_room(cx, considered_from, from, pass))
    }

    /// Notes what stays of a window from sub-block `from` on, and why.
    fn note_fates(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        window: &Window,
        from: u64,
        withdrawn: &Withdrawn,
        pass: &mut Pass,
    ) {
        let lacking = Some(withdrawn.considered_from()).filter(|_| withdrawn.lacks_room());
        for sub in window.runs.iter().flat_map(Range::clone).filter(|&sub| sub >= from) {
            let pages = self.geometry.pages(0, sub..sub + 1);
            if lacking == Some(Pfn(pages.start)) {
                continue;
            }
            if let Some(stop) = Stop::of_fates(withdrawn, &pages) {
                self.note_stuck(cx, pass, sub, stop);
            }
        }
    }

    /// What follows from a copy without memory, or a question too many, at sub-block `sub`.
    fn without_room(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        sub: u64,
        from: u64,
        pass: &mut Pass,
    ) -> (u64, Option<Stop>) {
        let Some(spent) = cx.owners.questions.spent() else {
            self.note_stuck(cx, pass, sub, Stop::NO_ROOM);
            return (from, Some(Stop::NO_ROOM));
        };
        let before = pass.paused.filter(|&(at, _)| at == sub).map_or(0, |(_, times)| times);
        pass.paused = Some((sub, before + 1));
        // As many pauses as all folios of a sub-block can make necessary, were each asked about twice. Where hardly any
        // moves, one is enough to know that.
        let most = if spent == Stop::Paused { self.geometry.sub_pages() / STEP_QUESTIONS * 2 + 1 } else { 1 };
        if before < most {
            return (sub + 1, None);
        }
        self.note_stuck(cx, pass, sub, Stop::IN_USE);
        (from, None)
    }

    fn note_stuck(&self, cx: &mut Context<'_, '_, impl Platform>, pass: &mut Pass, sub: u64, stop: Stop) {
        if let Some(zone) = self.blocks.states.get(sub / self.geometry.per_unit()).zone() {
            cx.owners.note_stuck(zone, stop);
        }
        pass.stuck = Some(stop);
    }

    /// Gives runs of plugged sub-blocks that nobody uses back to the host, from high to low. If it does not take one, or wants
    /// something else by now, the rest is as before.
    fn give_to_host(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        runs: &[Range<u64>],
        is_online: bool,
    ) -> Result {
        for (index, run) in runs.iter().enumerate().rev() {
            let units = self.units_of(run);
            for unit in units.clone() {
                // The state before the request: the block must not come online as if it were full.
                if self.blocks.states.get(unit) == SubState::Offline {
                    self.blocks.apply(unit, Trigger::Partly);
                }
            }
            let bytes = self.geometry.bytes(0, run.clone());
            let heeded = cx.link.heed();
            let done = heeded.and_then(|()| cx.change(RequestType::Unplug, units.clone(), bytes));
            if done.is_ok() {
                self.each_part(run, |unit, subs| self.blocks.set_plugged(unit, subs, false));
            } else if is_online {
                // In doubt it stays out of use, since there may be no memory behind it, and the next steps settle it.
                let last = if cx.gate.doubtful().is_some() { index } else { index + 1 };
                self.put_back(cx, runs.get(..last).unwrap_or_default());
            }
            units.for_each(|unit| self.sync_full(unit));
            done?;
        }
        Ok(())
    }

    /// Puts sub-blocks that were taken out of use back to it.
    fn put_back(&self, cx: &mut Context<'_, '_, impl Platform>, runs: &[Range<u64>]) {
        for run in runs {
            self.each_part(run, |unit, subs| {
                if cx.hotplug.fake_online(self.geometry.pages(unit, subs)).is_err() {
                    cx.gate.doubt(unit..unit + 1);
                }
            });
        }
    }

    /// The units that a run of sub-blocks lies in.
    fn units_of(&self, run: &Range<u64>) -> Range<u64> {
        let per = self.geometry.per_unit();
        run.start / per..run.end.div_ceil(per)
    }

    /// Calls `part` with the sub-blocks of each unit that a run has.
    fn each_part(&self, run: &Range<u64>, mut part: impl FnMut(u64, Range<u64>)) {
        let per = self.geometry.per_unit();
        for unit in self.units_of(run) {
            let all = unit * per..(unit + 1) * per;
            part(unit, run.start.max(all.start) - all.start..run.end.min(all.end) - all.start);
        }
    }

    /// Removes the memory blocks of which nothing is plugged any more, among those that `subs` lie in.
    fn remove_emptied(
        &self,
        cx: &mut Context<'_, '_, impl Platform>,
        subs: Range<u64>,
        pass: &mut Pass,
    ) -> Result {
        for unit in self.units_of(&subs).rev() {
            if self.blocks.states.get(unit).is_added() && self.blocks.plugged_in(unit) == 0 {
                match self.remove(cx, unit) {
                    Err(stuck) if stuck.is_stuck() => pass.stuck = Some(stuck),
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// Removes a memory block whose sub-blocks are all unplugged. If that fails it stays, empty.
    fn remove(&self, cx: &mut Context<'_, '_, impl Platform>, unit: u64) -> Result {
        let block = self.block(unit);
        if self.blocks.states.get(unit).zone().is_some() {
            cx.offline(block)?;
        }
        cx.hotplug.remove(block)?;
        self.blocks.apply(unit, Trigger::Gone);
        cx.owners.refusals.forget(unit);
        Ok(())
    }

    /// Removes a block that stayed behind, empty. Whether there was one.
    pub(crate) fn remove_empty(&mut self, cx: &mut Context<'_, '_, impl Platform>) -> Result<bool> {
        let states = &self.blocks.states;
        let partial = [SubState::OfflinePartial, SubState::MovablePartial, SubState::KernelPartial];
        if partial.into_iter().all(|state| states.count(state) == 0) {
            return Ok(false);
        }
        let is_empty = |unit| partial.contains(&states.get(unit)) && self.blocks.plugged_in(unit) == 0;
        let Some(unit) = (0..states.used()).rev().find(|&unit| is_empty(unit)) else { return Ok(false) };
        self.remove(cx, unit)?;
        Ok(true)
    }
}
