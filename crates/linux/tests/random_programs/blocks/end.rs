//! All blocks go, at the end of a program.

use pagefold_engine::geometry::PAGES_PER_SECTION;
use pagefold_engine::{Kind, Order, Pfn, Zone};

use super::mover::Mover;
use super::{Block, Blocks};
use crate::actor::World;
use crate::ledger::{Outcome, ensure};
use crate::program::{Answer, Report};

impl<'e> Blocks<'e> {
    /// Every block goes, unless a folio lies in it that was leaked; then what is left is boot memory. And one comes back.
    pub fn end(&mut self, world: &World<'e>) -> Outcome {
        let all: Vec<(u64, Block)> = self.known.iter().map(|(&id, block)| (id, block.clone())).collect();
        for (id, block) in all {
            let mut held = Vec::new();
            let mut mover = Mover::new(world, &mut held, Answer::Unmovable);
            let is_leaked = world.ledger.owned_in(self.pages(id)).is_some();
            if block.zone.is_some() {
                self.offline(id, &mut mover, false)?;
                let is_gone = self.known[&id].zone.is_none();
                ensure!(
                    is_gone != is_leaked,
                    "block {id} went offline: {is_gone}; leaked folios: {is_leaked}"
                );
            }
            if !is_leaked {
                self.remove(id)?;
            }
        }
        let Some(free) = (0..world.ledger.pages() / self.size)
            .find(|id| !self.known.contains_key(id) && self.pages(*id).start >= self.boot.end)
        else {
            return Ok(());
        };
        self.add(free, 1)?;
        self.online(free, Some(Zone::Movable), Report::Nothing)?;
        for pfn in self.pages(free).step_by(PAGES_PER_SECTION as usize) {
            let pfn = (pfn..).find(|&pfn| !world.ledger.is_poisoned(pfn)).unwrap_or(pfn);
            let folio = self.hotplug.engine().alloc_at(Pfn(pfn), Order::ZERO, Kind::Anon);
            drop(folio.map_err(|error| format!("a block came back, and {pfn:#x} is not free: {error}"))?);
        }
        let mut held = Vec::new();
        self.offline(free, &mut Mover::new(world, &mut held, Answer::Unmovable), false)?;
        self.remove(free)
    }
}
