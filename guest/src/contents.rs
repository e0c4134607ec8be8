//! What is in the pages of the workloads' folios: memory itself, by the direct map.

use core::convert::Infallible;

use pagefold_engine::{Folio, Frozen, Order, Pfn};
use pagefold_workload::Contents;

use crate::layout::{PAGE, direct};
use crate::machine::{Choice, GuestPlatform};

/// Memory, by the direct map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory;

/// The words of a folio.
///
/// # Safety
/// The folio's pages are the caller's to write, for as long as the words are used.
pub unsafe fn words<'a>(first: Pfn, order: Order) -> &'a mut [u64] {
    let count = (order.pages() * PAGE / 8) as usize;
    // SAFETY: the caller's promise; all memory that the engine has is in the direct map, and a folio's is contiguous.
    unsafe { core::slice::from_raw_parts_mut(direct(first.0 * PAGE), count) }
}

impl<C: Choice> Contents<GuestPlatform<C>> for Memory {
    type Error = Infallible;

    fn mark(&self, folio: &mut Frozen<'_, GuestPlatform<C>>, mark: u64) -> Result<(), Infallible> {
        // SAFETY: nobody else can reach a frozen folio, and the handle is borrowed mutably.
        unsafe { words(folio.pfn(), folio.order()) }.fill(mark);
        Ok(())
    }

    fn holds(&self, folio: &Folio<'_, GuestPlatform<C>>, mark: u64) -> Result<bool, Infallible> {
        let count = (folio.order().pages() * PAGE / 8) as usize;
        // SAFETY: a reference is held, and nobody writes to shared folios.
        let words = unsafe { core::slice::from_raw_parts(direct::<u64>(folio.pfn().0 * PAGE), count) };
        Ok(words.iter().all(|&word| word == mark))
    }

    fn copy(
        &self,
        from: &Folio<'_, GuestPlatform<C>>,
        to: &mut Frozen<'_, GuestPlatform<C>>,
        mark: u64,
    ) -> Result<bool, Infallible> {
        let bytes = (from.order().pages() * PAGE) as usize;
        // SAFETY: a reference on one, and nobody writes to it; the other is frozen, of the same order, and borrowed
        // mutably. They are different folios.
        unsafe {
            direct::<u8>(to.pfn().0 * PAGE).copy_from_nonoverlapping(direct(from.pfn().0 * PAGE), bytes);
        }
        self.holds(from, mark)
    }
}
