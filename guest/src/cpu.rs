//! Processors: what each has of its own, and how the others are started.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x2apic::lapic::{IpiAllShorthand, LocalApic, LocalApicBuilder, TimerDivide, TimerMode};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::clock;
use crate::interrupts::{self, DOUBLE_FAULT_STACK, NMI_STACK, PAGE_FAULT_STACK};
use crate::layout::{PAGE, STACK_STRIDE, direct};
use crate::paging::{self, MapError};

/// Processors that are started at most. xAPICs name no more than 255.
pub const MAX: usize = 64;
/// Frames that a processor takes when it is started: its stacks, and the page tables that map them.
pub const FRAMES: u64 = (STACK + 3 * FAULT_STACK) / PAGE + 4 * STACK_STRIDE / (2 << 20);
/// Bytes of a processor's stack.
const STACK: u64 = 96 << 10;
/// Bytes of the stacks for exceptions.
const FAULT_STACK: u64 = 16 << 10;
/// Interrupts of the local timer in a second.
pub const TIMER_HZ: u64 = 100;
/// Where processors begin, in real mode. Mind `boot.s`.
const TRAMPOLINE: u64 = 0x8000;

/// A processor.
#[repr(C)]
pub struct Cpu {
    /// Where this is: what `gs:0` reads.
    me: *const Cpu,
    /// Its number, from 0.
    pub number: usize,
    /// Its local APIC's number.
    pub apic_id: u32,
    /// Where its stack is; those for exceptions not counted.
    pub stack: Range<u64>,
    apic: UnsafeCell<Option<LocalApic>>,
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    /// Grows whenever its loop comes round.
    pub beats: AtomicU64,
    /// What the watchdog last saw of that, and when in its ticks.
    pub seen: AtomicU64,
    /// Since how many ticks nothing was seen.
    pub silent: AtomicU64,
}

/// The processors that run: bit by number. Release by who starts, Acquire by who asks.
static ONLINE: AtomicU64 = AtomicU64::new(0);
/// Initial count of the local timer.
static TIMER_COUNT: AtomicU32 = AtomicU32::new(1_000_000);
static APIC: AtomicU64 = AtomicU64::new(0);
/// All of them, by number, for the code that looks after them.
static ALL: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

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

/// Processor `number`, if it runs.
pub fn get(number: usize) -> Option<&'static Cpu> {
    let at = ALL.get(number)?.load(Ordering::Acquire) as *const Cpu;
    // SAFETY: only ever zero or a `Cpu` that lives for ever.
    unsafe { at.as_ref() }
}

/// Bits of the processors that run.
pub fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// How many processors run.
pub fn count() -> usize {
    online().count_ones() as usize
}

/// A processor's own things.
fn make(number: usize, apic_id: u32) -> Result<&'static mut Cpu, MapError> {
    let mut tss = TaskStateSegment::new();
    let mut stacks = tss.interrupt_stack_table;
    for stack in [NMI_STACK, DOUBLE_FAULT_STACK, PAGE_FAULT_STACK] {
        stacks[usize::from(stack)] = VirtAddr::new(paging::map_stack(FAULT_STACK)?);
    }
    tss.interrupt_stack_table = stacks;
    let stack = paging::map_stack(STACK)?;
    let cpu = Box::leak(Box::new(Cpu {
        me: core::ptr::null(),
        number,
        apic_id,
        stack: stack - STACK..stack,
        apic: UnsafeCell::new(None),
        gdt: GlobalDescriptorTable::new(),
        tss,
        beats: AtomicU64::new(0),
        seen: AtomicU64::new(0),
        silent: AtomicU64::new(0),
    }));
    cpu.me = cpu;
    Ok(cpu)
}

/// The processor that booted. Returns the end of its stack, to be used from now on.
pub fn init(apic_base: u64, apic_id: u32) -> Result<u64, MapError> {
    APIC.store(paging::map_device(apic_base, 4096)?, Ordering::Relaxed);
    let cpu = make(0, apic_id)?;
    let stack = cpu.stack.end;
    enter(cpu);
    Ok(stack)
}

/// Loads this processor's segments and descriptor tables, and turns its local APIC on.
fn enter(cpu: &'static mut Cpu) {
    let cpu: *mut Cpu = cpu;
    // SAFETY: the processor's own things, which live for ever and which nobody else uses yet.
    unsafe {
        let code = (*cpu).gdt.append(Descriptor::kernel_code_segment());
        let data = (*cpu).gdt.append(Descriptor::kernel_data_segment());
        let tss = (*cpu).gdt.append(Descriptor::tss_segment(&(*cpu).tss));
        (*cpu).gdt.load();
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
        unsafe { *(*cpu).apic.get() = Some(apic) };
    }
    // SAFETY: set up whole; from here on it is shared.
    let cpu = unsafe { &*cpu };
    if let Some(slot) = ALL.get(cpu.number) {
        slot.store(core::ptr::from_ref(cpu) as u64, Ordering::Release);
    }
    ONLINE.fetch_or(1 << cpu.number, Ordering::Release);
}

/// Does something with this processor's local APIC.
fn with_apic(action: impl FnOnce(&mut LocalApic)) {
    without_interrupts(|| {
        // SAFETY: only this processor uses the cell, and with interrupts off nothing comes between.
        if let Some(apic) = unsafe { &mut *this().apic.get() } {
            action(apic);
        }
    });
}

/// Tells the local APIC that an interrupt has been handled.
pub fn end_of_interrupt() {
    // SAFETY: called by the handler, once.
    with_apic(|apic| unsafe { apic.end_of_interrupt() });
}

/// Interrupts all other processors.
pub fn interrupt_others(vector: u8) {
    // SAFETY: the vector has a handler on all of them.
    with_apic(|apic| unsafe { apic.send_ipi_all(vector, IpiAllShorthand::AllExcludingSelf) });
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
        let (from, to) = clock::measure(|| unsafe {
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

/// Starts the other processors, one after the other. Those that do not come are said and left out.
pub fn start_others(apic_ids: &[u32]) -> Result<(), MapError> {
    unsafe extern "C" {
        static trampoline_start: u8;
        static trampoline_end: u8;
    }
    let (code, end) = (&raw const trampoline_start, &raw const trampoline_end);
    // SAFETY: the trampoline's place is low memory that boot left alone, and in the direct map.
    unsafe { direct::<u8>(TRAMPOLINE).copy_from_nonoverlapping(code, end as usize - code as usize) };
    starting_cr3.store(paging::root(), Ordering::Relaxed);
    let others = apic_ids.iter().filter(|&&id| id != this().apic_id);
    for (number, &apic_id) in others.take(MAX - 1).enumerate().map(|(at, id)| (at + 1, id)) {
        let cpu = make(number, apic_id)?;
        starting_stack.store(cpu.stack.end, Ordering::Relaxed);
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
        let deadline = clock::now() + 2_000_000_000;
        while online() >> number & 1 == 0 {
            if clock::now() > deadline {
                say!("processor {number} (local APIC {apic_id}) does not start");
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }
    Ok(())
}

/// A processor has started: what `boot.s` calls, on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start_others` for this processor alone.
    enter(unsafe { &mut *cpu });
    crate::run::processor()
}
