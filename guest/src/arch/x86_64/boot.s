# From PVH's 32-bit protected mode without paging, and from a started processor's real mode, to 64-bit Rust.
#
# The boot page tables map the first 4 GiB onto themselves, in pages of 2 MiB, and once more where the direct map begins.
# They serve until the kernel has tables of its own, and every further processor on its way there.

.set STACK_SIZE, 16384
.set CR0_PE, 1
.set CR0_WP, 1 << 16
.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set CR4_OSFXSR, 1 << 9
.set MSR_EFER, 0xc0000080
.set EFER_LME_NXE, (1 << 8) | (1 << 11)

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    cld
    cli
    mov esp, offset boot_stack + STACK_SIZE
    # 2,048 pages of 2 MiB: present, writable, large.
    mov edi, offset boot_pd
    mov eax, 0x83
    mov ecx, 2048
1:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 0x200000
    add edi, 8
    loop 1b
    mov edi, offset boot_pdpt
    mov eax, offset boot_pd + 3
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b
    mov eax, offset boot_pdpt + 3
    mov edi, offset boot_pml4
    mov [edi], eax
    mov [edi + 256 * 8], eax
    call enable_long_mode
    lgdt [boot_gdt_pointer]
    ljmp 8, offset boot_64

# Paging and long mode, by the boot page tables. Uses eax, ecx, edx.
enable_long_mode:
    mov eax, cr4
    or eax, CR4_PAE | CR4_OSFXSR
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME_NXE
    wrmsr
    mov eax, cr0
    or eax, CR0_PG | CR0_WP | CR0_PE
    mov cr0, eax
    ret

.code64
boot_64:
    xor eax, eax
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    xor ebp, ebp
    mov edi, ebx
    lea rsp, [boot_stack + STACK_SIZE]
    call kernel_start
    ud2

# ---- further processors ------------------------------------------------------------------------------------------

# Copied to TRAMPOLINE, below 1 MiB, where a processor begins in real mode with cs = TRAMPOLINE >> 4 and ip = 0.
.set TRAMPOLINE, 0x8000
.code16
.global trampoline_start
.global trampoline_end
trampoline_start:
    cli
    cld
    xor ax, ax
    mov ds, ax
    lgdt [trampoline_gdt]
    mov eax, cr0
    or eax, CR0_PE
    mov cr0, eax
    .byte 0x66, 0xea    # ljmp 0x18:trampoline_32, with a 32-bit offset
    .long TRAMPOLINE + (trampoline_32 - trampoline_start)
    .word 0x18
.code32
trampoline_32:
    mov ax, 0x20
    mov ds, ax
    mov ss, ax
    mov esp, TRAMPOLINE + 0x1000
    # An absolute call: this code runs elsewhere than it was linked.
    mov eax, offset enable_long_mode
    call eax
    ljmp 8, offset processor_64
.balign 8
trampoline_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:
.set trampoline_gdt, TRAMPOLINE + (trampoline_gdt_pointer - trampoline_start)

.code64
processor_64:
    xor eax, eax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    xor ebp, ebp
    # The kernel's own tables first: the stack is only in those.
    mov rax, [starting_cr3]
    mov cr3, rax
    mov rsp, [starting_stack]
    mov rdi, [starting_cpu]
    call processor_start
    ud2

.section .data.boot, "aw"
.balign 16
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    # 0x08: 64-bit code
    .quad 0x00cf92000000ffff    # 0x10: data
    .quad 0x00cf9a000000ffff    # 0x18: 32-bit code
    .quad 0x00cf92000000ffff    # 0x20: 32-bit data
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.global boot_pml4
boot_pml4:  .skip 4096
boot_pdpt:  .skip 4096
boot_pd:    .skip 4 * 4096
boot_stack: .skip STACK_SIZE
