//! The engine's platform here: page tables, interrupts or fences, and the kernel's own frames.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use pagefold_boot_protocol::BarrierChoice;
use pagefold_engine::platform::{Barrier, Fences, Platform, TableKind};
use pagefold_engine::protocol::Protocol;
use pagefold_engine::{Descriptors, Engine, Kind, Order, Pfn, RawFolio};
use pagefold_workload::{Stamp, share};
use spin::Mutex;

use crate::layout::PAGE;
use crate::paging::MapError;
use crate::tables::Table;
use crate::{arch, cpu, frames, remote};

/// What is chosen at boot.
pub trait Choice: 'static {
    /// The rules of walkers and folders.
    type Rules: Protocol;
    /// What a descriptor is.
    type Descriptors: Descriptors;
}

impl<R: Protocol + 'static, D: Descriptors> Choice for (R, D) {
    type Rules = R;
    type Descriptors = D;
}

/// This machine, as it was chosen.
#[derive(Clone, Copy, Debug)]
pub struct GuestPlatform<C>(PhantomData<fn() -> C>);

impl<C> GuestPlatform<C> {
    /// It.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// Whether grace periods interrupt processors. Relaxed: chosen at boot, before there is an engine.
static INTERRUPTS: AtomicBool = AtomicBool::new(arch::BARRIER_INTERRUPTS);

/// Grace periods so far.
pub static GRACE_PERIODS: AtomicU64 = AtomicU64::new(0);

/// Chooses how grace periods reach walkers; before there is an engine.
pub fn choose_barrier(choice: BarrierChoice) {
    INTERRUPTS.store(choice == BarrierChoice::Interrupts, Ordering::Relaxed);
}

/// Either readers pay nothing, and who waits for them interrupts every processor; or both pay a fence.
#[derive(Clone, Copy, Debug)]
pub struct Barriers {
    interrupts: bool,
}

// SAFETY: both halves are of the same kind, since the choice is made before there is an engine.
// With interrupts, `heavy` returns when every processor that runs has passed a full fence in its interrupt handler. The handler
// runs between two instructions of the reader, and `light` keeps the compiler from moving accesses across them. So each access of
// the reader comes before or after that fence, as the contract asks. (Taking an interrupt is no fence; the handler has one.)
// Otherwise both are sequentially consistent fences, as `Fences` has them.
unsafe impl Barrier for Barriers {
    #[inline]
    fn light(&self) {
        if self.interrupts {
            compiler_fence(Ordering::SeqCst);
        } else {
            Fences.light();
        }
    }

    fn heavy(&self) {
        GRACE_PERIODS.fetch_add(1, Ordering::Relaxed);
        if self.interrupts {
            remote::barrier();
        } else {
            Fences.heavy();
        }
    }

    fn wait(&self, _turn: u32) {
        core::hint::spin_loop();
    }
}

impl<C: Choice> Platform for GuestPlatform<C> {
    type Mapping = Table;
    type Barrier = Barriers;
    type Owner = Stamp;
    type Rules = C::Rules;
    type Descriptors = C::Descriptors;
    type Error = MapError;

    fn reserve(&self, kind: TableKind, bytes: u64) -> Result<Table, MapError> {
        Table::reserve(kind, bytes)
    }

    fn barrier(&self) -> Barriers {
        Barriers { interrupts: INTERRUPTS.load(Ordering::Relaxed) }
    }

    fn cpu(&self) -> usize {
        cpu::this().number
    }
}

/// Frames that were taken from the engine, since they were.
pub static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Held by the CPU that refills.
static TOPPING: Mutex<()> = Mutex::new(());

/// Keeps the reserve of frames between its marks. To be called outside of the engine, often.
pub fn top_up<C: Choice>(engine: &Engine<GuestPlatform<C>>) {
    // Another CPU is refilling.
    let Some(_topping) = TOPPING.try_lock() else { return };
    let is_low = frames::reserve().0 < frames::LOW;
    while is_low && frames::reserve().0 < frames::HIGH {
        let Ok(frozen) = engine.alloc(Order::ZERO, Kind::PageTable) else { return };
        let RawFolio(pfn) = share(frozen).into_raw();
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the page is memory of ours in the direct map; the reference, which is kept, makes it nobody else's.
        unsafe { frames::give(pfn.0 * PAGE) };
    }
    while let Some(frame) = frames::take_lent() {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the reference that was taken out of its handle when the frame came.
        drop(unsafe { engine.from_raw(RawFolio(Pfn(frame / PAGE))) });
    }
}

/// Bytes of memory at boot, all told. Relaxed: noted by the first processor before others start.
pub static BOOT_MEMORY: AtomicU64 = AtomicU64::new(0);

/// Bytes of that which boot took for itself, what lies below the kernel's image included. Relaxed, as above.
pub static KERNEL_MEMORY: AtomicU64 = AtomicU64::new(0);
