//! Descriptors that are objects: one a folio, allocated with it.
//!
//! Objects lie in a table as long as the machine has pages, since there are never more folios than that. Which of them are in
//! use says a frame allocator of their own, whose "pages" are objects; it is given more of the table as they are needed,
//! from the start on. A *group* of 256 objects, which is whole pages of memory for any size of object, gets its memory
//! together, when the first of them is used, and may lose it when none is. Each CPU keeps one object that a folio has just had
//! for the next folio; a folder, and an allocation that finds no memory, take those back.
//!
//! # What walkers may rely on
//!
//! An object may be another folio's the moment it is freed: a walker that read its number before may find the new folio's
//! state there, and take a reference. So it looks again, afterwards, at what led it there (see [`super::memdesc`]). But its
//! memory stays an object's until the walker has left its section: a group is folded a grace period after the last of its
//! objects was freed, and until then nobody can take one of them.

use alloc::vec::Vec;
use core::ops::Range;

use super::head::{Head, Owner, fresh_owner};
use crate::frames::claim::Claim;
use crate::frames::error::AllocError;
use crate::frames::{Frames, SLOTS};
use crate::geometry::{OBJECTS_PER_GROUP, Order, PAGE_SIZE, PAGES_PER_ROW, Pfn, Row, TREE_ORDER};
use crate::heap::{OutOfMemory, try_vec};
use crate::mapping::{FoldRange, Mapping, TableKind};
use crate::reserve::{NewError, Tables};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, CachePadded, MapWord, Ordering, OwnerCell, spin_loop};
use crate::table::{Table, TableEntry, View};

/// The descriptor of a folio: 16 bytes and the owner's data, rounded up to 16.
#[repr(C, align(16))]
pub struct Object<O> {
    pub(super) state: MapWord,
    /// The folio's first page. Written before the object is published, and read by walkers who may be mistaken.
    pub(super) pfn: MapWord,
    pub(super) owner: OwnerCell<O>,
}

impl<O: Owner> Head<O> for Object<O> {
    #[inline]
    fn state(&self) -> &MapWord {
        &self.state
    }
    #[inline]
    fn owner(&self) -> &OwnerCell<O> {
        &self.owner
    }
}

// SAFETY: `state` and `pfn` are atomics, and `owner` is reached only through a folio's handles: shared (`&O`, and `O: Sync`)
// or exclusive (`&mut O` of a frozen folio).
unsafe impl<O: Owner> Sync for Object<O> {}

// SAFETY: zero bytes are valid atomics and (FromZeros) a valid owner; the size is a multiple of 16 and at most 4096
// (`Object::SIZE_CHECK`); for mutation see the Sync impl.
unsafe impl<O: Owner> TableEntry for Object<O> {
    #[cfg(loom)]
    fn zero(has_gap: bool) -> Self {
        let word = || MapWord::folded(has_gap);
        Object { state: word(), pfn: word(), owner: OwnerCell::new(O::new_zeroed()) }
    }
    #[cfg(loom)]
    fn fold(&self, has_gap: bool) {
        self.owner.may_write();
        self.state.fold(has_gap);
        self.pfn.fold(has_gap);
    }
    #[cfg(loom)]
    fn materialise(&self) {
        self.pfn.materialise();
        if self.state.materialise() {
            // SAFETY: no other thread has memory that just came into being.
            unsafe { self.owner.get_mut().write(O::new_zeroed()) };
        }
    }
}

impl<O: Owner> Object<O> {
    const SIZE_CHECK: () = assert!(size_of::<Self>() <= PAGE_SIZE as usize, "the owner's data is too large");
}

/// Objects that come online at once.
const STEP: u64 = 1 << TREE_ORDER;

// States of a group.
const EMPTY: u8 = 0;
/// Its memory is in the making, by the owner of one of its objects.
const FILLING: u8 = 1;
const BACKED: u8 = 2;
const STATE: u8 = 3;
/// It may have no object in use any more. A hint for the folder.
const FOLDABLE: u8 = 4;

/// All objects of a machine.
pub(super) struct Objects<M, O> {
    objects: Table<Object<O>, M>,
    groups: Table<AtomicU8, M>,
    frames: Frames<M>,
    /// Objects from the start of the table that the allocator has been given.
    online: AtomicU64,
    /// Somebody is giving it more.
    extending: AtomicBool,
    /// Objects that folders have taken, and not given back yet.
    folding: AtomicU64,
    /// Objects that are set aside.
    aside: AtomicU64,
    /// For each CPU an object that a folio has just had, its number plus one; 0 for none. The next folio there takes it
    /// without asking the allocator. Folders give them back.
    slots: [CachePadded<AtomicU64>; SLOTS],
}

impl<M: Mapping, O: Owner> Objects<M, O> {
    pub(super) fn new<E, R: Fn(TableKind, u64) -> Result<M, E>>(
        tables: &Tables<R>,
    ) -> Result<Self, NewError<E>> {
        let () = Object::<O>::SIZE_CHECK;
        Ok(Self {
            objects: tables.table(TableKind::Objects)?,
            groups: tables.table(TableKind::ObjectGroups)?,
            frames: Frames::new(
                tables.table(TableKind::ObjectRows)?,
                tables.table(TableKind::ObjectLanes)?,
                tables.table(TableKind::ObjectTrees)?,
            ),
            online: AtomicU64::new(0),
            extending: AtomicBool::new(false),
            folding: AtomicU64::new(0),
            aside: AtomicU64::new(0),
            slots: core::array::from_fn(|_| CachePadded(AtomicU64::new(0))),
        })
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (TableKind, &M)> {
        let [rows, lanes, trees] = self.frames.mappings();
        [
            (TableKind::Objects, self.objects.mapping()),
            (TableKind::ObjectGroups, self.groups.mapping()),
            (TableKind::ObjectRows, rows),
            (TableKind::ObjectLanes, lanes),
            (TableKind::ObjectTrees, trees),
        ]
        .into_iter()
    }

    /// The objects, for walkers to keep.
    pub(super) fn view(&self) -> View<'_, Object<O>> {
        self.objects.view()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Object<O>> {
        self.objects.get(number)
    }

    pub(super) fn number_of(&self, object: &Object<O>) -> u64 {
        self.objects.index_of(object)
    }

    /// Objects in use. Exact while nothing moves.
    pub(super) fn in_use(&self) -> u64 {
        let taken = self.online.load(Ordering::Relaxed) - self.frames.free_pages();
        let in_slots = self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count() as u64;
        let unused = self.folding.load(Ordering::Relaxed) + self.aside.load(Ordering::Relaxed) + in_slots;
        taken.saturating_sub(unused)
    }

    /// Takes an object that no folio has, to be used later.
    pub(super) fn set_aside(&self, cpu: usize) -> Result<u64, OutOfMemory> {
        let (number, _) = self.alloc(cpu)?;
        // Relaxed, as below: it is only counted.
        self.aside.fetch_add(1, Ordering::Relaxed);
        Ok(number)
    }

    /// An object that was set aside, for a folio.
    pub(super) fn take_aside(&self, number: u64) -> Result<(u64, &Object<O>), OutOfMemory> {
        let object = self.get(number).ok_or(OutOfMemory)?;
        self.aside.fetch_sub(1, Ordering::Relaxed);
        Ok((number, object))
    }

    /// Takes an object: its state is 0, and the owner's data as in a fresh descriptor.
    #[inline]
    pub(super) fn alloc(&self, cpu: usize) -> Result<(u64, &Object<O>), OutOfMemory> {
        match self.slots.get(cpu % SLOTS).and_then(|slot| self.take_from(slot)) {
            Some(taken) => Ok(taken),
            // Where there is no memory for one more, another CPU may have one at hand.
            None => self.alloc_new(cpu).or_else(|out_of_memory| {
                self.slots.iter().find_map(|slot| self.take_from(slot)).ok_or(out_of_memory)
            }),
        }
    }

    /// The object in a slot. Its group has memory: it was never free, so nobody has taken that away.
    #[inline]
    fn take_from(&self, slot: &AtomicU64) -> Option<(u64, &Object<O>)> {
        if slot.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // Acquire: pairs with the Release of `free_near`.
        let number = slot.swap(0, Ordering::Acquire).checked_sub(1)?;
        Some((number, self.get(number)?))
    }

    /// Gives the objects in slots back.
    fn empty_slots(&self) {
        for slot in &self.slots {
            if let Some((number, _)) = self.take_from(slot) {
                self.give_back(number);
            }
        }
    }

    fn alloc_new(&self, cpu: usize) -> Result<(u64, &Object<O>), OutOfMemory> {
        let number = loop {
            let online = self.online.load(Ordering::Acquire);
            // One object is taken, or not.
            match self.frames.alloc(Order::ZERO, cpu, |_| ()) {
                Ok(Pfn(number)) => break number,
                Err(AllocError::OutOfMemory) => return Err(OutOfMemory),
                Err(_) => self.extend(online)?,
            }
        };
        match self.fill(number / OBJECTS_PER_GROUP).and_then(|()| self.get(number).ok_or(OutOfMemory)) {
            Ok(object) => Ok((number, object)),
            Err(out_of_memory) => {
                self.give_back(number);
                Err(out_of_memory)
            }
        }
    }

    /// Gives an object back. Nothing names it any more. Allocates nothing.
    pub(super) fn free(&self, number: u64, object: &Object<O>) {
        Self::end(object);
        self.give_back(number);
    }

    /// The same, and the next folio of that CPU gets it, if it has no other.
    #[inline]
    pub(super) fn free_near(&self, number: u64, object: &Object<O>, cpu: usize) {
        Self::end(object);
        let is_kept = self.slots.get(cpu % SLOTS).is_some_and(|slot| {
            // Release: what the old owner did happens before what the next one does.
            slot.load(Ordering::Relaxed) == 0
                && slot.compare_exchange(0, number + 1, Ordering::Release, Ordering::Relaxed).is_ok()
        });
        if !is_kept {
            self.give_back(number);
        }
    }

    /// Ends an object's life with a folio.
    #[inline]
    fn end(object: &Object<O>) {
        // SAFETY: the caller owns the object, and no folio has it.
        unsafe { object.owner.get_mut().write(fresh_owner()) };
        // Release: a CPU that sees the zero also sees that the folio is over.
        object.state.store(0, Ordering::Release);
    }

    fn give_back(&self, number: u64) {
        // Release: what the old owner did happens before what the next one does.
        let given = self.frames.free(Pfn(number), Order::ZERO);
        debug_assert!(given.is_ok(), "object {number} was not in use");
        let row = Pfn(number).row();
        if self.frames.taken_mask(row) == 0
            && let Some(group) = self.groups.get(number / OBJECTS_PER_GROUP)
            && group.load(Ordering::Relaxed) & FOLDABLE == 0
        {
            group.fetch_or(FOLDABLE, Ordering::Release);
        }
    }

    /// Gives the allocator more objects, unless somebody else has since it had `online`.
    #[cold]
    fn extend(&self, online: u64) -> Result<(), OutOfMemory> {
        // Acquire: pairs with the Release below, so that the tables are seen as the last one left them.
        while self.extending.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spin_loop();
        }
        let done =
            if self.online.load(Ordering::Relaxed) == online { self.extend_alone(online) } else { Ok(()) };
        self.extending.store(false, Ordering::Release);
        done
    }

    fn extend_alone(&self, online: u64) -> Result<(), OutOfMemory> {
        let more = online..(online + STEP).min(self.objects.len());
        if more.is_empty() {
            return Err(OutOfMemory);
        }
        self.frames.prepare_online(&more)?;
        self.groups.materialise(more.start / OBJECTS_PER_GROUP..more.end.div_ceil(OBJECTS_PER_GROUP))?;
        self.frames.online(more.clone());
        // Release: who sees the number may use the groups' bytes.
        self.online.store(more.end, Ordering::Release);
        Ok(())
    }

    /// Puts memory behind a group, of which the caller owns an object. Owners of others may do the same at the same time.
    /// Nothing is changed on an error.
    #[inline]
    fn fill(&self, group: u64) -> Result<(), OutOfMemory> {
        let Some(byte) = self.groups.get(group) else { return Err(OutOfMemory) };
        // Acquire: pairs with the Release in `fill_empty`, so that the memory is there.
        if byte.load(Ordering::Acquire) & STATE == BACKED { Ok(()) } else { self.fill_empty(group, byte) }
    }

    #[cold]
    fn fill_empty(&self, group: u64, byte: &AtomicU8) -> Result<(), OutOfMemory> {
        loop {
            let now = byte.load(Ordering::Acquire);
            match now & STATE {
                BACKED => return Ok(()),
                FILLING => spin_loop(),
                _ => {
                    let filling = now & !STATE | FILLING;
                    // Acquire: pairs with the Release of the folder.
                    if byte.compare_exchange(now, filling, Ordering::Acquire, Ordering::Relaxed).is_err() {
                        continue;
                    }
                    let first = group * OBJECTS_PER_GROUP;
                    let done =
                        self.objects.materialise(first..(first + OBJECTS_PER_GROUP).min(self.objects.len()));
                    // The state is the caller's until here; others may only set the hint.
                    byte.fetch_add(
                        if done.is_ok() { BACKED - FILLING } else { EMPTY.wrapping_sub(FILLING) },
                        Ordering::Release,
                    );
                    return done;
                }
            }
        }
    }

    /// For the protocols that do not wait: whether an object has no memory.
    pub(super) fn is_folded(&self, number: u64) -> bool {
        self.groups
            .get(number / OBJECTS_PER_GROUP)
            .is_none_or(|byte| byte.load(Ordering::Acquire) & STATE == EMPTY)
    }

    /// The memory of a group.
    fn range_of(&self, group: u64) -> FoldRange {
        let first = group * OBJECTS_PER_GROUP;
        let bytes = self.objects.bytes_of(first..first + OBJECTS_PER_GROUP);
        FoldRange { backed: (bytes.end - bytes.start).div_ceil(PAGE_SIZE), bytes }
    }

    /// Whether no object of a group is in use just now.
    fn is_unused(&self, group: u64) -> bool {
        let objects = group * OBJECTS_PER_GROUP..(group + 1) * OBJECTS_PER_GROUP;
        !Row::covering(&objects).any(|row| self.frames.is_owned(row, 0))
    }

    /// Takes every object of a group, if none is in use, and notes that in `claims`. The groups of which it has every object
    /// now: a whole area that is free is taken as a whole.
    fn claim_group(&self, group: u64, claims: &mut Vec<Claim>) -> Option<Range<u64>> {
        let first = claims.len();
        let mut claimed = group * OBJECTS_PER_GROUP..group * OBJECTS_PER_GROUP;
        while claimed.end < (group + 1) * OBJECTS_PER_GROUP {
            let Some(claim) = self.frames.take_row(Row(claimed.end / PAGES_PER_ROW), 0) else {
                claims.drain(first..).for_each(|claim| self.frames.give_claim(claim));
                return None;
            };
            let objects = claim.pages();
            claimed = claimed.start.min(objects.start)..objects.end;
            claims.push(claim);
        }
        Some(claimed.start.div_ceil(OBJECTS_PER_GROUP)..claimed.end / OBJECTS_PER_GROUP)
    }
}

/// Folds groups of objects of which none is in use.
pub struct Emptied {
    claims: Vec<Claim>,
    groups: Vec<u64>,
    ranges: Vec<FoldRange>,
    /// Group where the search goes on.
    cursor: u64,
    batch: usize,
}

impl Emptied {
    pub(super) fn collect_from<M: Mapping, O: Owner>(&mut self, objects: &Objects<M, O>) -> bool {
        objects.empty_slots();
        let groups = objects.online.load(Ordering::Acquire).div_ceil(OBJECTS_PER_GROUP);
        if self.cursor >= groups {
            self.cursor = 0;
        }
        while self.cursor < groups && self.groups.len() < self.batch {
            let group = self.cursor;
            self.cursor += 1;
            let Some(byte) = objects.groups.get(group) else { break };
            if byte.load(Ordering::Relaxed) != BACKED | FOLDABLE {
                continue;
            }
            // Acquire: what is free by now is seen. A later free sets the hint again.
            byte.fetch_and(!FOLDABLE, Ordering::Acquire);
            match objects.claim_group(group, &mut self.claims) {
                Some(claimed) => claimed.for_each(|claimed| self.publish(objects, claimed)),
                // Unused, but its area is changing just now: look here again.
                None if objects.is_unused(group) => {
                    byte.fetch_or(FOLDABLE, Ordering::Release);
                }
                None => {}
            }
        }
        objects.folding.fetch_add(self.claimed(), Ordering::Relaxed);
        !self.groups.is_empty()
    }

    /// Objects that are taken.
    fn claimed(&self) -> u64 {
        self.claims.iter().map(|claim| claim.pages().end - claim.pages().start).sum()
    }

    fn publish<M: Mapping, O: Owner>(&mut self, objects: &Objects<M, O>, group: u64) {
        let Some(byte) = objects.groups.get(group) else { return };
        if byte.load(Ordering::Relaxed) & STATE == BACKED {
            // Every object of it is claimed, so nobody fills it. Release: pairs with the Acquire of who does next.
            byte.fetch_and(!(STATE | FOLDABLE), Ordering::Release);
            self.groups.push(group);
            self.ranges.push(objects.range_of(group));
        }
    }

    pub(super) fn finish_in<M: Mapping, O: Owner>(&mut self, objects: &Objects<M, O>) -> u64 {
        // SAFETY: the groups were published as empty, and a grace period has passed since (or the protocol is one of those
        // that are wrong on purpose): no walker knows an object there. All of them are claimed, so nobody else writes.
        let done = if self.ranges.is_empty() { 0 } else { unsafe { objects.objects.fold(&self.ranges) } };
        let folded = self.ranges.iter().take(done).map(|range| range.backed).sum();
        let mark_refused = |bits| {
            for byte in self.groups.iter().skip(done).filter_map(|&group| objects.groups.get(group)) {
                byte.fetch_or(bits, Ordering::Release);
            }
        };
        // Their memory is there still.
        mark_refused(BACKED);
        objects.folding.fetch_sub(self.claimed(), Ordering::Relaxed);
        self.claims.drain(..).for_each(|claim| objects.frames.give_claim(claim));
        // The next folder tries them again. Not told before: it would find their objects taken.
        mark_refused(FOLDABLE);
        self.groups.clear();
        self.ranges.clear();
        folded
    }

    pub(super) fn with_room_for(batch: usize) -> Result<Self, OutOfMemory> {
        let batch = batch.clamp(1, 1 << 12);
        let claims = batch * (OBJECTS_PER_GROUP / PAGES_PER_ROW) as usize;
        // A claim may be an area, of more groups than one.
        let groups = batch + (Order::AREA.pages() / OBJECTS_PER_GROUP) as usize;
        Ok(Self {
            claims: try_vec(claims)?,
            groups: try_vec(groups)?,
            ranges: try_vec(groups)?,
            cursor: 0,
            batch,
        })
    }
}
