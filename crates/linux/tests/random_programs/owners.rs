//! What owners of folios do.

use crate::failing::TestDescriptors;
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::{AllocError, Frozen, Order, Pfn, Pieces, ReshapeError, Zone};

use crate::actor::{Actor, Handle, Held, kind, order};
use crate::failing::{Failing, armed, has_struck};
use crate::ledger::{Number, Outcome, Status, Whole, ensure};
use crate::program::{Place, Which};

impl<'e> Actor<'_, 'e> {
    pub fn alloc(&mut self, bits: u8, kind_bits: u8, movable: bool, share: bool) -> Outcome {
        let (order, kind, asked) = (order(bits), kind(kind_bits), self.ledger().now());
        let engine = self.engine();
        let done = armed(|| match movable {
            true => engine.alloc_movable(order, kind),
            false => engine.alloc(order, kind),
        });
        match done {
            Ok(folio) => {
                self.saw(if movable { "allocated to move" } else { "allocated" });
                ensure!(
                    folio.order() == order && folio.kind() == kind,
                    "asked for {order} {kind:?}: {folio:?}"
                );
                let is_right_zone = movable || engine.zone_of(folio.pfn()) == Zone::Normal;
                ensure!(is_right_zone, "{folio:?} cannot move, and lies in the movable zone");
                self.adopt(folio, asked, share)
            }
            Err(error) => self.refused(error, order, movable),
        }
    }

    /// Whether an allocation may fail like that.
    fn refused(&self, error: AllocError, order: Order, movable: bool) -> Outcome {
        match error {
            AllocError::NoBlock if self.world.is_all_free_in_reach() && !has_struck() => {
                let free = self.world.blocks.lock().unwrap().free_block(self.world, order, movable);
                self.saw("used up");
                ensure!(free.is_none(), "no memory for {order}, but {:#x} is free", free.unwrap_or(0));
                Ok(())
            }
            AllocError::NoBlock => Ok(()),
            AllocError::OutOfMemory => {
                self.saw("allocated without memory for descriptors");
                ensure!(
                    has_struck(),
                    "an allocation of {order} had no memory for descriptors, and nothing failed"
                );
                Ok(())
            }
            other => Err(format!("an allocation of {order}, wherever, failed: {other:?}")),
        }
    }

    fn adopt(&mut self, mut folio: Whole<'e>, asked: u64, share: bool) -> Outcome {
        let number = match self.ledger().begin(&mut folio, asked) {
            Ok(number) => number,
            Err(wrong) => {
                // It may be somebody else's.
                std::mem::forget(folio);
                return Err(wrong);
            }
        };
        self.hold_frozen(folio, number);
        if share { self.share((self.held.len() - 1) as Which) } else { Ok(()) }
    }

    pub fn alloc_at(&mut self, at: Place, bits: u8, share: bool) -> Outcome {
        let (order, kind) = (order(bits), kind(bits));
        let page = Pfn(self.page(at));
        // What is not aligned is asked for as well, now and then.
        let pfn = if page.0 % 16 == 15 { page } else { page.head(order) };
        let asked = self.ledger().now();
        let engine = self.engine();
        match armed(|| engine.alloc_at(pfn, order, kind)) {
            Ok(folio) => {
                self.saw("allocated there");
                ensure!(
                    folio.pfn() == pfn && folio.order() == order,
                    "asked for {order} at {pfn}: {folio:?}"
                );
                return self.adopt(folio, asked, share);
            }
            Err(AllocError::Misaligned) => ensure!(!pfn.is_aligned(order), "{pfn} is aligned to {order}"),
            Err(AllocError::OutOfMemory) => {
                ensure!(has_struck(), "no memory for {order} at {pfn}, and nothing failed")
            }
            Err(AllocError::Absent | AllocError::Busy) if self.world.is_all_free_in_reach() => {
                let blocks = self.world.blocks.lock().unwrap();
                let is_free = blocks.is_free(self.world, pfn.0, order);
                ensure!(!is_free, "{order} at {pfn} was refused, and is free");
            }
            Err(AllocError::Absent | AllocError::Busy) => {}
            Err(AllocError::NoBlock) => return Err(format!("{order} at {pfn} is said to be nowhere")),
        }
        Ok(())
    }

    pub fn exhaust(&mut self) -> Outcome {
        for bits in (9..=18).rev() {
            for _ in 0..8 {
                let before = self.held.len();
                self.alloc(bits, bits, true, bits % 2 == 0)?;
                if self.held.len() == before {
                    break;
                }
            }
        }
        Ok(())
    }

    pub fn share(&mut self, which: Which) -> Outcome {
        let Some((folio, number)) = self.take_frozen(which) else { return Ok(()) };
        self.ledger().check_frozen(&folio, number)?;
        self.ledger().set_status(number, Status::Shared);
        self.hold_shared(folio.share(), number);
        Ok(())
    }

    pub fn freeze(&mut self, which: Which) -> Outcome {
        let Some(held) = self.take_held(which) else { return Ok(()) };
        let Held { handle, number } = held.revived(self.engine());
        let handle = match handle {
            Handle::Shared(folio) => match folio.freeze() {
                Ok(folio) => {
                    let alive = self.ledger().alive(number);
                    self.saw("frozen");
                    ensure!(alive == 1, "{folio:?} froze with {alive} handles on it");
                    self.ledger().set_status(number, Status::Frozen);
                    Handle::Frozen(folio)
                }
                Err(folio) => {
                    let alive = self.ledger().alive(number);
                    ensure!(!self.world.is_exact || alive > 1, "the only handle did not freeze {folio:?}");
                    Handle::Shared(folio)
                }
            },
            other => other,
        };
        self.held.push(Held { handle, number });
        Ok(())
    }

    pub fn get(&mut self, which: Which) -> Outcome {
        let Some(at) = self.index(which) else { return Ok(()) };
        let Handle::Shared(folio) = &self.held[at].handle else { return Ok(()) };
        let another = folio.get().map_err(|error| format!("{folio:?}: {error}"))?;
        let number = self.ledger().check(&another)?;
        self.ledger().take(number);
        self.hold_shared(another, number);
        Ok(())
    }

    pub fn forget(&mut self, which: Which) -> Outcome {
        if let Some(held) = self.take_held(which) {
            // Its folio stays alive in the ledger for ever.
            self.saw("forgotten");
            std::mem::forget(held);
        }
        Ok(())
    }

    pub fn write(&mut self, which: Which, kind_bits: u8) -> Outcome {
        let Some((mut folio, number)) = self.take_frozen(which) else { return Ok(()) };
        self.ledger().check_frozen(&folio, number)?;
        // A walker that could see this would see nonsense.
        *folio.owner_mut() = [u64::MAX; 7];
        std::thread::yield_now();
        self.ledger().set_kind(number, &mut folio, kind(kind_bits));
        self.hold_frozen(folio, number);
        Ok(())
    }

    pub fn raw(&mut self, which: Which) -> Outcome {
        let Some(Held { handle, number }) = self.take_held(which) else { return Ok(()) };
        let handle = match handle {
            Handle::Shared(folio) => Handle::Raw(folio.into_raw()),
            Handle::Raw(raw) => Held { handle: Handle::Raw(raw), number }.revived(self.engine()).handle,
            frozen => frozen,
        };
        self.held.push(Held { handle, number });
        Ok(())
    }

    pub fn give(&mut self, which: Which) -> Outcome {
        if let Some(held) = self.take_held(which) {
            self.world.mail.lock().unwrap().push(held);
        }
        Ok(())
    }

    pub fn receive(&mut self) -> Outcome {
        let held = self.world.mail.lock().unwrap().pop();
        if let Some(held) = held {
            held.check(self.ledger())?;
            self.held.push(held);
        }
        Ok(())
    }

    // ---- reshaping ---------------------------------------------------------------------------------------------

    pub fn split(&mut self, which: Which, lower: u8, keep: u16, forget_rest: bool) -> Outcome {
        let Some((folio, number)) = self.take_frozen(which) else { return Ok(()) };
        self.ledger().check_frozen(&folio, number)?;
        let bits = folio.order().get() as u8;
        let to = order(bits.saturating_sub(lower));
        match armed(|| folio.split(to)) {
            Ok(pieces) => self.pieces(pieces, (number, order(bits), to), keep, forget_rest),
            Err((folio, error)) => {
                match error {
                    ReshapeError::NotSmaller => {
                        ensure!(to >= folio.order(), "{to} is smaller than {folio:?}")
                    }
                    _ if has_struck() => self.saw("split without memory"),
                    _ => ensure!(has_struck(), "{folio:?} was not split ({error}), and nothing failed"),
                }
                self.ledger().check_frozen(&folio, number)?;
                self.hold_frozen(folio, number);
                Ok(())
            }
        }
    }

    fn pieces(
        &mut self,
        mut pieces: Pieces<'e, Failing>,
        (number, whole, to): (Number, Order, Order),
        keep: u16,
        forget_rest: bool,
    ) -> Outcome {
        self.saw(if whole.get() > 15 { "split, larger than a section" } else { "split" });
        let head = self.ledger().head(number);
        // What is not kept is free, and on its way to others, as soon as it is dropped.
        self.ledger().put(number);
        let (count, expected) = (pieces.len() as u64, whole.pages() >> to.get());
        ensure!(count == expected, "{count} pieces of {to} out of {whole}");
        for at in 0..count.min(16) {
            let Some(mut piece) = pieces.next() else { return Err("a piece is missing".into()) };
            let pfn = head + (at << to.get());
            ensure!(piece.pfn().0 == pfn && piece.order() == to, "piece {at} of {head:#x}, {to}: {piece:?}");
            let data = *piece.owner();
            let is_right = if at == 0 { data[0] == u64::from(number) } else { data == [0; 7] };
            ensure!(is_right, "piece {at} of folio {number} has the data {data:x?}");
            if keep >> at & 1 != 0 {
                let number = self.ledger().reshaped(&mut piece)?;
                self.hold_frozen(piece, number);
            } else {
                armed(|| drop(piece));
            }
        }
        let rest = head + (count.min(16) << to.get())..head + whole.pages();
        if forget_rest {
            std::mem::forget(pieces);
            self.ledger().leak(rest);
        } else if !rest.is_empty() {
            armed(|| drop(pieces));
        }
        Ok(())
    }

    pub fn collapse(&mut self, which: Which, bits: u8) -> Outcome {
        let Some(at) = self.index(which) else { return Ok(()) };
        let order = order(bits);
        let first = Pfn(self.held[at].pfn()).head(order).0;
        let block = first..first + order.pages();
        let mut folios: Vec<(Whole<'e>, Number)> = Vec::new();
        let mut others = Vec::new();
        for Held { handle, number } in self.held.drain(..) {
            match handle {
                Handle::Frozen(folio) if block.contains(&folio.pfn().0) => folios.push((folio, number)),
                handle => others.push(Held { handle, number }),
            }
        }
        self.held = others;
        folios.sort_by_key(|(folio, _)| folio.pfn());
        let covered: u64 = folios.iter().map(|(folio, _)| folio.order().pages()).sum();
        let starts = folios.first().map(|(folio, _)| folio.pfn().0);
        let is_block = starts == Some(first) && covered == order.pages();
        let is_one_zone = (block.start..block.end)
            .step_by(1 << 15)
            .all(|page| self.engine().zone_of(Pfn(page)) == self.engine().zone_of(Pfn(first)));
        let (folios, numbers): (Vec<_>, Vec<_>) = folios.into_iter().unzip();
        match armed(|| Frozen::collapse(folios)) {
            Ok(mut whole) => {
                self.saw(if whole.order().get() > 8 { "collapsed, large" } else { "collapsed" });
                // A part of the block that is one itself will do as well.
                let pages = whole.order().pages();
                ensure!(
                    Some(whole.pfn().0) == starts && pages == covered,
                    "{whole:?} out of {covered} pages"
                );
                ensure!(is_one_zone || !is_block, "{whole:?} lies in two zones");
                ensure!(
                    whole.owner()[0] == u64::from(numbers[0]),
                    "{whole:?} does not have the first one's data"
                );
                let number = self.ledger().reshaped(&mut whole)?;
                numbers.into_iter().for_each(|number| self.ledger().put(number));
                self.hold_frozen(whole, number);
            }
            Err((folios, error)) => {
                ensure!(!is_block || !is_one_zone, "{order} at {first:#x} was not collapsed: {error}");
                ensure!(folios.len() == numbers.len(), "folios are gone");
                for (folio, number) in folios.into_iter().zip(numbers) {
                    self.ledger().check_frozen(&folio, number)?;
                    self.hold_frozen(folio, number);
                }
            }
        }
        Ok(())
    }

    pub fn unfold(&mut self, which: Which) -> Outcome {
        let Some((mut folio, number)) = self.take_frozen(which) else { return Ok(()) };
        let done = armed(|| folio.unfold());
        self.saw(if done.is_ok() { "unfolded" } else { "unfolded without memory" });
        ensure!(done.is_ok() || has_struck(), "{folio:?} was not unfolded, and nothing failed");
        ensure!(
            done.is_err() || !TestDescriptors::is_foldable(folio.order()) || folio.has_unfolded_tails(),
            "{folio:?} was unfolded, and has no tails"
        );
        self.ledger().check_frozen(&folio, number)?;
        self.hold_frozen(folio, number);
        Ok(())
    }
}
