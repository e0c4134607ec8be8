//! Interrupt controllers: GICv2 and GICv3 (Arm IHI 0048, IHI 0069), as far as one kernel needs them.
//!
//! Interrupts are in group 1 and arrive as IRQ; one that stops all others is in group 0 and arrives as FIQ, which this kernel
//! never masks.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::flush::finish_stores;
use super::registers::{self, get, read, set, write};

/// Software-generated interrupts: others are asked for something; others are stopped.
pub const ASK: u32 = 0;
/// See above.
pub const STOP: u32 = 1;
/// Software-generated and private interrupts are below; those of devices are from here on.
const SHARED: u32 = 32;
/// From here on numbers mean that there is no interrupt, up to those of messages.
const NONE: u32 = 1020;
/// GICv3: interrupts by messages (LPIs) begin here.
pub const MESSAGES: u32 = 8192;

// Registers of the distributor.
const CTLR: u64 = 0;
const GROUP: u64 = 0x80;
const ENABLE: u64 = 0x100;
const DISABLE: u64 = 0x180;
const PRIORITY: u64 = 0x400;
const TARGETS: u64 = 0x800;
const CONFIGURATION: u64 = 0xc00;
const SGIR: u64 = 0xf00;
const ROUTER: u64 = 0x6000;
// Registers of GICv2's CPU interface.
const CPU_CTLR: u64 = 0;
const CPU_MASK: u64 = 4;
const CPU_ACKNOWLEDGE: u64 = 0xc;
const CPU_END: u64 = 0x10;
// Registers of GICv3's redistributors, of which each processor has one.
const WAKER: u64 = 0x14;
const TYPER: u64 = 0x8;
const REDISTRIBUTOR: u64 = 0x2_0000;
const PRIVATE: u64 = 0x1_0000;

/// Lower is more urgent.
const USUAL: u8 = 0xa0;
const URGENT: u8 = 0x20;

/// Where it is, and which it is. Relaxed: noted by the first processor before others start.
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
/// GICv2: the CPU interface. GICv3: the redistributors, and bytes of those.
static OTHER: AtomicU64 = AtomicU64::new(0);
static OTHER_BYTES: AtomicU64 = AtomicU64::new(0);
static OTHER_PHYSICAL: AtomicU64 = AtomicU64::new(0);
static VERSION: AtomicU8 = AtomicU8::new(0);

/// What the device tree says of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// 2 or 3; 0 where there is none.
    pub version: u8,
    /// Physical address and bytes of the distributor.
    pub distributor: (u64, u64),
    /// And of the CPU interface (version 2) or of the redistributors (version 3).
    pub other: (u64, u64),
}

/// When an interrupt is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as its line is up.
    Level,
    /// Once its line has come up.
    Edge,
}

fn version() -> u8 {
    VERSION.load(Ordering::Relaxed)
}

fn at(base: &AtomicU64, offset: u64) -> u64 {
    base.load(Ordering::Relaxed) + offset
}

fn set_priority(base: u64, interrupt: u32, priority: u8) {
    // They may be written byte by byte.
    write(base + PRIORITY + u64::from(interrupt), priority);
}

/// Notes where the controller's two regions of registers are mapped, and turns on what all processors share.
pub fn init(place: Place, distributor: u64, other: u64) {
    DISTRIBUTOR.store(distributor, Ordering::Relaxed);
    OTHER.store(other, Ordering::Relaxed);
    OTHER_BYTES.store(place.other.1, Ordering::Relaxed);
    OTHER_PHYSICAL.store(place.other.0, Ordering::Relaxed);
    VERSION.store(place.version, Ordering::Relaxed);
    // Both groups; for GICv3 routing by affinity first, since that must not change while groups are enabled.
    if place.version == 3 {
        write::<u32>(at(&DISTRIBUTOR, CTLR), 1 << 4);
        wait_for_writes();
        write::<u32>(at(&DISTRIBUTOR, CTLR), 1 << 4 | 3);
        wait_for_writes();
    } else {
        write::<u32>(at(&DISTRIBUTOR, CTLR), 3);
    }
}

/// GICv3: until the distributor has done what was written to it (RWP).
fn wait_for_writes() {
    while read::<u32>(at(&DISTRIBUTOR, CTLR)) >> 31 != 0 {
        core::hint::spin_loop();
    }
}

/// This processor's affinity, as redistributors and routes have it.
fn affinity() -> u64 {
    let mpidr = get!("mpidr_el1");
    mpidr & 0xff_ffff | (mpidr >> 32 & 0xff) << 24
}

/// Turns on this processor's share: software-generated interrupts, and its timer's.
pub fn enter(timer: u32) {
    let private = 1 << ASK | 1 << STOP | 1 << timer;
    let base = match version() {
        3 => {
            let Some(redistributor) = redistributor() else { return };
            let waker = redistributor + WAKER;
            // Not asleep any more (bit 1), until what it controls is not either (bit 2).
            write::<u32>(waker, read::<u32>(waker) & !2);
            while read::<u32>(waker) & 4 != 0 {
                core::hint::spin_loop();
            }
            redistributor + PRIVATE
        }
        _ => DISTRIBUTOR.load(Ordering::Relaxed),
    };
    write::<u32>(base + GROUP, !(1 << STOP));
    for interrupt in [ASK, timer] {
        set_priority(base, interrupt, USUAL);
    }
    set_priority(base, STOP, URGENT);
    write::<u32>(base + ENABLE, private);
    if version() == 3 {
        let by_registers = get!("S3_0_C12_C12_5") | 1;
        // SAFETY: the CPU interface by system registers: no priority is masked, both groups are on.
        unsafe {
            set!("S3_0_C12_C12_5", by_registers);
            core::arch::asm!("isb", options(nostack));
            set!("S3_0_C4_C6_0", 0xff);
            set!("S3_0_C12_C12_6", 1);
            set!("S3_0_C12_C12_7", 1);
            core::arch::asm!("isb", options(nostack));
        }
    } else {
        write::<u32>(at(&OTHER, CPU_MASK), 0xff);
        // Both groups, one register to acknowledge either (AckCtl), group 0 as FIQ.
        write::<u32>(at(&OTHER, CPU_CTLR), 0b1111);
    }
}

/// This processor's redistributor, where GICv3 has those.
pub fn redistributor() -> Option<u64> {
    if version() != 3 {
        return None;
    }
    let first = OTHER.load(Ordering::Relaxed);
    let all = first..first + OTHER_BYTES.load(Ordering::Relaxed);
    all.step_by(REDISTRIBUTOR as usize).find(|base| {
        let typer = u64::from(read::<u32>(base + TYPER + 4));
        typer == affinity()
    })
}

/// Its physical address.
pub fn redistributor_physical() -> Option<u64> {
    Some(redistributor()? - OTHER.load(Ordering::Relaxed) + OTHER_PHYSICAL.load(Ordering::Relaxed))
}

/// Interrupts all other processors: one of [`ASK`] and [`STOP`].
pub fn interrupt_others(what: u32) {
    // What was written before is seen by who is interrupted.
    finish_stores();
    if version() == 3 {
        // All but this one (IRM).
        let value = u64::from(what) << 24 | 1 << 40;
        // SAFETY: ICC_SGI1R_EL1 for group 1, ICC_SGI0R_EL1 for group 0; both interrupts have handlers.
        unsafe {
            if what == STOP {
                set!("S3_0_C12_C11_7", value);
            } else {
                set!("S3_0_C12_C11_5", value);
            }
            core::arch::asm!("isb", options(nostack));
        }
    } else {
        write::<u32>(at(&DISTRIBUTOR, SGIR), 1 << 24 | what);
    }
}

/// The interrupt that came as IRQ, and what its end needs.
pub fn acknowledge() -> Option<(u32, u32)> {
    let raw = match version() {
        3 => get!("S3_0_C12_C12_0") as u32,
        _ => read::<u32>(at(&OTHER, CPU_ACKNOWLEDGE)),
    };
    // What it says of memory and registers is read after it.
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb sy", options(nostack)) };
    let interrupt = raw & if version() == 3 { 0xff_ffff } else { 0x3ff };
    (!(NONE..MESSAGES).contains(&interrupt)).then_some((interrupt, raw))
}

/// Its end.
pub fn end(raw: u32) {
    if version() == 3 {
        // SAFETY: ends what was acknowledged.
        unsafe {
            set!("S3_0_C12_C12_1", u64::from(raw));
            core::arch::asm!("isb", options(nostack));
        }
    } else {
        write::<u32>(at(&OTHER, CPU_END), raw);
    }
}

/// Leads an interrupt of a device to this processor, whose number is `number`.
pub fn open(interrupt: u32, trigger: Trigger, number: usize) {
    if trigger == Trigger::Edge {
        // Two bits each, of which the upper one says so.
        let setting = at(&DISTRIBUTOR, CONFIGURATION + u64::from(interrupt / 16) * 4);
        write::<u32>(setting, read::<u32>(setting) | 2 << (interrupt % 16 * 2));
    }
    let (word, bit) = (u64::from(interrupt / 32) * 4, 1 << (interrupt % 32));
    let group = at(&DISTRIBUTOR, GROUP + word);
    write::<u32>(group, read::<u32>(group) | bit);
    set_priority(DISTRIBUTOR.load(Ordering::Relaxed), interrupt, USUAL);
    if version() == 3 {
        let route = at(&DISTRIBUTOR, ROUTER + u64::from(interrupt) * 8);
        write::<u32>(route, affinity() as u32 & 0xff_ffff);
        // The upper half of the same register.
        write::<u32>(route + 4, (affinity() >> 24) as u32);
    } else {
        // A byte for each; GICv2 has eight processors at most.
        write::<u8>(at(&DISTRIBUTOR, TARGETS + u64::from(interrupt)), 1 << (number % 8));
    }
    write::<u32>(at(&DISTRIBUTOR, ENABLE + word), bit);
}

/// Masks it.
pub fn mask(interrupt: u32) {
    if interrupt >= SHARED {
        write::<u32>(at(&DISTRIBUTOR, DISABLE + u64::from(interrupt / 32) * 4), 1 << (interrupt % 32));
    }
}

/// Whether the device tree's version is one that this processor has.
pub fn is_possible(place: Place) -> bool {
    place.version == 2 || (place.version == 3 && registers::has_gic_registers())
}
