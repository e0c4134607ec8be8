//! What a descriptor is, as the command line spells it.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DescriptorsArg {
    /// 64 bytes a page, as Linux's struct page
    Page,
    /// 8 bytes a page, and an object a folio: Linux's plan
    Memdesc,
}
