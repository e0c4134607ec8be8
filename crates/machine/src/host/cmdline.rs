//! `/proc/cmdline`: the few boot options that change what descriptors cost. The rest is not kept.

use serde::{Deserialize, Serialize};

/// Boot options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BootOptions {
    /// `hugetlb_free_vmemmap`: HVO, from the first huge page on.
    pub hvo: Option<bool>,
    /// Options that give every page a `page_ext` beside its descriptor: `page_owner=on`, `page_table_check=on`.
    pub page_ext: Vec<String>,
}

impl BootOptions {
    /// Reads the command line; later options win.
    pub fn parse(text: &str) -> Self {
        let mut options = Self::default();
        for word in text.split_ascii_whitespace().take_while(|&word| word != "--") {
            let (name, value) = word.split_once('=').unwrap_or((word, "on"));
            let is_on = matches!(value, "on" | "1" | "y" | "Y" | "true");
            match name {
                "hugetlb_free_vmemmap" => options.hvo = Some(is_on),
                "page_owner" | "page_table_check" => {
                    options.page_ext.retain(|option| option != name);
                    if is_on {
                        options.page_ext.push(name.to_owned());
                    }
                }
                _ => {}
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_one_wins() {
        let options = BootOptions::parse(
            "quiet hugetlb_free_vmemmap=off page_owner=on hugetlb_free_vmemmap=on page_table_check=off -- \
             hugetlb_free_vmemmap=off",
        );
        assert_eq!(options, BootOptions { hvo: Some(true), page_ext: vec!["page_owner".into()] });
        assert_eq!(BootOptions::parse("").hvo, None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "((hugetlb_free_vmemmap|page_owner)=?[a-z=]{0,4} |.{0,40}){0,6}") {
            let _ = BootOptions::parse(&text);
        }
    }
}
