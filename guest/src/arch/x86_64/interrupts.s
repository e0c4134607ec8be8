# One stub a vector, 16 bytes apart: the error code where the processor pushes none, the vector, and on to the handler.

.section .text.interrupts, "ax"
.code64
.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
        push 0
    .endif
    .byte 0x68          # push imm32
    .long vector
    jmp interrupt_entry
    .set vector, vector + 1
.endr

interrupt_entry:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    # The frame is 22 words; the stack was aligned to 16 bytes before the processor pushed.
    mov rbp, rsp
    and rsp, -16
    call interrupt
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
