//! BPF programs of a few instructions, written by hand, as objects that `ip` and `tc` take.
use object::write::{Object, StandardSegment, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// A program without maps.
#[derive(Clone, Copy, Debug)]
pub struct Assembled<'a> {
    /// The section it is in, by which `ip` and `tc` are told which to take.
    pub section: &'a str,
    /// Its instructions.
    pub instructions: &'a [[u8; 8]],
}

/// An XDP program that passes everything, for the switch's ends of the wire: `r0 = 2 /* XDP_PASS */; exit`.
///
/// A veth hands over what XDP_TX sends at once only if its peer has an XDP program too (`veth_xdp_flush`); without one
/// the frames lie in the ring until an ordinary packet comes along. Network cards know no such thing.
pub const PASS: Assembled<'_> =
    Assembled { section: "xdp", instructions: &[[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]] };

/// An XDP program that passes everything but the first packets of a flood: TCP over IPv4, SYN alone, with a window that no
/// honest one announces here ([`FLOOD_WINDOW`]).
///
/// ```text
///    r2 = data; r3 = data_end; r0 = XDP_PASS
///    if r2 + 54 > r3 or *(u16 *)(r2 + 12) != htons(0x0800) or *(u8 *)(r2 + 14) != 0x45 or *(u8 *)(r2 + 23) != 6
///        or *(u8 *)(r2 + 47) != SYN or *(u16 *)(r2 + 48) != 0xffff: exit
///    r0 = XDP_DROP; exit
/// ```
pub const FLOOD_SINK: Assembled<'_> = Assembled {
    section: "xdp",
    instructions: &[
        [0x61, 0x12, 0, 0, 0, 0, 0, 0],       // r2 = *(u32 *)(r1 + 0)
        [0x61, 0x13, 4, 0, 0, 0, 0, 0],       // r3 = *(u32 *)(r1 + 4)
        [0xb7, 0x00, 0, 0, 2, 0, 0, 0],       // r0 = 2
        [0xbf, 0x24, 0, 0, 0, 0, 0, 0],       // r4 = r2
        [0x07, 0x04, 0, 0, 54, 0, 0, 0],      // r4 += 54
        [0x2d, 0x34, 11, 0, 0, 0, 0, 0],      // if r4 > r3 goto +11
        [0x69, 0x24, 12, 0, 0, 0, 0, 0],      // r4 = *(u16 *)(r2 + 12)
        [0x55, 0x04, 9, 0, 8, 0, 0, 0],       // if r4 != 8 goto +9
        [0x71, 0x24, 14, 0, 0, 0, 0, 0],      // r4 = *(u8 *)(r2 + 14)
        [0x55, 0x04, 7, 0, 0x45, 0, 0, 0],    // if r4 != 0x45 goto +7
        [0x71, 0x24, 23, 0, 0, 0, 0, 0],      // r4 = *(u8 *)(r2 + 23)
        [0x55, 0x04, 5, 0, 6, 0, 0, 0],       // if r4 != 6 goto +5
        [0x71, 0x24, 47, 0, 0, 0, 0, 0],      // r4 = *(u8 *)(r2 + 47)
        [0x55, 0x04, 3, 0, 2, 0, 0, 0],       // if r4 != 2 goto +3
        [0x69, 0x24, 48, 0, 0, 0, 0, 0],      // r4 = *(u16 *)(r2 + 48)
        [0x55, 0x04, 1, 0, 0xff, 0xff, 0, 0], // if r4 != 0xffff goto +1
        [0xb7, 0x00, 0, 0, 1, 0, 0, 0],       // r0 = 1
        [0x95, 0, 0, 0, 0, 0, 0, 0],          // exit
    ],
};

/// The TCP window that a flood's SYNs announce.
pub const FLOOD_WINDOW: u16 = u16::MAX;

impl Assembled<'_> {
    /// The object file.
    ///
    /// # Errors
    /// The `object` crate's.
    pub fn object_file(&self) -> Result<Vec<u8>, object::write::Error> {
        let program = self.instructions.as_flattened();
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let text = object.segment_name(StandardSegment::Text).to_vec();
        let section = object.add_section(text.clone(), self.section.into(), SectionKind::Text);
        object.append_section_data(section, program, 8);
        object.add_symbol(Symbol {
            name: b"assembled".to_vec(),
            value: 0,
            size: program.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
        let license = object.add_section(text, b"license".to_vec(), SectionKind::Data);
        object.append_section_data(license, b"Dual MIT/GPL\0", 1);
        object.write()
    }
}
