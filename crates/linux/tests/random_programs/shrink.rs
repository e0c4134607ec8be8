//! Makes a failing program smaller: steps that it fails without are left out, and so are failures, threads and the rest
//! of what it does not need.

use pagefold_engine::Layout;
use pagefold_engine::hotplug::FakeOffline;

use crate::program::{Program, Schedule};

/// How many programs are tried at most.
const TRIES: usize = 3000;

/// The smallest program that was found to fail, and how it does. `fails` says how a program fails, if it does.
pub fn shrink(
    program: Program,
    wrong: String,
    mut fails: impl FnMut(&Program) -> Option<String>,
) -> (Program, String) {
    let mut tries = TRIES;
    let mut best = (program, wrong);
    let mut attempt = |best: &mut (Program, String), candidate: Program| {
        if tries == 0 || candidate == best.0 {
            return false;
        }
        tries -= 1;
        let wrong = fails(&candidate);
        if let Some(wrong) = wrong {
            *best = (candidate, wrong);
            return true;
        }
        false
    };
    // Without luck, if it fails without.
    let mut candidate = best.0.clone();
    candidate.setup.schedule = Schedule::Turns;
    attempt(&mut best, candidate);
    loop {
        let before = best.0.clone();
        let mut length = best.0.steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < best.0.steps.len() {
                let mut candidate = best.0.clone();
                candidate.steps.drain(at..(at + length).min(candidate.steps.len()));
                if !attempt(&mut best, candidate) {
                    at += length;
                }
            }
            if length == 1 {
                break;
            }
            length = length.div_ceil(2);
        }
        for at in 0..best.0.steps.len() {
            for change in [
                |program: &mut Program, at: usize| program.steps[at].fault = None,
                |program: &mut Program, at: usize| program.steps[at].thread = 0,
            ] {
                let mut candidate = best.0.clone();
                change(&mut candidate, at);
                attempt(&mut best, candidate);
            }
        }
        for change in [
            |program: &mut Program| _ = program.setup.online.pop(),
            |program: &mut Program| _ = program.setup.online.drain(..1.min(program.setup.online.len())),
            |program: &mut Program| program.setup.fake_offline = FakeOffline::Folded,
            |program: &mut Program| program.setup.layout = Layout::Folded,
            |program: &mut Program| program.setup.passes = 1,
            |program: &mut Program| program.setup.drops_in_threads = false,
        ] {
            let mut candidate = best.0.clone();
            change(&mut candidate);
            attempt(&mut best, candidate);
        }
        if best.0 == before {
            return best;
        }
    }
}
