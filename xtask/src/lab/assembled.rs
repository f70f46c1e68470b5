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
