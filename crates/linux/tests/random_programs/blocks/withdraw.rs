//! Parts of memory blocks are withdrawn.

use std::ops::Range;

use pagefold_engine::hotplug::{BlockError, Migrate, Wanted};

use super::mover::Mover;
use super::{AREA, Blocks, calmly};
use crate::failing::{Failing, has_struck};
use crate::ledger::{Outcome, ensure};

/// What is asked for, in areas.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub first: u64,
    pub areas: u64,
    pub piece: u64,
    pub most: u64,
    pub runs: usize,
    pub asks: bool,
}

impl<'e> Blocks<'e> {
    /// The pieces of a part that lie in online blocks of one zone.
    fn parts(&self, part: Part) -> Vec<Range<u64>> {
        let zone_of = |area: u64| self.known.get(&(area * AREA / self.size)).and_then(|block| block.zone);
        let first = part.first / part.piece * part.piece;
        let zone = zone_of(first);
        let mut parts: Vec<Range<u64>> = Vec::new();
        for start in (first..first + part.areas).step_by(part.piece as usize) {
            let piece = start..start + part.piece;
            if zone.is_none() || piece.clone().any(|area| zone_of(area) != zone) {
                continue;
            }
            match parts.last_mut() {
                Some(last) if last.end == piece.start * AREA => last.end = piece.end * AREA,
                _ => parts.push(piece.start * AREA..piece.end * AREA),
            }
        }
        parts
    }

    pub fn withdraw(&mut self, part: Part, mover: &mut Mover<'_, 'e>) -> Outcome {
        let parts = self.parts(part);
        let wanted =
            Wanted { parts: &parts, piece: part.piece * AREA, pages: part.most * AREA, runs: part.runs };
        let migrate = part.asks.then_some(&mut *mover as &mut dyn Migrate<'e, Failing>);
        let done = calmly(|| self.hotplug.withdraw(&wanted, migrate))?;
        mover.wrong()?;
        match done {
            Some(Ok(withdrawn)) => {
                let taken = withdrawn.taken();
                let pages: u64 = taken.iter().map(|run| run.end - run.start).sum();
                ensure!(
                    pages <= wanted.pages && taken.len() <= part.runs,
                    "{taken:x?} is more than {part:?}"
                );
                for run in taken {
                    let is_whole = run.start % wanted.piece == 0 && run.end % wanted.piece == 0;
                    let is_part = parts.iter().any(|part| part.start <= run.start && run.end <= part.end);
                    ensure!(is_whole && is_part, "{run:x?} was not wanted: {parts:x?}");
                    if let Some((pfn, number)) = mover.world.ledger.owned_in(run.clone()) {
                        return Err(format!("{run:x?} was withdrawn under page {pfn:#x} of folio {number}"));
                    }
                    for area in run.start / AREA..run.end / AREA {
                        let known = self.known.get_mut(&(area * AREA / self.size));
                        let was_plugged = known.is_some_and(|block| block.plugged.remove(&area));
                        ensure!(was_plugged, "area {area:#x} had no memory, and was withdrawn");
                        ensure!(!self.is_plugged(area), "area {area:#x} was withdrawn, and is there");
                    }
                    self.pulse.saw(if part.asks { "withdrawn" } else { "withdrawn where it was free" });
                }
            }
            Some(Err(BlockError::BadRange)) => ensure!(parts.is_empty(), "{parts:x?} was refused"),
            Some(Err(BlockError::OutOfMemory)) => ensure!(has_struck(), "nothing failed"),
            Some(Err(error)) => return Err(format!("{parts:x?} was not withdrawn: {error}")),
            None => {}
        }
        self.check()
    }
}
