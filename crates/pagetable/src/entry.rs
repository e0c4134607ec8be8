//! What the bits of an entry mean.

/// Which kind of entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// It leads to a page.
    Page,
    /// It leads to a table.
    Table,
}

/// What may be done through an entry of a kernel's own map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and execute.
    Code,
    /// Read.
    ReadOnly,
    /// Read and write.
    Data,
    /// Read and write device registers: nothing is cached, repeated or reordered.
    Device,
}

/// An architecture's entries: words of 64 bits.
///
/// A value, since what entries look like may depend on what a processor can do.
pub trait Entry: Copy + Send + Sync {
    /// Whether a table that is in use may give way, in one step, to another one that says the same of every address.
    const TABLES_GIVE_WAY: bool;

    /// Leads to a table. Whatever is below decides what may be done.
    fn branch(self, table: u64) -> u64;
    /// A page of 4 KiB that can be written, and counts as used.
    fn page(self, frame: u64) -> u64 {
        self.leaf(frame, Access::Data, false)
    }
    /// The same, read-only.
    fn read_only(self, frame: u64) -> u64 {
        self.leaf(frame, Access::ReadOnly, false)
    }
    /// The zeroed frame: read-only, and not used yet.
    fn zero(self, frame: u64) -> u64;
    /// A page of the kernel's own map at this physical address; `is_large` where it stands at a level above page tables.
    fn leaf(self, physical: u64, access: Access, is_large: bool) -> u64;

    /// Whether hardware may use the entry.
    fn is_present(self, word: u64) -> bool;
    /// Whether an entry above page tables is a large page.
    fn is_large(self, word: u64) -> bool;
    /// Whether the entry of a page is present and can be written through.
    fn is_writable(self, word: u64) -> bool;
    /// The physical address in an entry, present or not.
    fn address(self, word: u64) -> u64;
    /// Whether it can be seen that no hardware has used a present entry since it was written, so that nothing of it can be
    /// remembered anywhere.
    fn is_unused(self, word: u64, level: Level) -> bool;
    /// A present entry, once hardware has used it.
    fn used(self, word: u64, level: Level) -> u64;

    /// The entry made not present; all else stays in it.
    fn broken(self, word: u64) -> u64;
    /// A broken entry made present again.
    fn mended(self, word: u64) -> u64;

    /// How many entries of the table that this one leads to are that table's own (0 to 512), present or not.
    fn count(self, word: u64) -> u64;
    /// The entry with another such count.
    fn with_count(self, word: u64, count: u64) -> u64;
}
