// The vector table. Code runs on SP_EL0, so what it is interrupted by comes through the first group, and finds SP_EL1: a stack of
// its own for each processor. An exception while one is handled comes through the second group.

.macro vector kind
    .balign 0x80
    sub sp, sp, #304
    stp x0, x1, [sp]
    mov x0, #\kind
    b exception_entry
.endm

.section .text.vectors, "ax"
.balign 0x800
.global vectors
vectors:
    // From SP_EL0: synchronous, IRQ, FIQ, SError.
    vector 0
    vector 1
    vector 2
    vector 3
    // From SP_EL1.
    vector 4
    vector 5
    vector 6
    vector 7
    // From lower levels: there are none.
    vector 8
    vector 8
    vector 8
    vector 8
    vector 8
    vector 8
    vector 8
    vector 8

exception_entry:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    mrs x1, sp_el0
    mrs x2, elr_el1
    mrs x3, spsr_el1
    mrs x4, esr_el1
    mrs x5, far_el1
    stp x30, x1, [sp, #240]
    stp x2, x3, [sp, #256]
    stp x4, x5, [sp, #272]
    str x0, [sp, #288]
    mov x0, sp
    bl interrupt
    // SP_EL0 is as it was.
    ldp x2, x3, [sp, #256]
    msr elr_el1, x2
    msr spsr_el1, x3
    ldr x30, [sp, #240]
    ldp x28, x29, [sp, #224]
    ldp x26, x27, [sp, #208]
    ldp x24, x25, [sp, #192]
    ldp x22, x23, [sp, #176]
    ldp x20, x21, [sp, #160]
    ldp x18, x19, [sp, #144]
    ldp x16, x17, [sp, #128]
    ldp x14, x15, [sp, #112]
    ldp x12, x13, [sp, #96]
    ldp x10, x11, [sp, #80]
    ldp x8, x9, [sp, #64]
    ldp x6, x7, [sp, #48]
    ldp x4, x5, [sp, #32]
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp]
    add sp, sp, #304
    eret
