//! The ways to add memory to a guest, and how far each of them goes.

use serde::Serialize;

use super::guest::PlannedGuest;

/// One way to add memory.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Way {
    /// A name.
    pub name: &'static str,
    /// Whether Linux has it.
    pub in_linux: bool,
    /// Whether all of it can be added.
    pub works: bool,
    /// Bytes that must be free before it begins.
    pub needs: u64,
    /// The most that can be added this way, in bytes; `None`: no limit by descriptors.
    pub largest: Option<u64>,
    /// What there is to know.
    pub note: String,
}

impl PlannedGuest {
    /// All ways, for so many blocks, which are so many bytes.
    pub(super) fn ways(&self, added: u64, blocks: u64) -> Vec<Way> {
        let needs = self.needs(blocks).all();
        let one = self.needs(1).all();
        let spare = self.spare();
        let objects = self.objects().saturating_add(self.needs(1).page_ext);
        let map_pages = self.shape.descriptors(self.block) / self.shape.page.max(1);
        let folded = objects.saturating_add(map_pages * 73 / 8);
        let way = |name, in_linux, needs: u64, largest: Option<u64>, note: &str| Way {
            name,
            in_linux,
            works: needs <= spare && largest.is_none_or(|largest| largest >= added),
            needs,
            largest,
            note: note.into(),
        };
        let kernel = self.planned.is_asked.then_some(&self.planned.kernel);
        let has = |first| !kernel.is_some_and(|kernel| kernel.is_before(first));
        // A block's descriptors must fill whole entries of the second level of page tables (mhp_supports_memmap_on_memory).
        let fills = self.shape.descriptors(self.block).is_multiple_of(self.planned.kernel.page_block());
        let on_memory = match (has((5, 13)), fills) {
            (false, _) => Some("not in this kernel: it came with Linux 5.13"),
            (_, false) => Some("not with blocks of this size: their descriptors fill no whole huge page"),
            _ => None,
        };
        vec![
            way(
                "at once (DIMM, ACPI)",
                true,
                needs,
                Some(self.largest(spare, one)),
                "all descriptors before any of it is online",
            ),
            way(
                "virtio-mem, online_movable",
                true,
                needs,
                Some(self.largest(spare, one)),
                "block by block, but ZONE_MOVABLE holds no descriptors: it stops midway",
            ),
            way(
                "virtio-mem, online_kernel",
                true,
                one,
                if one <= spare { None } else { Some(0) },
                "each block holds the next one's descriptors; hard to take away again",
            ),
            way(
                "memmap_on_memory (DIMM, ACPI)",
                true,
                blocks.saturating_mul(objects),
                Some(if on_memory.is_some() { 0 } else { self.largest(spare, objects) }),
                on_memory.unwrap_or("descriptors on the block itself; virtio-mem does not use it"),
            ),
            way(
                "folding",
                false,
                blocks.saturating_mul(folded),
                Some(self.largest(spare, folded)),
                "no descriptors until a page is used",
            ),
        ]
    }
}
