//! Programs of a few bytes that QEMU boots as if they were kernels.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

/// Where it is loaded, and its header's size: the code comes after.
pub const ADDRESS: u32 = 1 << 20;
pub const HEADER: u32 = 32;

/// An image with this code, 32-bit, interrupts off; in a directory that must live until QEMU runs. It is of the kind that
/// needs no ELF file around it (Multiboot 0.6.96, section 3.1, "address fields").
pub fn image(code: &[u8]) -> (TempDir, PathBuf) {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
    // Header, start and end (the file's) of what is loaded, end of what is zeroed (none), entry.
    let header = [MAGIC, HAS_ADDRESSES, checksum, ADDRESS, ADDRESS, 0, 0, ADDRESS + HEADER];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(code);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Code that prints on the console.
pub fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        // mov al, byte; out dx, al
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// Code that stops, for good unless interrupts that cannot be masked come: `hlt`, again and again.
pub const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
