//! Kernel releases.

/// The first two numbers of a kernel release: `(6, 12)` of `6.12.43+deb13-amd64`.
pub fn release(kernel: &str) -> Option<(u64, u64)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
