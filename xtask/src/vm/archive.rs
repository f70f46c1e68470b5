//! Archives that the kernel unpacks at its start ("newc" of cpio). Several may follow each other in one file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Component, Path};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive being written. Folders above a file are added by themselves.
pub struct Archive<W: Write> {
    out: W,
    entries: BTreeSet<String>,
}

impl Archive<BufWriter<File>> {
    /// A new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufWriter::new(File::create(path)?)))
    }
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { out, entries: BTreeSet::new() }
    }

    /// Whether something has this path already.
    pub fn has(&self, path: &Path) -> bool {
        name_of(path).is_some_and(|name| self.entries.contains(&name))
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !self.has(parent) => self.folder(parent)?,
            _ => {}
        }
        self.entry(path, FOLDER, &[])
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        self.entry(path, PROGRAM, content)
    }

    /// Writes the end.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        // The root itself is there.
        let Some(name) = name_of(path) else { return Ok(()) };
        if self.entries.insert(name.clone()) { self.write_entry(&name, mode, content) } else { Ok(()) }
    }

    fn write_entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let number = self.entries.len() as u32;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let links = if mode == FOLDER { 2 } else { 1 };
        let name_size = name.len() as u32 + 1;
        let (owner, time, device, check) = (0, 0, 0, 0);
        let fields =
            [number, mode, owner, owner, links, time, size, device, device, device, device, name_size, check];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.write(format!("070701{header}{name}\0").as_bytes())?;
        self.write(content)
    }

    /// Everything begins at a multiple of four.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..padding])
    }
}

/// The path from the root, without links being followed; nothing for the root.
fn name_of(path: &Path) -> Option<String> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    let name = parts.collect::<Vec<_>>().join("/");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_its_content_each_padded() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), b"12345").unwrap();
        archive.file(Path::new("/a/b"), b"again").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let entries: Vec<_> = text.split("070701").skip(1).collect();
        let [folder, file, end] = entries.as_slice() else { panic!("{entries:?}") };
        // Mode, size of the content, size of the name.
        let fields = |entry: &str| [8, 48, 88].map(|at| u32::from_str_radix(&entry[at..at + 8], 16).unwrap());
        assert_eq!(fields(folder), [FOLDER, 0, 2]);
        assert_eq!(fields(file), [PROGRAM, 5, 4]);
        assert!(file[104..].starts_with("a/b\0\0\0") && file.ends_with("12345\0\0\0"), "{file:?}");
        assert!(end.contains("TRAILER!!!\0"), "{end:?}");
    }
}
