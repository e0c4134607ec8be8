//! Sizes, as people write them.

use pagefold_picture::amount::Units;

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
        .map_err(|_| format!("'{text}' is not a percentage; try 2%"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("between 0% and 100%".into()) }
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
}
