//! What walkers do.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use pagefold_engine::{Miss, PageKind, Pfn, Poisoned, Walker};

use crate::actor::Actor;
use crate::failing::{Failing, armed, has_struck};
use crate::ledger::{Outcome, Status, ensure};
use crate::program::Place;

impl<'e> Actor<'_, 'e> {
    pub fn new_walker(&mut self) -> Outcome {
        match armed(|| self.world.engine.walker()) {
            Ok(walker) => self.walkers.push(walker),
            Err(_) => ensure!(has_struck(), "no memory for a walker, and nothing failed"),
        }
        Ok(())
    }

    /// Takes a walker, to be put back; a new one if there is none.
    fn walker(&mut self) -> Option<Walker<'e, Failing>> {
        self.walkers.pop().or_else(|| self.world.engine.walker().ok())
    }

    pub fn try_get(&mut self, at: Place, keep: bool) -> Outcome {
        let pfn = self.page(at);
        let Some(walker) = self.walker() else { return Ok(()) };
        let done = self.look(&walker, pfn, keep);
        self.walkers.push(walker);
        done
    }

    fn look(&mut self, walker: &Walker<'e, Failing>, pfn: u64, keep: bool) -> Outcome {
        let expected = self.ledger().owner(pfn).map(|number| (number, self.ledger().status(number)));
        match armed(|| walker.try_get(Pfn(pfn))) {
            Ok(folio) if folio.kind() == PageKind::Offline => {
                self.saw("found offline");

                ensure!(!self.world.is_exact || expected.is_none(), "{pfn:#x} is in use, and found offline");
                Ok(())
            }
            Ok(folio) => {
                self.saw(if folio.pfn().0 == pfn { "found at its head" } else { "found at a tail" });
                ensure!(folio.contains(Pfn(pfn)), "{folio:?} does not have page {pfn:#x}");
                let number = self.ledger().check(&folio)?;
                if self.world.is_exact {
                    let is_expected = expected == Some((number, Status::Shared));
                    ensure!(is_expected, "{folio:?} was found at {pfn:#x}, where {expected:?} is");
                }
                self.ledger().take(number);
                if keep {
                    self.hold_shared(folio, number);
                } else {
                    self.ledger().check(&folio)?;
                    self.ledger().put(number);
                    armed(|| drop(folio));
                }
                Ok(())
            }
            Err(miss) => {
                self.saw(match miss {
                    Miss::Frozen => "missed what is frozen",
                    Miss::Offline => "missed what is offline",
                    Miss::Absent => "missed what is absent",
                    _ => "missed what is free",
                });
                let is_right = match expected {
                    Some((_, Status::Shared)) => false,
                    Some((_, Status::Frozen)) => miss == Miss::Frozen,
                    None => matches!(miss, Miss::Absent | Miss::Offline | Miss::Free | Miss::Frozen),
                };
                ensure!(!self.world.is_exact || is_right, "{miss:?} at {pfn:#x}, where {expected:?} is");
                ensure!(miss != Miss::Stray, "a stray write at {pfn:#x}");
                Ok(())
            }
        }
    }

    pub fn peek(&mut self, at: Place) -> Outcome {
        let pfn = self.page(at);
        let Some(walker) = self.walker() else { return Ok(()) };
        let peek = armed(|| walker.peek(Pfn(pfn)));
        self.walkers.push(walker);
        ensure!(peek.is_some() == (pfn < self.engine().pages()), "{peek:?} at {pfn:#x}");
        let Some(peek) = peek.filter(|_| self.world.is_exact) else { return Ok(()) };
        if let Some(folio) = self.ledger().folio(pfn) {
            let found = peek.head.map(|(head, state)| (head.0, state.order()));
            ensure!(found == Some(folio), "{peek:?} at {pfn:#x}, where {folio:x?} is");
        }
        Ok(())
    }

    /// Looks inside one section, where references may be taken and put, and the last put frees.
    pub fn section(&mut self, looks: &[Place]) -> Outcome {
        let Some(walker) = self.walker() else { return Ok(()) };
        let pages: Vec<u64> = looks.iter().map(|&at| self.page(at)).collect();
        let done = {
            let _section = walker.section();
            let done = pages.iter().try_for_each(|&pfn| self.look(&walker, pfn, pfn % 2 == 0));
            // What was taken inside may be put inside.
            done.and_then(|()| self.held.pop().map_or(Ok(()), |held| held.end(self.world)))
        };
        self.walkers.push(walker);
        done
    }

    pub fn poison(&mut self, at: Place) -> Outcome {
        let pfn = self.page(at);
        let Some(walker) = self.walker() else { return Ok(()) };
        let done = armed(|| walker.poison(Pfn(pfn)));
        self.walkers.push(walker);
        let was_known = self.ledger().is_poisoned(pfn);
        let is_exact = self.world.is_exact;
        match done {
            Ok(Poisoned::Known) => ensure!(!is_exact || was_known, "{pfn:#x} was never poisoned"),
            Ok(done) => {
                ensure!(!is_exact || !was_known, "{pfn:#x} was poisoned before");
                let is_withheld = done == Poisoned::Withheld;
                self.saw(if is_withheld { "poisoned free memory" } else { "poisoned memory in use" });

                let is_owned = self.ledger().owner(pfn).is_some();
                ensure!(!is_exact || !is_withheld || !is_owned, "{pfn:#x} was withheld from its owner");
                if self.world.is_all_free_in_reach() && !is_withheld && !is_owned {
                    let blocks = self.world.blocks.lock().unwrap();
                    ensure!(!blocks.has_memory(pfn), "{pfn:#x} is free, and was not withheld");
                }
                self.ledger().poisoned(pfn, is_withheld);
            }
            Err(pagefold_engine::PoisonError::OutOfMemory) => {
                ensure!(has_struck(), "no memory to note poison, and nothing failed");
            }
            Err(pagefold_engine::PoisonError::Absent) => {
                let is_there = self.ledger().owner(pfn).is_some();
                ensure!(!is_exact || !is_there, "{pfn:#x} is in use, and absent");
            }
        }
        Ok(())
    }

    pub fn defer(&mut self) -> Outcome {
        let ran = Arc::clone(&self.world.ran);
        let callback = Box::new(move || {
            ran.fetch_add(1, SeqCst);
        });
        match armed(|| self.world.engine.rcu().defer(callback)) {
            Ok(()) => _ = self.world.deferred.fetch_add(1, SeqCst),
            Err(_) => ensure!(has_struck(), "no memory to defer, and nothing failed"),
        }
        Ok(())
    }
}
