//! Who listens to changes of memory blocks, and says what memory is there.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Mutex;

use pagefold_engine::hotplug::{BlockChange, Event, Listener, Veto};
use pagefold_engine::{Kind, Order, Pfn};

use super::{AREA, OnPurpose};
use crate::actor::{Handle, Held};
use crate::failing::{Machine, spared};
use crate::ledger::Ledger;
use crate::program::Report;

#[derive(Clone, Copy)]
pub struct Now {
    pub report: Report,
    pub vetoes_offline: bool,
}

/// A listener that says what it is told to say.
pub struct Reporter<'e> {
    pub engine: &'e Machine,
    pub ledger: &'e Ledger,
    pub now: Mutex<Now>,
    pub taken: Mutex<Vec<Held<'e>>>,
    pub wrong: Mutex<Option<String>>,
}

impl Reporter<'_> {
    fn take(&self, first: u64) {
        let asked = self.ledger.now();
        let Ok(mut folio) = self.engine.alloc_at(Pfn(first), Order::ZERO, Kind::File) else { return };
        match self.ledger.begin(&mut folio, asked) {
            Ok(number) => self.taken.lock().unwrap().push(Held { handle: Handle::Frozen(folio), number }),
            Err(wrong) => {
                std::mem::forget(folio);
                *self.wrong.lock().unwrap() = Some(wrong);
            }
        }
    }
}

impl Listener for Reporter<'_> {
    fn notify(&self, event: Event, _: &BlockChange) -> Result<(), Veto> {
        spared(|| {
            let Now { report, vetoes_offline } = *self.now.lock().unwrap();
            match event {
                Event::GoingOnline if report == Report::PanicsAtOnce => resume_unwind(Box::new(OnPurpose)),
                Event::GoingOnline if report == Report::Vetoes => Err(Veto::Refused("not now")),
                Event::GoingOffline if vetoes_offline => Err(Veto::Refused("not now")),
                _ => Ok(()),
            }
        })
    }

    fn plugged(&self, pages: &Range<u64>, part: &mut dyn FnMut(Range<u64>)) -> bool {
        let report = self.now.lock().unwrap().report;
        let first = pages.start..pages.start + AREA;
        let mask = match report {
            Report::Areas(mask) | Report::Twice(mask) => mask,
            Report::Beyond => {
                part(pages.start.saturating_sub(77)..pages.end + 3 * AREA + 5);
                return true;
            }
            Report::Taking => {
                part(first.clone());
                spared(|| self.take(first.start + 3));
                part(first);
                return true;
            }
            Report::Panics => {
                part(first);
                // To unwind takes memory as well.
                spared::<u64>(|| resume_unwind(Box::new(OnPurpose)))
            }
            Report::Nothing | Report::Vetoes | Report::PanicsAtOnce => return false,
        };
        for area in (pages.start / AREA..pages.end / AREA).filter(|area| mask >> (area % 64) & 1 != 0) {
            part(area * AREA..(area + 1) * AREA);
            if matches!(report, Report::Twice(_)) {
                part(area * AREA..(area + 1) * AREA);
            }
        }
        true
    }
}
