//! Repeated string instructions of x86.

/// Whether an instruction repeats: a string instruction with a REP, REPE or REPNE prefix (Intel SDM, volume 2, chapter 2.1.1
/// and appendix A). QEMU executes each iteration as a block of its own.
pub fn is_repeated(instruction: &[u8]) -> bool {
    let mut repeats = false;
    for &byte in instruction {
        match byte {
            0xf2 | 0xf3 => repeats = true,
            // Segments, operand and address size, LOCK; and REX, which is no prefix outside of 64-bit mode, but is then a
            // whole instruction.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0x40..=0x4f => {}
            // INS and OUTS; MOVS and CMPS; STOS, LODS and SCAS.
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => return repeats,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_repeated;

    #[test]
    fn prefixes_and_string_instructions() {
        assert!(is_repeated(&[0xf3, 0xaa]), "rep stosb");
        assert!(is_repeated(&[0xf3, 0x48, 0xab]), "rep stosq");
        assert!(is_repeated(&[0xf3, 0x66, 0xa5]), "rep movsw");
        assert!(is_repeated(&[0x66, 0xf2, 0xaf]), "repne scasw");
        assert!(!is_repeated(&[0xaa]), "stosb");
        assert!(!is_repeated(&[0xf3, 0x0f, 0xb8, 0xc1]), "popcnt");
        assert!(!is_repeated(&[0xf3, 0x90]), "pause");
        assert!(!is_repeated(&[0xa8, 0xaa]), "test al, 0xaa");
        assert!(!is_repeated(&[0xf3]), "cut off");
        assert!(!is_repeated(&[]));
    }
}
