//! The kernel's own types (BTF), of itself and of its modules: numbers of functions, and where a member of a structure stands.
//! <https://docs.kernel.org/bpf/btf.html>

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;

/// Kinds of types, from `include/uapi/linux/btf.h`.
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FUNCTION: u32 = 12;
    pub const FUNCTION_PROTOTYPE: u32 = 13;
    pub const VARIABLE: u32 = 14;
    pub const DATA_SECTION: u32 = 15;
    pub const DECLARATION_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

#[derive(Clone, Copy, Debug)]
struct Type {
    /// Where its name stands.
    name: u32,
    info: u32,
    /// Where its members stand.
    members: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn count(self) -> usize {
        self.info as usize & 0xffff
    }
}

/// Types of the kernel, or of one of its modules, which go on where the kernel's end.
#[derive(Debug)]
pub struct Types<'a> {
    base: Option<&'a Types<'a>>,
    types: Vec<Type>,
    /// Numbers of its functions and structures by name.
    names: HashMap<(u32, Vec<u8>), u32>,
    data: Vec<u8>,
    strings: std::ops::Range<usize>,
}

/// Where a member of a structure stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Bytes from the beginning of the structure.
    pub offset: usize,
    /// Number of its type.
    pub type_id: u32,
}

impl<'a> Types<'a> {
    /// Reads what `/sys/kernel/btf` has. `base`: the kernel's own, for a module's. None: it is no such thing.
    pub fn parse(data: Vec<u8>, base: Option<&'a Self>) -> Option<Self> {
        if u16_at(&data, 0)? != MAGIC {
            return None;
        }
        let header = u32_at(&data, 4)? as usize;
        let section = |at| {
            let start = header + u32_at(&data, at)? as usize;
            let end = start.checked_add(u32_at(&data, at + 4)? as usize)?;
            (end <= data.len()).then_some(start..end)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut found = Vec::new();
        let mut at = types.start;
        while at + 12 <= types.end {
            let of = Type { name: u32_at(&data, at)?, info: u32_at(&data, at + 4)?, members: at + 12 };
            at += 12 + of.count() * Self::member_size(of.kind()) + Self::rest(of.kind());
            found.push(of);
        }
        let mut all = Self { base, types: found, names: HashMap::new(), data, strings };
        let first = all.first();
        let named = all.types.iter().zip(first..).filter_map(|(of, id)| {
            let is_wanted = [kind::FUNCTION, kind::STRUCT].contains(&of.kind());
            is_wanted.then(|| ((of.kind(), all.string(of.name).unwrap_or_default().to_vec()), id))
        });
        all.names = named.collect();
        Some(all)
    }

    const fn member_size(kind: u32) -> usize {
        match kind {
            kind::STRUCT | kind::UNION | kind::DATA_SECTION | kind::ENUM64 => 12,
            kind::ENUM | kind::FUNCTION_PROTOTYPE => 8,
            _ => 0,
        }
    }

    const fn rest(kind: u32) -> usize {
        match kind {
            kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => 4,
            kind::ARRAY => 12,
            _ => 0,
        }
    }

    /// The number of its first type: 0 is the kernel's `void`.
    fn first(&self) -> u32 {
        self.base.map_or(1, |base| base.first() + base.types.len() as u32)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let before = self.base.map_or(0, |base| base.strings.len());
        let Some(offset) = (offset as usize).checked_sub(before) else {
            return self.base?.string(offset);
        };
        let text = self.data.get(self.strings.clone())?.get(offset..)?;
        text.split(|byte| *byte == 0).next()
    }

    fn of(&self, id: u32) -> Option<(&Self, Type)> {
        match id.checked_sub(self.first()) {
            Some(index) => Some((self, *self.types.get(index as usize)?)),
            None => self.base?.of(id),
        }
    }

    /// The number of a function. Not of one that the kernel itself has, when asked of a module.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.names.get(&(kind::FUNCTION, name.as_bytes().to_vec())).copied()
    }

    /// The number of a structure, its own or the kernel's.
    pub fn structure(&self, name: &str) -> Option<u32> {
        let own = self.names.get(&(kind::STRUCT, name.as_bytes().to_vec())).copied();
        own.or_else(|| self.base?.structure(name))
    }

    /// A member of a structure or union.
    pub fn member(&self, id: u32, name: &str) -> Option<Member> {
        let (at, of) = self.of(id)?;
        if ![kind::STRUCT, kind::UNION].contains(&of.kind()) {
            return None;
        }
        let has_bits = of.info >> 31 != 0;
        (0..of.count()).find_map(|number| {
            let member = of.members + number * Self::member_size(of.kind());
            if at.string(u32_at(&at.data, member)?)? != name.as_bytes() {
                return None;
            }
            let offset = u32_at(&at.data, member + 8)?;
            let bits = if has_bits { offset & 0xff_ffff } else { offset };
            Some(Member { offset: bits as usize / 8, type_id: u32_at(&at.data, member + 4)? })
        })
    }

    /// Where a member of a member stands in a structure: `["proto", "tcp", "state"]`. None: there is no such member.
    pub fn offset(&self, structure: &str, path: &[&str]) -> Option<usize> {
        let mut offset = 0;
        let mut id = self.structure(structure)?;
        for name in path {
            let member = self.member(id, name)?;
            offset += member.offset;
            id = member.type_id;
        }
        Some(offset)
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types with these records and strings.
    fn types(records: &[u32], strings: &[u8]) -> Vec<u8> {
        let length = records.len() as u32 * 4;
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, length, length, strings.len() as u32] {
            data.extend(word.to_ne_bytes());
        }
        records.iter().for_each(|word| data.extend(word.to_ne_bytes()));
        data.extend(strings);
        data
    }

    const fn info(kind: u32, count: u32) -> u32 {
        kind << 24 | count
    }

    #[test]
    fn functions_and_members_are_found_in_the_kernel_and_in_modules() {
        // 1: int; 2: struct inner { int a; int b; }; 3: function f
        let strings = b"\0int\0inner\0a\0b\0f\0";
        #[rustfmt::skip]
        let records = [
            1, info(kind::INT, 0), 4, 32,
            5, info(kind::STRUCT, 2), 8, 11, 1, 0, 13, 1, 32,
            15, info(kind::FUNCTION, 0), 1,
        ];
        let kernel = Types::parse(types(&records, strings), None).expect("types");
        assert_eq!(kernel.function("f"), Some(3));
        assert_eq!(kernel.function("int"), None);
        assert_eq!(kernel.offset("inner", &["b"]), Some(4));
        assert_eq!(kernel.offset("inner", &["c"]), None);
        // 4: struct outer { struct inner x, y; }; 5: function g. Names go on behind the kernel's.
        let base = strings.len() as u32;
        #[rustfmt::skip]
        let records = [
            base + 1, info(kind::STRUCT, 2), 16, base + 7, 2, 0, base + 9, 2, 64,
            base + 11, info(kind::FUNCTION, 0), 1,
        ];
        let module = Types::parse(types(&records, b"\0outer\0x\0y\0g\0"), Some(&kernel)).expect("types");
        assert_eq!((module.function("g"), module.function("f")), (Some(5), None));
        assert_eq!(module.offset("outer", &["y", "b"]), Some(12));
        assert_eq!(module.offset("inner", &["b"]), Some(4), "the kernel's");
    }

    #[test]
    fn what_is_cut_short_is_refused_or_has_nothing() {
        let whole = types(&[1, info(kind::STRUCT, 1), 4, 3, 1, 0], b"\0s\0m\0");
        for length in 0..whole.len() {
            if let Some(types) = Types::parse(whole[..length].to_vec(), None) {
                assert_eq!(types.offset("s", &["m"]), None);
            }
        }
    }
}
