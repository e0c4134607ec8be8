//! Numbers and amounts of memory, as people read them.

use std::fmt;

/// Bytes in the largest binary unit that leaves a number of at least 1, with four significant digits.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = scaled(self.0 as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
        f.pad(&text)
    }
}

/// How amounts of memory are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// Powers of 1024: KiB, MiB.
    #[default]
    Iec,
    /// Powers of 1000: kB, MB.
    Si,
    /// Plain bytes.
    Bytes,
}

impl Units {
    /// An amount of memory for people.
    pub fn show(self, bytes: u64) -> String {
        match self {
            Units::Iec => Bytes(bytes).to_string(),
            Units::Si => scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"]),
            Units::Bytes => bytes.to_string(),
        }
    }

    /// An amount of memory in a sentence, where a bare number would not say of what.
    pub fn words(self, bytes: u64) -> String {
        match self {
            Units::Bytes => format!("{bytes} bytes"),
            _ => self.show(bytes),
        }
    }

    /// A size that is what it is called, without places after the point: 2 MiB.
    pub fn size(self, bytes: u64) -> String {
        let text = self.show(bytes);
        match text.split_once('.') {
            Some((whole, rest)) if rest.trim_start_matches('0').starts_with(' ') => {
                format!("{whole}{}", rest.trim_start_matches('0'))
            }
            _ => text,
        }
    }
}

/// A count, or a rate, with a decimal unit.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub f64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(scaled(self.0, 1000.0, &["", "k", "M", "G", "T"]).trim_end())
    }
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 && value.fract() == 0.0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// A whole number with thousands separated.
#[derive(Clone, Copy, Debug)]
pub struct Whole(pub u64);

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(402_653_184).to_string(), "384 MiB");
        assert_eq!(Bytes(1536).to_string(), "1.50 KiB");
        assert_eq!(Units::Si.show(402_653_184), "403 MB");
        assert_eq!(Units::Iec.size(2 << 20), "2 MiB");
        assert_eq!(Units::Iec.size(1536), "1.50 KiB");
        assert_eq!(Units::Bytes.show(402_653_184), "402653184");
        assert_eq!(Units::Bytes.words(402_653_184), "402653184 bytes");
        assert_eq!(Count(12_345_678.0).to_string(), "12.3 M");
        assert_eq!(Count(7.0).to_string(), "7");
        assert_eq!(Whole(6_291_358).to_string(), "6,291,358");
        assert_eq!(Whole(12).to_string(), "12");
    }
}
