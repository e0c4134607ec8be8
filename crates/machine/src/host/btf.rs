//! Sizes of kernel structures, from the kernel's own type information (BTF, `/sys/kernel/btf/vmlinux`, which everyone may
//! read).
//!
//! Only what is needed: structures by name, their sizes, and the names of their members. The format is that of
//! `Documentation/bpf/btf.rst`: a header, a section of types and a section of names. 5 MB of types are walked once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why type information cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It does not begin as BTF of this machine's byte order.
    #[error("it is not BTF of this byte order (magic {0:#06x})")]
    Magic(u16),
    /// It ends too early.
    #[error("it is cut off")]
    Truncated,
    /// A kind of type that this program does not know, so that it cannot skip it.
    #[error("it has a kind of type ({0}) from a newer kernel")]
    Kind(u32),
}

/// A structure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Struct {
    /// Bytes.
    pub size: u64,
    /// Whether it has a member of the name that was asked for.
    pub has_member: bool,
}

const MAGIC: u16 = 0xeb9f;
/// Members that are looked at for one name. `struct page` has some hundred; garbage may nest without end.
const MAX_MEMBERS: u32 = 1000;

/// Finds structures by name. `wanted` pairs each with a member to look for, `""` for none; members of anonymous structures
/// and unions inside count. The first structure of a name that is larger than nothing is taken.
///
/// # Errors
/// [`BtfError`].
pub fn structs<'a>(bytes: &[u8], wanted: &[(&'a str, &str)]) -> Result<BTreeMap<&'a str, Struct>, BtfError> {
    let types = Types::new(bytes)?;
    let mut found = BTreeMap::new();
    for &at in &types.list {
        let [Some(name), Some(info), Some(size)] = [at, at + 4, at + 8].map(|at| types.word(at)) else {
            return Err(BtfError::Truncated);
        };
        if kind(info) != KIND_STRUCT || size == 0 {
            continue;
        }
        if let Some(&(wanted, member)) = wanted.iter().find(|(wanted, _)| types.name_is(name, wanted)) {
            found.entry(wanted).or_insert_with(|| {
                let has_member = !member.is_empty() && types.has_member(at, member, &mut { MAX_MEMBERS });
                Struct { size: u64::from(size), has_member }
            });
        }
    }
    Ok(found)
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// The types of one BTF blob.
struct Types<'a> {
    bytes: &'a [u8],
    /// Where each type stands; type 1 first.
    list: Vec<usize>,
    strings: usize,
    strings_end: usize,
}

impl<'a> Types<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let magic = half(0).ok_or(BtfError::Truncated)?;
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let mut types = Self { bytes, list: Vec::new(), strings: 0, strings_end: 0 };
        let field = |at: usize| types.word(at).map(|word| word as usize).ok_or(BtfError::Truncated);
        // header: u16 magic, u8 version, u8 flags, u32 hdr_len, type_off, type_len, str_off, str_len
        let header = field(4)?;
        let section = |offset: usize, length: usize| -> Result<(usize, usize), BtfError> {
            let start = header.checked_add(offset).ok_or(BtfError::Truncated)?;
            let end = start.checked_add(length).ok_or(BtfError::Truncated)?;
            if end > bytes.len() { Err(BtfError::Truncated) } else { Ok((start, end)) }
        };
        let (start, end) = section(field(8)?, field(12)?)?;
        (types.strings, types.strings_end) = section(field(16)?, field(20)?)?;
        let mut at = start;
        while at < end {
            let info = types.word(at + 4).ok_or(BtfError::Truncated)?;
            types.list.push(at);
            at += 12 + rest(info)?;
        }
        Ok(types)
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        let names = self.bytes.get(self.strings..self.strings_end).unwrap_or_default();
        let Some(from) = names.get(offset as usize..) else { return false };
        from.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn has_member(&self, at: usize, name: &str, budget: &mut u32) -> bool {
        let members = self.word(at + 4).unwrap_or(0) & 0xffff;
        for member in 0..members as usize {
            let at = at + 12 + member * 12;
            let (Some(own), Some(id)) = (self.word(at), self.word(at + 4)) else { return false };
            match budget.checked_sub(1) {
                Some(rest) => *budget = rest,
                None => return false,
            }
            if own != 0 {
                if self.name_is(own, name) {
                    return true;
                }
                continue;
            }
            // Anonymous: what is inside counts.
            let inner = (id as usize).checked_sub(1).and_then(|id| self.list.get(id)).copied();
            let is_aggregate =
                |at: usize| matches!(kind(self.word(at + 4).unwrap_or(0)), KIND_STRUCT | KIND_UNION);
            if inner
                .filter(|&inner| is_aggregate(inner))
                .is_some_and(|inner| self.has_member(inner, name, budget))
            {
                return true;
            }
        }
        false
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes of a type after its first twelve.
fn rest(info: u32) -> Result<usize, BtfError> {
    let vlen = (info & 0xffff) as usize;
    Ok(match kind(info) {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => vlen * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => vlen * 8,
        other => return Err(BtfError::Kind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct page { union { long flags; }; int refcount; }` of 64 bytes, and a forward `page`.
    fn blob() -> Vec<u8> {
        let names = b"\0page\0flags\0refcount\0";
        let mut types: Vec<u32> = Vec::new();
        let info = |kind: u32, vlen: u32| kind << 24 | vlen;
        types.extend([1, info(7, 0), 0]); // 1: struct page;
        types.extend([0, info(1, 0), 4, 32]); // 2: int
        types.extend([0, info(5, 1), 8, 6, 2, 0]); // 3: union { flags }
        types.extend([1, info(4, 2), 64, 0, 3, 0, 12, 2, 64]); // 4: struct page { union; refcount }
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = types.len() as u32 * 4;
        for word in [24, 0, length, length, names.len() as u32].into_iter().chain(types) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(names);
        bytes
    }

    #[test]
    fn sizes_and_members() {
        let blob = blob();
        let found = |member| structs(&blob, &[("page", member), ("folio", "")]).unwrap();
        assert_eq!(found("")["page"], Struct { size: 64, has_member: false });
        assert!(found("flags")["page"].has_member);
        assert!(found("refcount")["page"].has_member);
        assert!(!found("memcg_data")["page"].has_member);
        assert!(!found("").contains_key("folio"));
    }

    #[test]
    fn errors_say_which() {
        assert_eq!(structs(b"\x7fELF", &[]), Err(BtfError::Magic(0x457f)));
        assert_eq!(structs(b"", &[]), Err(BtfError::Truncated));
        let blob = blob();
        for length in 2..blob.len() {
            assert_eq!(structs(&blob[..length], &[("page", "")]), Err(BtfError::Truncated), "{length}");
        }
        let mut newer = blob;
        newer[24 + 7] = 31;
        assert_eq!(structs(&newer, &[]), Err(BtfError::Kind(31)));
    }

    #[test]
    fn a_structure_that_contains_itself_ends() {
        let mut blob = blob();
        // The union's member becomes anonymous, and of the union's own type.
        let union = 24 + 12 + 16;
        blob[union + 12..union + 20].copy_from_slice(&[0, 0, 0, 0, 3, 0, 0, 0]);
        assert!(!structs(&blob, &[("page", "none")]).unwrap()["page"].has_member);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_types(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = structs(&bytes, &[("page", "flags")]);
        }

        #[test]
        fn any_change_is_an_error_or_types(at in 0usize..200, byte: u8) {
            let mut blob = blob();
            let at = at % blob.len();
            blob[at] = byte;
            let _ = structs(&blob, &[("page", "flags")]);
        }
    }
}
