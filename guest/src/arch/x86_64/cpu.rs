//! Processors: segments, local APICs, and how the others are started.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x2apic::lapic::{IpiAllShorthand, LocalApic, LocalApicBuilder, TimerDivide, TimerMode};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use super::interrupts::{self, DOUBLE_FAULT_STACK, NMI_STACK, PAGE_FAULT_STACK};
use super::pit;
use crate::clock;
use crate::cpu::{Cpu, TIMER_HZ};
use crate::layout::direct;
use crate::paging::{self, MapError};

/// What names a processor: its local APIC's number. xAPICs name no more than 255.
pub type Id = u32;

/// Bytes of the stacks for exceptions.
const FAULT_STACK: u64 = 16 << 10;
/// Of all of them.
pub const OTHER_STACKS: u64 = 3 * FAULT_STACK;
/// Where processors begin, in real mode. Mind `boot.s`.
const TRAMPOLINE: u64 = 0x8000;

/// What a processor has of its own.
pub struct Own {
    apic_id: u32,
    apic: UnsafeCell<Option<LocalApic>>,
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl Own {
    /// For the processor with this local APIC.
    pub fn new(apic_id: Id) -> Result<Own, MapError> {
        let mut tss = TaskStateSegment::new();
        let mut stacks = tss.interrupt_stack_table;
        for stack in [NMI_STACK, DOUBLE_FAULT_STACK, PAGE_FAULT_STACK] {
            stacks[usize::from(stack)] = VirtAddr::new(paging::map_stack(FAULT_STACK)?);
        }
        tss.interrupt_stack_table = stacks;
        Ok(Own { apic_id, apic: UnsafeCell::new(None), gdt: GlobalDescriptorTable::new(), tss })
    }

    /// Its local APIC's number.
    pub fn id(&self) -> Id {
        self.apic_id
    }
}

/// Initial count of the local timer.
static TIMER_COUNT: AtomicU32 = AtomicU32::new(1_000_000);
/// Where they are mapped.
static APIC: AtomicU64 = AtomicU64::new(0);

/// For a processor that starts: read by `boot.s`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the assembler's name")]
static starting_cr3: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the assembler's name")]
static starting_stack: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the assembler's name")]
static starting_cpu: AtomicU64 = AtomicU64::new(0);

/// The processor that runs this.
pub fn this() -> &'static Cpu {
    const { assert!(offset_of!(Cpu, me) == 0) };
    let me: *const Cpu;
    // SAFETY: `enter` has set the base of gs to a `Cpu` that lives for ever.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) me, options(nostack, preserves_flags, readonly));
        &*me
    }
}

/// Notes where local APICs are, for all processors.
pub fn init(apic_base: u64) -> Result<(), MapError> {
    APIC.store(paging::map_device(apic_base, 4096)?, Ordering::Relaxed);
    Ok(())
}

/// Loads this processor's segments and descriptor tables, and turns its local APIC on.
///
/// # Safety
/// Made for this processor; nobody else uses it yet; it lives for ever. Interrupts are off.
pub unsafe fn enter(cpu: *mut Cpu) {
    // SAFETY: the caller's promise.
    let own = unsafe { &raw mut (*cpu).own };
    // SAFETY: as above.
    unsafe {
        let code = (*own).gdt.append(Descriptor::kernel_code_segment());
        let data = (*own).gdt.append(Descriptor::kernel_data_segment());
        let tss = (*own).gdt.append(Descriptor::tss_segment(&(*own).tss));
        (*own).gdt.load();
        CS::set_reg(code);
        DS::set_reg(data);
        ES::set_reg(data);
        SS::set_reg(data);
        load_tss(tss);
        GsBase::write(VirtAddr::from_ptr(cpu));
    }
    interrupts::load();
    let apic = LocalApicBuilder::new()
        .timer_vector(interrupts::TIMER.into())
        .error_vector(interrupts::ERROR.into())
        .spurious_vector(interrupts::SPURIOUS.into())
        .timer_mode(TimerMode::Periodic)
        .timer_divide(TimerDivide::Div16)
        .timer_initial(TIMER_COUNT.load(Ordering::Relaxed))
        .set_xapic_base(APIC.load(Ordering::Relaxed))
        .build();
    // Fails only where a base or a vector was not given.
    if let Ok(mut apic) = apic {
        // SAFETY: the registers are mapped, and this is the processor they belong to.
        unsafe { apic.enable() };
        // SAFETY: only this processor uses the cell, and interrupts are off.
        unsafe { *(*own).apic.get() = Some(apic) };
    }
}

/// Does something with this processor's local APIC.
fn with_apic(action: impl FnOnce(&mut LocalApic)) {
    without_interrupts(|| {
        // SAFETY: only this processor uses the cell, and with interrupts off nothing comes between.
        if let Some(apic) = unsafe { &mut *this().own.apic.get() } {
            action(apic);
        }
    });
}

/// Tells the local APIC that an interrupt has been handled.
pub fn end_of_interrupt() {
    // SAFETY: called by the handler, once.
    with_apic(|apic| unsafe { apic.end_of_interrupt() });
}

/// Interrupts all other processors: they [serve](crate::remote::serve).
pub fn interrupt_others() {
    // SAFETY: the vector has a handler on all of them.
    with_apic(|apic| unsafe { apic.send_ipi_all(interrupts::REMOTE, IpiAllShorthand::AllExcludingSelf) });
}

/// Stops all other processors, whatever they do.
pub fn stop_others() {
    // SAFETY: the handler of non-maskable interrupts never returns.
    with_apic(|apic| unsafe { apic.send_nmi_all(IpiAllShorthand::AllExcludingSelf) });
}

/// Measures the local timer and the clock, and starts the timer's periodic interrupts.
pub fn start_clock() {
    with_apic(|apic| {
        // SAFETY: this processor's timer; its interrupts are off still.
        let (from, to) = pit::measure(|| unsafe {
            if apic.timer_current() < 1 << 20 {
                apic.set_timer_initial(u32::MAX);
            }
            apic.timer_current()
        });
        // Counted down, over 20 ms.
        let per_second = u64::from(from.wrapping_sub(to)) * 50;
        let count = u32::try_from(per_second / TIMER_HZ).unwrap_or(u32::MAX).max(1000);
        TIMER_COUNT.store(count, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { apic.set_timer_initial(count) };
    });
}

/// Puts the code where other processors begin.
pub fn prepare_others() {
    unsafe extern "C" {
        static trampoline_start: u8;
        static trampoline_end: u8;
    }
    let (code, end) = (&raw const trampoline_start, &raw const trampoline_end);
    // SAFETY: the trampoline's place is low memory that boot left alone, and in the direct map.
    unsafe { direct::<u8>(TRAMPOLINE).copy_from_nonoverlapping(code, end as usize - code as usize) };
    starting_cr3.store(paging::root(), Ordering::Relaxed);
}

/// Starts a processor, on what was made for it; one at a time.
pub fn start(cpu: &'static mut Cpu, apic_id: Id) {
    starting_stack.store(cpu.stack.end, Ordering::Relaxed);
    // Release: whoever reads it finds the others; and so does the processor, which an interrupt starts.
    starting_cpu.store(core::ptr::from_mut(cpu) as u64, Ordering::Release);
    with_apic(|apic| {
        // xAPICs have the target in the top byte of the register.
        let is_x2apic = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|cpu| cpu.has_x2apic());
        let target = if is_x2apic { apic_id } else { apic_id << 24 };
        // SAFETY: the processor starts in the trampoline, which leads to `processor_start`.
        unsafe {
            apic.send_init_ipi(target);
            clock::wait(10_000_000);
            for _ in 0..2 {
                apic.send_sipi((TRAMPOLINE >> 12) as u8, target);
                clock::wait(200_000);
            }
        }
    });
}

/// A processor has started: what `boot.s` calls, on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start` for this processor alone.
    crate::cpu::enter(unsafe { &mut *cpu });
    crate::run::processor()
}
