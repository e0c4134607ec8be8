//! Taking addresses for a reservation.

use core::sync::atomic::AtomicU64;

use spin::Mutex;

use super::{Gap, Reservation};
use crate::entry::Entry;
use crate::mmu::{Mmu, NoFrames};
use crate::shared::Shared;
use crate::{HUGE, PAGE};

impl<'s, M: Mmu> Reservation<'s, M> {
    /// Takes the addresses from `base`, a multiple of [`HUGE`], on: `len` bytes, rounded up to whole pages; whole multiples of
    /// [`HUGE`] are its own. All of it is folded.
    ///
    /// # Safety
    /// No other reservation has a part of them, nothing else is mapped there, and no processor remembers anything about them.
    ///
    /// # Errors
    /// A range that needs all of its tables from the start, and frames that are not there. Nothing has changed then that could
    /// be observed.
    pub unsafe fn new(shared: &'s Shared<M>, base: u64, len: u64, gap: Gap) -> Result<Self, NoFrames> {
        let len = len.max(PAGE).next_multiple_of(PAGE);
        let end = base + len.next_multiple_of(HUGE);
        let reservation = Reservation {
            shared,
            base,
            len,
            gap,
            lock: Mutex::new(()),
            pages: AtomicU64::new(0),
            tables: AtomicU64::new(0),
        };
        if gap == Gap::Never && !M::Entry::TABLES_GIVE_WAY {
            reservation.make_all_tables()?;
        } else {
            for at in (base..end).step_by(HUGE as usize) {
                shared.mmu().swap(shared.mmu().upper(at), shared.shared_directory());
            }
        }
        shared.mmu().made(base..end);
        Ok(reservation)
    }
}
