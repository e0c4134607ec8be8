//! Starting: what processors share, the clock, and the processors one after the other.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x2apic::lapic::{LocalApicBuilder, TimerDivide, TimerMode};
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use super::cpu::{Id, Own, with_apic};
use super::firmware::Firmware;
use super::interrupts::{self, DOUBLE_FAULT_STACK, NMI_STACK, PAGE_FAULT_STACK};
use super::pit;
use crate::clock;
use crate::cpu::{Cpu, TIMER_HZ};
use crate::layout::direct;
use crate::paging::{self, MapError};

/// Bytes of the stacks for exceptions.
const FAULT_STACK: u64 = 16 << 10;
/// Of all of them.
pub const OTHER_STACKS: u64 = 3 * FAULT_STACK;
/// Where processors begin, in real mode. Mind `boot.s`.
const TRAMPOLINE: u64 = 0x8000;

/// Initial count of the local timer.
static TIMER_COUNT: AtomicU32 = AtomicU32::new(1_000_000);
/// Where local APICs are mapped.
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

/// Sets up what all processors share, once there are page tables; the number of the one that runs this.
pub fn init(firmware: &Firmware) -> Result<Id, MapError> {
    APIC.store(paging::map_device(firmware.local_apic, 4096)?, Ordering::Relaxed);
    let features = raw_cpuid::CpuId::new().get_feature_info();
    Ok(features.map_or(0, |features| features.initial_local_apic_id().into()))
}

/// Finds out how fast the counter and the local timer are, and starts this processor's ticks.
pub fn start_clock() {
    interrupts::silence_pic();
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

/// What the processor with this local APIC has of its own.
pub fn make(apic_id: Id) -> Result<Own, MapError> {
    let mut tss = TaskStateSegment::new();
    let mut stacks = tss.interrupt_stack_table;
    for stack in [NMI_STACK, DOUBLE_FAULT_STACK, PAGE_FAULT_STACK] {
        stacks[usize::from(stack)] = VirtAddr::new(paging::map_stack(FAULT_STACK)?);
    }
    tss.interrupt_stack_table = stacks;
    Ok(Own {
        me: core::ptr::null(),
        apic_id,
        apic: UnsafeCell::new(None),
        gdt: GlobalDescriptorTable::new(),
        tss,
    })
}

/// Loads this processor's segments and descriptor tables, and turns its local APIC on. From here on [`own`](super::cpu::own)
/// finds what it has.
///
/// # Safety
/// Made for this processor; nobody else uses it yet; it lives for ever. Interrupts are off.
pub unsafe fn enter(own: *mut Own) {
    // SAFETY: the caller's promise.
    unsafe {
        (*own).me = own;
        let code = (*own).gdt.append(Descriptor::kernel_code_segment());
        let data = (*own).gdt.append(Descriptor::kernel_data_segment());
        let tss = (*own).gdt.append(Descriptor::tss_segment(&(*own).tss));
        (*own).gdt.load();
        CS::set_reg(code);
        DS::set_reg(data);
        ES::set_reg(data);
        SS::set_reg(data);
        load_tss(tss);
        GsBase::write(VirtAddr::from_ptr(own));
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
pub fn processor(cpu: &'static mut Cpu, apic_id: Id) {
    starting_stack.store(cpu.stack.end, Ordering::Relaxed);
    // Release: a processor that reads this sees the stack and the page tables that were stored before. Starting it by an interrupt
    // orders them as well.
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
