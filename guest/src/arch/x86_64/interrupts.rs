//! Interrupts and exceptions: on, off, the descriptor table, and what a processor had in its registers.

use core::arch::global_asm;
use core::fmt;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::registers::control::{Cr2, Cr3};
use x86_64::structures::idt::InterruptDescriptorTable;

pub use x86_64::instructions::interrupts::without_interrupts as without;
pub use x86_64::instructions::interrupts::{are_enabled, disable, enable, enable_and_hlt as wait};

global_asm!(include_str!("interrupts.s"));

/// The old controllers: 16 vectors that mean nothing.
const LEGACY: u8 = 0x20;
/// The local timer.
pub const TIMER: u8 = 0x40;
/// The lines of PCI devices: one vector each, from here on.
pub const DEVICES: u8 = 0x50;
/// How many lines there are, at most.
pub const LINES: u8 = 8;
/// Messages of PCI devices: one vector each, from here on.
pub const MESSAGES: u8 = 0x60;
/// How many there are, at most.
pub const MOST_MESSAGES: u8 = 8;
/// Another processor wants something done.
pub const REMOTE: u8 = 0xf0;
/// The local APIC's own errors, and its spurious interrupts.
pub const ERROR: u8 = 0xfe;
/// Vectors end in ones, as old APICs want it.
pub const SPURIOUS: u8 = 0xff;

/// Which stack of the task state segment handles what. Exceptions that may come when a stack has run out have their own.
pub const NMI_STACK: u16 = 0;
/// For double faults.
pub const DOUBLE_FAULT_STACK: u16 = 1;
/// For page faults.
pub const PAGE_FAULT_STACK: u16 = 2;

/// What the stub and the processor have pushed, lowest address first.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "registers have the names they have")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Where the chain of frame pointers begins.
    pub fn frame_pointer(&self) -> u64 {
        self.rbp
    }
}

impl fmt::Display for Frame {
    /// The registers, for a dump.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cr3, _) = Cr3::read();
        writeln!(f, "rip {:#018x}  rflags {:#x}", self.rip, self.rflags)?;
        let rows = [
            [("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx), ("rdx", self.rdx)],
            [("rsi", self.rsi), ("rdi", self.rdi), ("rbp", self.rbp), ("rsp", self.rsp)],
            [("r8 ", self.r8), ("r9 ", self.r9), ("r10", self.r10), ("r11", self.r11)],
            [("r12", self.r12), ("r13", self.r13), ("r14", self.r14), ("r15", self.r15)],
        ];
        for row in rows {
            let [(a, av), (b, bv), (c, cv), (d, dv)] = row;
            writeln!(f, "  {a} {av:016x}  {b} {bv:016x}  {c} {cv:016x}  {d} {dv:016x}")?;
        }
        write!(f, "  cr2 {:016x}  cr3 {:016x}", Cr2::read_raw(), cr3.start_address().as_u64())
    }
}

static TABLE: Once<InterruptDescriptorTable> = Once::new();

/// Loads the descriptor table on this processor. The segments have been loaded.
pub fn load() {
    TABLE.call_once(table).load();
}

fn table() -> InterruptDescriptorTable {
    unsafe extern "C" {
        static interrupt_stubs: u8;
    }
    let stub = |vector: u8| VirtAddr::from_ptr(&raw const interrupt_stubs) + 16 * u64::from(vector);
    let mut table = InterruptDescriptorTable::new();
    // SAFETY: each stub handles its vector, and the stacks are those of the task state segment that is loaded.
    unsafe {
        table.divide_error.set_handler_addr(stub(0));
        table.debug.set_handler_addr(stub(1));
        table.non_maskable_interrupt.set_handler_addr(stub(2)).set_stack_index(NMI_STACK);
        table.breakpoint.set_handler_addr(stub(3));
        table.overflow.set_handler_addr(stub(4));
        table.bound_range_exceeded.set_handler_addr(stub(5));
        table.invalid_opcode.set_handler_addr(stub(6));
        table.device_not_available.set_handler_addr(stub(7));
        table.double_fault.set_handler_addr(stub(8)).set_stack_index(DOUBLE_FAULT_STACK);
        table.invalid_tss.set_handler_addr(stub(10));
        table.segment_not_present.set_handler_addr(stub(11));
        table.stack_segment_fault.set_handler_addr(stub(12));
        table.general_protection_fault.set_handler_addr(stub(13));
        table.page_fault.set_handler_addr(stub(14)).set_stack_index(PAGE_FAULT_STACK);
        table.x87_floating_point.set_handler_addr(stub(16));
        table.alignment_check.set_handler_addr(stub(17));
        table.machine_check.set_handler_addr(stub(18));
        table.simd_floating_point.set_handler_addr(stub(19));
        for vector in 32..=255 {
            table[vector].set_handler_addr(stub(vector));
        }
    }
    table
}

/// Silences the PC's old interrupt controllers. A masked one may still deliver its spurious interrupt, which must not be
/// taken for an exception: they are told other vectors first.
pub fn silence_pic() {
    for (port, vector, cascade) in [(0x20, LEGACY, 4), (0xa0, LEGACY + 8, 2)] {
        let (mut command, mut data) = (Port::<u8>::new(port), Port::<u8>::new(port + 1));
        // SAFETY: a PC's two controllers: begin initialisation, vector, cascade, mode; then mask all.
        unsafe {
            command.write(0x11);
            data.write(vector);
            data.write(cascade);
            data.write(1);
            data.write(0xff);
        }
    }
}
