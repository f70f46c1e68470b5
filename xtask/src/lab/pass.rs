//! An XDP program that passes everything, for the switch's ends of the wire.
//!
//! A veth hands over what XDP_TX sends at once only if its peer has an XDP program too (`veth_xdp_flush`); without one
//! the frames lie in the ring until an ordinary packet comes along. Network cards know no such thing.
use object::write::{Object, StandardSegment, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// The section of the program.
pub const SECTION: &str = "xdp";
/// `r0 = 2 /* XDP_PASS */; exit`
const PROGRAM: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The object file, as `ip link set DEV xdp object FILE section xdp` takes it.
pub fn object_file() -> Result<Vec<u8>, object::write::Error> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = object.segment_name(StandardSegment::Text).to_vec();
    let section = object.add_section(text.clone(), SECTION.into(), SectionKind::Text);
    object.append_section_data(section, &PROGRAM, 8);
    object.add_symbol(Symbol {
        name: b"pass".to_vec(),
        value: 0,
        size: PROGRAM.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let license = object.add_section(text, b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Apache-2.0\0", 1);
    object.write()
}
