//! Shapes of huge page pools: `2M:1000,1G:4`.

use pagefold_machine::host::Pool;

use crate::size::parse_bytes;

/// Pools as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages(pub Vec<Pool>);

/// Reads a shape.
pub fn parse_shape(text: &str) -> Result<HugePages, String> {
    let mut pools: Vec<Pool> = Vec::new();
    for part in text.split(',') {
        let (size, pages) =
            part.split_once(':').ok_or_else(|| format!("'{part}' is no pool; try 2M:1000 or 1G:4"))?;
        let size = parse_bytes(size)?;
        if !size.is_power_of_two() || !(64 << 10..=16 << 30).contains(&size) {
            return Err(format!("no kernel has huge pages of {size} bytes; try 2M or 1G"));
        }
        let pages = pages.trim().parse().map_err(|_| format!("'{pages}' is no number of huge pages"))?;
        if pools.iter().any(|pool| pool.size == size) {
            return Err(format!("two pools of one size ({size} bytes)"));
        }
        pools.push(Pool { size, pages, free: pages, surplus: 0 });
    }
    pools.sort_by_key(|pool| pool.size);
    Ok(HugePages(pools))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shapes_as_people_write_them() {
        let HugePages(pools) = parse_shape("1G:4,2M:1000").unwrap();
        let sizes: Vec<_> = pools.iter().map(|pool| (pool.size, pool.pages)).collect();
        assert_eq!(sizes, [(2 << 20, 1000), (1 << 30, 4)]);
        for text in ["", "2M", "2M:", "2M:x", "3M:1", "2M:1,2M:2", "4K:1", "1T:1", "2M:-1", "2M:1,"] {
            assert!(parse_shape(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_shape(text in "([0-9]{1,20}[KMGTP]?:[0-9]{1,21},?|.{0,20}){0,4}") {
            let _ = parse_shape(&text);
        }
    }
}
