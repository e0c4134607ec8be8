//! Sizes, as people write them on command lines and in files.

use core::fmt;

use thiserror::Error;

/// The most memory that page numbers can name: 2^52 bytes.
const MAX_BYTES: u64 = 1 << 52;

/// Units and their shifts, the largest first.
const UNITS: [(&str, u32); 6] = [("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SizeError<'a> {
    /// It has no number in front.
    #[error("'{0}' is not a size; try 512M or 1T")]
    NotASize(&'a str),
    /// The number is followed by something that is no unit.
    #[error("unknown unit '{0}'; use K, M, G, T or P")]
    Unit(&'a str),
    /// More than page numbers can name.
    #[error("more than 4P: no page number has that many bits")]
    TooMuch,
}

/// Reads a size (`4096`, `512M`, `1T`, `1.5GiB`, `4 GiB`) as bytes. Units are powers of 1024, in either case.
///
/// # Errors
/// [`SizeError`].
pub fn parse_bytes(text: &str) -> Result<u64, SizeError<'_>> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let number = number(digits).ok_or(SizeError::NotASize(text))?;
    let unit = unit.trim();
    let letter = unit.trim_end_matches(['b', 'B']).trim_end_matches(['i', 'I']);
    let found = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(letter));
    let (_, shift) = found.ok_or(SizeError::Unit(unit))?;
    let bytes = number * (1u64 << shift) as f64;
    if !bytes.is_finite() || bytes > MAX_BYTES as f64 {
        return Err(SizeError::TooMuch);
    }
    Ok(bytes as u64)
}

/// A number in plain digits: no sign, no exponent.
pub(crate) fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_plain { text.parse().ok() } else { None }
}

/// Bytes as the shortest text that [`parse_bytes`] reads as exactly them: `512M`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exactly(pub u64);

impl fmt::Display for Exactly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shifts = if self.0 == 0 { 0 } else { self.0.trailing_zeros() };
        let unit = UNITS.iter().find(|(_, shift)| *shift <= shifts).unwrap_or(&("", 0));
        write!(f, "{}{}", self.0 >> unit.1, unit.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1 << 10),
            ("1MiB", 1 << 20),
            ("1.5g", 3 << 29),
            ("4 GiB", 4 << 30),
            ("1TB", 1 << 40),
            ("4P", 1 << 52),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1G", "nan", "1.2.3K", "."] {
            assert_eq!(parse_bytes(text), Err(SizeError::NotASize(text)), "{text}");
        }
        assert_eq!(parse_bytes("1 X"), Err(SizeError::Unit("X")));
        assert_eq!(parse_bytes("1e400"), Err(SizeError::Unit("e400")));
        assert_eq!(parse_bytes("5P"), Err(SizeError::TooMuch));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in 0..=MAX_BYTES, shift in 0u32..52) {
            for bytes in [number, number >> shift << shift] {
                let text = Exactly(bytes).to_string();
                prop_assert_eq!(parse_bytes(&text), Ok(bytes), "{}", text);
            }
        }

        #[test]
        fn any_text_is_judged(text in any::<String>()) {
            let _ = parse_bytes(&text);
        }
    }
}
