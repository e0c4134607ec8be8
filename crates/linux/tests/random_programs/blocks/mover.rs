//! Who is asked to move folios out of memory blocks.

use std::panic::resume_unwind;

use pagefold_engine::PageKind;
use pagefold_engine::hotplug::{Migrate, Migration};

use super::OnPurpose;
use crate::actor::{Handle, Held, World};
use crate::failing::{Failing, spared};
use crate::ledger::{Outcome, Shared, Status};
use crate::program::Answer;

/// The owner of what one thread holds, asked to move it.
pub struct Mover<'a, 'e> {
    pub world: &'a World<'e>,
    held: &'a mut Vec<Held<'e>>,
    answer: Answer,
    wrong: Option<String>,
}

impl<'a, 'e> Mover<'a, 'e> {
    pub fn new(world: &'a World<'e>, held: &'a mut Vec<Held<'e>>, answer: Answer) -> Self {
        Self { world, held, answer, wrong: None }
    }

    /// What was found to be wrong while it was asked.
    pub fn wrong(&mut self) -> Outcome {
        self.wrong.take().map_or(Ok(()), Err)
    }

    fn asked(&mut self, folio: Shared<'e>) -> Outcome<Migration> {
        if folio.kind() == PageKind::Offline {
            return Ok(Migration::Unmovable);
        }
        let number = self.world.ledger.check(&folio)?;
        Ok(match self.answer {
            Answer::Moves => self.moves(folio, number)?,
            Answer::Busy => Migration::Busy,
            Answer::NoMemory => Migration::NoMemory,
            Answer::Unmovable => Migration::Unmovable,
            Answer::Lies => Migration::Moved,
            Answer::Keeps => {
                self.world.ledger.take(number);
                self.held.push(Held { handle: Handle::Shared(folio), number });
                Migration::Moved
            }
            Answer::Frees => {
                let all = self.held.drain(..);
                let (mine, others): (Vec<_>, Vec<_>) = all.partition(|held| held.number == number);
                *self.held = others;
                for held in mine {
                    held.end(self.world)?;
                }
                Migration::Moved
            }
            Answer::Panics => resume_unwind(Box::new(OnPurpose)),
        })
    }

    fn moves(&mut self, folio: Shared<'e>, number: u32) -> Outcome<Migration> {
        let World { engine, ledger, .. } = *self.world;
        if !self.held.iter().any(|held| held.number == number) {
            return Ok(Migration::Unmovable);
        }
        let asked = ledger.now();
        let Some(kind) = folio.kind().owned() else { return Ok(Migration::Unmovable) };
        let Ok(mut copy) = engine.alloc_movable(folio.order(), kind) else {
            return Ok(Migration::NoMemory);
        };
        let moved = match ledger.begin(&mut copy, asked) {
            Ok(moved) => moved,
            Err(wrong) => {
                std::mem::forget(copy);
                return Err(wrong);
            }
        };
        ledger.set_status(moved, Status::Shared);
        let copy = copy.share();
        for held in self.held.iter_mut().filter(|held| held.number == number) {
            let another = copy.get().map_err(|error| error.to_string())?;
            ledger.take(moved);
            let new = Held { handle: Handle::Shared(another), number: moved };
            std::mem::replace(held, new).end(self.world)?;
        }
        self.world.pulse.saw("moved");
        ledger.put(moved);
        Ok(Migration::Moved)
    }
}

impl<'e> Migrate<'e, Failing> for Mover<'_, 'e> {
    fn migrate(&mut self, folio: Shared<'e>) -> Migration {
        spared(|| {
            self.asked(folio).unwrap_or_else(|wrong| {
                self.wrong = Some(wrong);
                Migration::Unmovable
            })
        })
    }
}
