//! Reads the files and remembers the last good content of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::mirror::mirror;
use super::parse::{Parsed, parse};
use crate::model::{ObjectRef, Origin, Problem, Severity};
use crate::source::Sourced;

/// The largest file that is read. It has room for some two hundred thousand endpoints; an object that the API server would
/// take has 1.5 MiB at most. While a file is read, an agent holds some twelve times as much.
const FILE_LIMIT: u64 = 64 << 20;

/// All that was read.
#[derive(Debug)]
pub(super) struct Reading {
    /// The objects of all files. The first file by name wins where several hold the same object.
    pub(super) objects: BTreeMap<ObjectRef, Sourced>,
    /// All that is wrong.
    pub(super) problems: Vec<Problem>,
    /// How much text was made into objects, or is no longer there.
    pub(super) turned: u64,
}

/// A file or folder of manifests.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    is_folder: bool,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug, Default)]
struct File {
    /// Of the text last parsed.
    hash: Option<u64>,
    /// Its length.
    length: u64,
    objects: Vec<Sourced>,
    problems: Vec<Problem>,
}

impl Folder {
    pub(super) fn new(path: PathBuf, is_folder: bool) -> Self {
        Self { path, is_folder, files: BTreeMap::new() }
    }

    /// Reads everything anew.
    pub(super) fn read(&mut self) -> Reading {
        let mut problems = Vec::new();
        let mut turned = 0;
        match self.list() {
            Ok(paths) => {
                // In a folder a file that is gone was taken out; the one file we were given is not.
                let is_gone = |path: &PathBuf, _: &mut File| self.is_folder && !paths.contains(path);
                turned += self.files.extract_if(.., is_gone).map(|(_, file)| file.length).sum::<u64>();
                for path in paths {
                    let file = self.files.entry(path.clone()).or_default();
                    turned += file.read(&path);
                    problems.extend(file.problems.iter().cloned());
                }
            }
            Err(error) => {
                let known = self.files.values().any(|file| !file.objects.is_empty());
                let message = format!("cannot be read: {error}; {}, put the folder back", in_force(known));
                problems.push(about_file(&self.path, message));
            }
        }
        problems.extend(self.doubles());
        let mut objects = BTreeMap::new();
        for sourced in self.files.values().flat_map(|file| &file.objects) {
            objects.entry(sourced.object.reference()).or_insert_with(|| sourced.clone());
        }
        problems.extend(mirror(&mut objects));
        Reading { objects, problems, turned }
    }

    fn doubles(&self) -> Vec<Problem> {
        let mut first: BTreeMap<ObjectRef, &Sourced> = BTreeMap::new();
        let mut problems = Vec::new();
        for sourced in self.files.values().flat_map(|file| &file.objects) {
            let reference = sourced.object.reference();
            let Some(winner) = first.get(&reference) else {
                first.insert(reference, sourced);
                continue;
            };
            let place = winner.origin.as_ref().map(Origin::to_string).unwrap_or_default();
            let message =
                format!("it stands in {place} as well, and that one is used; take one of the two out");
            problems.push(Problem::of(&reference, Severity::Error, "", message).at(sourced.origin.as_ref()));
        }
        problems
    }

    fn list(&self) -> io::Result<BTreeSet<PathBuf>> {
        if !self.is_folder {
            return Ok(BTreeSet::from([self.path.clone()]));
        }
        let mut paths = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            // Follows symbolic links: mounted ConfigMaps consist of them.
            if is_manifest(&path) && !path.is_dir() {
                paths.insert(path);
            }
        }
        Ok(paths)
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl File {
    /// Reads it anew. Returns how much text was made into objects.
    fn read(&mut self, path: &Path) -> u64 {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot be read: {error}; {}", in_force(!self.objects.is_empty()));
                self.problems = vec![about_file(path, message)];
                self.hash = None;
                return 0;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if self.hash == hash {
            return 0;
        }
        let parsed = keep_last_good(&self.objects, parse(&path.display().to_string(), &text));
        let length = text.len() as u64;
        let turned = length.max(self.length);
        *self = Self { hash, length, objects: parsed.objects, problems: parsed.problems };
        turned
    }
}

/// What becomes of something that cannot be read.
const fn in_force(known: bool) -> &'static str {
    if known { "its last good content stays in force" } else { "nothing of it is in force" }
}

/// Puts the last good version of what cannot be read now in its place.
pub(super) fn keep_last_good(old: &[Sourced], mut parsed: Parsed) -> Parsed {
    let present: BTreeSet<_> = parsed.objects.iter().map(|sourced| sourced.object.reference()).collect();
    let mut kept = BTreeSet::new();
    for sourced in old {
        let reference = sourced.object.reference();
        // A document nobody can read may have held any object that is missing now.
        let lost = parsed.unreadable || parsed.wrong.contains(&reference);
        if lost && !present.contains(&reference) {
            parsed.objects.push(sourced.clone());
            kept.insert(reference);
        }
    }
    for (number, object) in std::mem::take(&mut parsed.unsettled) {
        let known = object.map_or(!kept.is_empty(), |object| kept.contains(&object));
        let message = &mut parsed.problems[number].message;
        *message = format!("{message}; {}, correct it", in_force(known));
    }
    parsed
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    let too_large = || {
        let message = format!("it is larger than {} MiB; split it", FILE_LIMIT >> 20);
        io::Error::new(io::ErrorKind::FileTooLarge, message)
    };
    if length > FILE_LIMIT {
        return Err(too_large());
    }
    let mut text = String::with_capacity(length as usize + 1);
    // It may grow meanwhile.
    let read = file.by_ref().take(FILE_LIMIT + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_LIMIT { Err(too_large()) } else { Ok(text) }
}

/// Opens a file, and nothing else: whoever reads a FIFO waits for a writer, and to open a device may set it to work.
fn open(path: &Path) -> io::Result<fs::File> {
    let refuse =
        |of| refuse_what_is_no_file(of).map_err(|error| io::Error::other(format!("{error}; take it out")));
    refuse(fs::metadata(path)?.file_type())?;
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // Another may have taken its place.
    refuse(file.metadata()?.file_type())?;
    Ok(file)
}

/// Fails with what it is instead.
pub(super) fn refuse_what_is_no_file(of: fs::FileType) -> io::Result<()> {
    let what = match () {
        () if of.is_file() => return Ok(()),
        () if of.is_dir() => "a folder",
        () if of.is_fifo() => "a FIFO",
        () if of.is_socket() => "a socket",
        () if of.is_block_device() || of.is_char_device() => "a device",
        () => "something else",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what} and no file")))
}

fn about_file(path: &Path, message: String) -> Problem {
    let origin = Origin { file: path.display().to_string().into(), line: 0 };
    Problem::of_source(Severity::Error, message).at(Some(&origin))
}
