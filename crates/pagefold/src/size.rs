//! Sizes, read and written.

use std::fmt;

/// Reads a size (`4096`, `512M`, `1T`, `1.5GiB`) as pages of 4 KiB.
pub fn parse_pages(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < 4096 {
        return Err("smaller than a page (4096)".into());
    }
    Ok(bytes / 4096)
}

/// Reads a size as bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    pagefold_workload::parse_bytes(text).map_err(|error| error.to_string())
}

/// Reads seconds.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 =
        text.trim_end_matches('s').parse().map_err(|_| format!("'{text}' is not a time in seconds"))?;
    if (0.0..=1e6).contains(&seconds) { Ok(seconds) } else { Err("between 0 and 1000000 seconds".into()) }
}

/// Reads a part of memory: `2%`, `1.6`.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text
        .trim_end_matches('%')
        .trim()
        .parse()
        .map_err(|_| format!("'{text}' is no percentage; try 2%"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("between 0% and 100%".into()) }
}

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

/// `--si` and `--bytes`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct UnitArgs {
    /// Powers of 1000 (kB, MB) instead of 1024 (KiB, MiB)
    #[arg(long, conflicts_with = "bytes", help_heading = "Output")]
    si: bool,

    /// Plain bytes
    #[arg(long, help_heading = "Output")]
    bytes: bool,
}

impl UnitArgs {
    pub fn units(self) -> Units {
        match self {
            UnitArgs { bytes: true, .. } => Units::Bytes,
            UnitArgs { si: true, .. } => Units::Si,
            _ => Units::Iec,
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
    fn sizes_are_read_as_people_write_them() {
        for (text, pages) in
            [("4096", 1), ("1M", 256), ("1MiB", 256), ("1.5g", 3 << 17), ("1T", 1 << 28), ("1 P", 1 << 38)]
        {
            assert_eq!(parse_pages(text), Ok(pages), "{text}");
        }
        for text in ["", "M", "-1G", "1X", "5P", "1e400", "100", "0", "nan", "1.2.3K"] {
            assert!(parse_pages(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(parse_seconds("0.5"), Ok(0.5));
        assert_eq!(parse_seconds("2s"), Ok(2.0));
        for text in ["", "-1", "nan", "inf", "1e9", "x"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_are_bounded() {
        assert_eq!(parse_percent("1.6%"), Ok(1.6));
        assert_eq!(parse_percent("2"), Ok(2.0));
        for text in ["", "%", "-1%", "101%", "nan", "x"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }

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
