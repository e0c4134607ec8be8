//! Folding, unfolding, and isolation.

use std::sync::atomic::Ordering::SeqCst;

use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{FoldReport, IsolateError, Order, PushError, Zone};

use crate::actor::Actor;
use crate::failing::{TestDescriptors, armed, has_struck};
use crate::ledger::{Outcome, ensure};
use crate::program::{Place, Which};

/// Nothing is refused but by a mapping that refuses.
fn check(report: FoldReport) -> Outcome {
    ensure!(report.refused == 0 || has_struck(), "{report:?}, and nothing was refused");
    Ok(())
}

impl Actor<'_, '_> {
    pub fn push(&mut self, which: Which) -> Outcome {
        if self.batch.is_none() {
            match armed(|| self.world.engine.fold_batch(usize::from(which % 4))) {
                Ok(batch) => self.batch = Some(batch),
                Err(_) => ensure!(has_struck(), "no memory for a batch, and nothing failed"),
            }
        }
        let Some((folio, number)) = self.take_frozen(which) else { return Ok(()) };
        let Some(batch) = &mut self.batch else {
            self.hold_frozen(folio, number);
            return Ok(());
        };
        match armed(|| batch.push(folio)) {
            Ok(()) => self.batched.push(number),
            Err((folio, PushError::Full)) => {
                ensure!(
                    batch.len() == batch.capacity(),
                    "{} of {} are too many",
                    batch.len(),
                    batch.capacity()
                );
                self.hold_frozen(folio, number);
            }
            Err((folio, error)) => {
                ensure!(error == PushError::OutOfMemory, "{folio:?} was not taken: {error}");
                ensure!(has_struck(), "{folio:?} was not noted, and nothing failed");
                self.ledger().check_frozen(&folio, number)?;
                self.hold_frozen(folio, number);
            }
        }
        Ok(())
    }

    pub fn commit(&mut self) -> Outcome {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let report = armed(|| batch.commit());
        if report.map_pages > 0 {
            self.saw("folded tails");
        }
        check(report)
    }

    pub fn drain(&mut self) -> Outcome {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let folios: Vec<_> = batch.drain().collect();
        ensure!(
            folios.len() == self.batched.len(),
            "{} folios of {} come back",
            folios.len(),
            self.batched.len()
        );
        for (folio, number) in folios.into_iter().zip(std::mem::take(&mut self.batched)) {
            self.ledger().check_frozen(&folio, number)?;
            self.hold_frozen(folio, number);
        }
        Ok(())
    }

    pub fn drop_batch(&mut self) -> Outcome {
        for number in self.batched.drain(..) {
            self.world.ledger.put(number);
        }
        armed(|| drop(self.batch.take()));
        Ok(())
    }

    // ---- free memory -------------------------------------------------------------------------------------------

    fn set_folding(&mut self, is_folding: bool) {
        match (self.is_folding, is_folding) {
            (false, true) => self.world.holding.fetch_add(1, SeqCst),
            (true, false) => self.world.holding.fetch_sub(1, SeqCst),
            _ => 0,
        };
        self.is_folding = is_folding;
    }

    pub fn new_folder(&mut self, batch: u8) -> Outcome {
        self.drop_folder()?;
        match armed(|| self.world.engine.folder(usize::from(batch))) {
            Ok(folder) => self.folder = Some(folder),
            Err(_) => ensure!(has_struck(), "no memory for a folder, and nothing failed"),
        }
        Ok(())
    }

    pub fn start_folder(&mut self) -> Outcome {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let is_folding = armed(|| folder.start());
        self.set_folding(is_folding);
        Ok(())
    }

    pub fn poll_folder(&mut self) -> Outcome {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let Some(report) = armed(|| folder.poll()) else {
            ensure!(!self.world.is_exact, "nobody is inside a section, and the grace period is not over");
            return Ok(());
        };
        self.set_folding(false);
        if report.map_pages > 0 {
            self.saw("folded free memory, polling");
        }
        check(report)
    }

    pub fn fold_batch(&mut self) -> Outcome {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let report = armed(|| folder.fold_batch());
        self.set_folding(false);
        check(report)
    }

    pub fn fold_all(&mut self) -> Outcome {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let report = armed(|| folder.fold_all());
        self.saw(match (report.map_pages, report.refused) {
            (_, 1..) => "refused to fold free memory",
            (map_pages, _) if map_pages >= TestDescriptors::MAP_PAGES_PER_SECTION => {
                "folded a section of free memory"
            }
            (1.., _) => "folded free memory",
            _ => "folded nothing",
        });

        self.set_folding(false);
        check(report)
    }

    pub fn drop_folder(&mut self) -> Outcome {
        armed(|| drop(self.folder.take()));
        self.set_folding(false);
        Ok(())
    }

    pub fn materialise_free(&mut self, at: Place, map_pages: u16) -> Outcome {
        let first = self.page(at);
        let pages = first..first + u64::from(map_pages) * 64;
        let done = armed(|| self.world.engine.materialise_free(pages));
        self.saw(if done.is_ok() { "materialised" } else { "materialised without memory" });
        ensure!(done.is_ok() || has_struck(), "free memory was not materialised, and nothing failed");
        Ok(())
    }

    // ---- isolation ---------------------------------------------------------------------------------------------

    pub fn isolate(&mut self, at: Place, areas: u16) -> Outcome {
        self.end_isolation()?;
        let engine = self.engine();
        let first = self.page(at) & !(Order::AREA.pages() - 1);
        let pages = first..first + u64::from(areas) * Order::AREA.pages();
        match armed(|| engine.isolate(pages.clone())) {
            Ok(isolated) => {
                self.saw("isolated");

                self.isolated = Some(isolated);
                self.world.holding.fetch_add(1, SeqCst);
            }
            Err(IsolateError::BadRange) => {
                let zone = |page| engine.zone_of(pagefold_engine::Pfn(page));
                let zones: Vec<Zone> = pages.clone().step_by(512).map(zone).collect();
                let is_good = pages.end <= engine.pages() && zones.iter().all(|&zone| zone == zones[0]);
                ensure!(!self.world.is_exact || !is_good, "{pages:x?} is in one zone, and was not isolated");
            }
            Err(IsolateError::Isolated) => {
                ensure!(!self.world.is_all_free_in_reach(), "{pages:x?} is isolated by nobody");
            }
            Err(_) => ensure!(has_struck(), "no memory to isolate {pages:x?}, and nothing failed"),
        }
        Ok(())
    }

    pub fn collect(&mut self) -> Outcome {
        let Some(isolated) = &mut self.isolated else { return Ok(()) };
        let pages = isolated.pages();
        let in_use = isolated.collect();
        let held = isolated.held_pages();
        ensure!(in_use + held <= pages.end - pages.start, "{in_use} and {held} of {pages:x?}");
        Ok(())
    }

    pub fn end_isolation(&mut self) -> Outcome {
        if let Some(isolated) = self.isolated.take() {
            armed(|| drop(isolated));
            self.world.holding.fetch_sub(1, SeqCst);
        }
        Ok(())
    }
}
