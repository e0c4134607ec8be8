// From the loader's EL1 or EL2, with the MMU off, to Rust with the boot page tables; and the same for a started processor.
//
// The boot page tables map the first GiB of physical addresses, which has QEMU's devices, as device memory, and the three GiB of
// memory above it as memory: onto themselves, and once more where the direct map begins. One top table serves both halves of
// the address space: the low one has the identity at entry 0, the high one the direct map at entry 256.

.set STACK_SIZE, 16384

.section .text.boot, "ax"
.global _start
_start:
    // x0: the device tree; 0 for an ELF file in QEMU, which leaves it at the base of memory.
    mov x19, x0
    bl to_el1
    adrp x1, boot_tables
    add x1, x1, :lo12:boot_tables
    add x2, x1, #4096
    // A table: valid, table.
    orr x3, x2, #3
    str x3, [x1]
    str x3, [x1, #(256 * 8)]
    // Blocks of 1 GiB: not executable at EL0 (UXN); accessed; device memory (attribute 1) not executable at EL1 (PXN) either.
    mov x3, #0x405
    movk x3, #0x0060, lsl #48
    str x3, [x2]
    // Memory: attribute 0, inner shareable.
    mov x3, #0x701
    movk x3, #0x0040, lsl #48
    mov x4, #1
1:  orr x5, x3, x4, lsl #30
    str x5, [x2, x4, lsl #3]
    add x4, x4, #1
    cmp x4, #4
    b.lo 1b
    // The tables were written with caches off, and are walked with caches on: no cache may have an older line of them. QEMU has
    // no caches.
    mov x3, x1
    add x4, x1, #8192
2:  dc ivac, x3
    add x3, x3, #64
    cmp x3, x4
    b.lo 2b
    dsb sy
    bl enable_mmu
    adrp x1, boot_stack
    add x1, x1, :lo12:boot_stack
    add x1, x1, #STACK_SIZE
    // Exceptions have a stack of their own: SP_EL1 is theirs, SP_EL0 is everybody else's.
    add x2, x1, #STACK_SIZE
    mov sp, x2
    msr spsel, #0
    mov sp, x1
    mov x29, xzr
    mov x30, xzr
    mov x0, x19
    bl kernel_start
    brk #1

// A processor that PSCI has started: x0 is what it was given, the address of its `Begin` in the direct map.
.global processor_entry
processor_entry:
    mov x19, x0
    bl to_el1
    adrp x1, boot_tables
    add x1, x1, :lo12:boot_tables
    bl enable_mmu
    // The kernel's own tables: the stacks are only in those.
    ldp x1, x2, [x19]
    ldp x3, x0, [x19, #16]
    msr ttbr0_el1, x1
    msr ttbr1_el1, x1
    isb
    tlbi vmalle1
    dsb nsh
    isb
    mov sp, x3
    msr spsel, #0
    mov sp, x2
    mov x29, xzr
    mov x30, xzr
    bl processor_start
    brk #1

// To EL1, interrupts masked. Uses x1.
to_el1:
    msr daifset, #0xf
    mrs x1, CurrentEL
    cmp x1, #8
    b.ne 1f
    // HCR_EL2.RW: EL1 is 64-bit.
    mov x1, #(1 << 31)
    msr hcr_el2, x1
    // EL1 may use the timers, and the virtual one is the physical one.
    mov x1, #3
    msr cnthctl_el2, x1
    msr cntvoff_el2, xzr
    // Where the interrupt controller's CPU interface is in system registers, EL1 may use it: ICC_SRE_EL2, ICH_HCR_EL2.
    mrs x1, id_aa64pfr0_el1
    ubfx x1, x1, #24, #4
    cbz x1, 2f
    mov x1, #0xf
    msr S3_4_C12_C9_5, x1
    isb
    msr S3_4_C12_C11_0, xzr
2:  ldr x1, =0x30d00800
    msr sctlr_el1, x1
    // EL1h, everything masked.
    mov x1, #0x3c5
    msr spsr_el2, x1
    msr elr_el2, x30
    eret
1:  ret

// MMU and caches on, by the tables in x1. Uses x2, x3.
enable_mmu:
    // MAIR of pagefold-pagetable's entries.
    mov x2, #0x04ff
    msr mair_el1, x2
    // 48 bits of addresses in both halves, 4 KiB, walks through caches, inner shareable. Physical addresses as the processor has
    // them, 48 bits at most. Hardware sets access flags (HA) where it can.
    ldr x2, =0x00000000b5103510
    mrs x3, id_aa64mmfr0_el1
    and x3, x3, #0xf
    cmp x3, #5
    mov x4, #5
    csel x3, x3, x4, lo
    orr x2, x2, x3, lsl #32
    mrs x3, id_aa64mmfr1_el1
    and x3, x3, #0xf
    cbz x3, 1f
    orr x2, x2, #(1 << 39)
1:  msr tcr_el1, x2
    msr ttbr0_el1, x1
    msr ttbr1_el1, x1
    // Nothing from before may be remembered, neither translations nor instructions.
    dsb ish
    tlbi vmalle1
    ic iallu
    dsb nsh
    isb
    // M, C, I; SA: the stack is aligned.
    ldr x2, =0x30d0180d
    msr sctlr_el1, x2
    // What follows is fetched with the MMU on.
    isb
    ret

.ltorg

.section .bss.boot, "aw", @nobits
.balign 4096
boot_tables: .skip 8192
boot_stack:  .skip STACK_SIZE
             .skip STACK_SIZE
