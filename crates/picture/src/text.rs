//! Addresses, shares and foreign text, as pictures show them.

use std::fmt;

/// A physical address in the largest unit that shows it exactly; or, where that takes more than five digits, about.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub u128);

impl Address {
    /// The address of a page.
    pub fn of(pfn: u64, page_bytes: u64) -> Address {
        Address(u128::from(pfn) * u128::from(page_bytes))
    }

    /// As short as it gets, for narrow columns: `1.5G`.
    pub fn short(self) -> String {
        let (number, unit) = self.parts();
        format!("{number}{}", unit.trim_end_matches("iB").trim_end_matches('B'))
    }

    fn parts(self) -> (String, &'static str) {
        const UNITS: [(&str, u32); 6] =
            [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
        if self.0 == 0 {
            return ("0".into(), "");
        }
        // Up to two binary digits behind the point are two decimal ones.
        let exact = |shift: u32| self.0 >> shift > 0 && (self.0 << 2).trailing_zeros() >= shift;
        let (unit, shift) = UNITS.into_iter().find(|&(_, shift)| exact(shift)).unwrap_or(("B", 0));
        let quarters = self.0 << 2 >> shift;
        if quarters < 400_000 {
            let fraction = ["", ".25", ".5", ".75"][(quarters % 4) as usize];
            return (format!("{}{fraction}", quarters / 4), unit);
        }
        let (unit, shift) = UNITS.into_iter().find(|&(_, shift)| self.0 >> shift > 0).unwrap_or(("B", 0));
        (format!("~{:.1}", self.0 as f64 / (1u128 << shift) as f64), unit)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = self.parts();
        f.pad(format!("{number} {unit}").trim_end())
    }
}

/// A part of a whole, in per cent.
#[derive(Clone, Copy, Debug)]
pub struct Share(pub u64, pub u64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 as f64 * 100.0 / self.1.max(1) as f64;
        let text = match self.0 {
            0 => "0 %".into(),
            part if part == self.1 => "100 %".into(),
            _ if percent < 0.1 => "< 0.1 %".into(),
            // Not quite all must not look like all.
            _ => format!("{:.1} %", percent.min(99.9)),
        };
        f.pad(&text)
    }
}

/// `text` without characters that steer terminals or that XML forbids.
pub fn printable(text: &str) -> String {
    let is_bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_bad(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_exact_and_short() {
        for (bytes, long, short) in [
            (0, "0", "0"),
            (4096, "4 KiB", "4K"),
            (640 << 10, "640 KiB", "640K"),
            (3 << 29, "1.5 GiB", "1.5G"),
            (25 << 28, "6.25 GiB", "6.25G"),
            ((25 << 28) + (1 << 20), "6401 MiB", "6401M"),
            (1 << 40, "1 TiB", "1T"),
            (64 << 40, "64 TiB", "64T"),
            ((29 << 40) + 4096, "~29.0 TiB", "~29.0T"),
        ] {
            let address = Address(bytes);
            assert_eq!((address.to_string().as_str(), address.short().as_str()), (long, short));
        }
    }

    #[test]
    fn shares_do_not_round_to_nothing_or_to_all() {
        assert_eq!(Share(0, 10).to_string(), "0 %");
        assert_eq!(Share(1, 1 << 40).to_string(), "< 0.1 %");
        assert_eq!(Share(1, 3).to_string(), "33.3 %");
        assert_eq!(Share((1 << 40) - 1, 1 << 40).to_string(), "99.9 %");
        assert_eq!(Share(3, 3).to_string(), "100 %");
        assert_eq!(Share(0, 0).to_string(), "0 %");
    }

    #[test]
    fn foreign_text_steers_nothing() {
        assert_eq!(printable("a\x1b[31mb\0\u{202e}c ü"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c ü");
    }
}
