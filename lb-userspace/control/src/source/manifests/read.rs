//! Reads the files and remembers the last good content of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::parse::{Parsed, parse};
use crate::model::{ObjectRef, Origin, Problem, Severity};
use crate::source::Sourced;

/// The largest file that is read.
const FILE_LIMIT: u64 = 256 * 1024 * 1024;

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
    objects: Vec<Sourced>,
    problems: Vec<Problem>,
}

impl Folder {
    pub(super) fn new(path: PathBuf, is_folder: bool) -> Self {
        Self { path, is_folder, files: BTreeMap::new() }
    }

    /// Reads everything anew. Returns all that is wrong.
    pub(super) fn read(&mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.list() {
            Ok(paths) => {
                // In a folder a file that is gone was taken out; the one file we were given is not.
                self.files.retain(|path, _| !self.is_folder || paths.contains(path));
                for path in paths {
                    let file = self.files.entry(path.clone()).or_default();
                    file.read(&path);
                    problems.extend(file.problems.iter().cloned());
                }
            }
            Err(error) => {
                let message = format!(
                    "cannot be read: {error}; its last good content stays in force, put the folder back"
                );
                problems.push(about_file(&self.path, message));
            }
        }
        problems.extend(self.doubles());
        problems
    }

    /// The objects of all files. The first file by name wins where several hold the same object.
    pub(super) fn objects(&self) -> BTreeMap<ObjectRef, Sourced> {
        let mut objects = BTreeMap::new();
        for sourced in self.files.values().flat_map(|file| &file.objects) {
            objects.entry(sourced.object.reference()).or_insert_with(|| sourced.clone());
        }
        objects
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
    fn read(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot be read: {error}; its last good content stays in force");
                self.problems = vec![about_file(path, message)];
                self.hash = None;
                return;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if self.hash == hash {
            return;
        }
        let parsed = keep_last_good(&self.objects, parse(&path.display().to_string(), &text));
        *self = Self { hash, objects: parsed.objects, problems: parsed.problems };
    }
}

/// Puts the last good version of what cannot be read now in its place.
pub(super) fn keep_last_good(old: &[Sourced], mut parsed: Parsed) -> Parsed {
    let present: BTreeSet<_> = parsed.objects.iter().map(|sourced| sourced.object.reference()).collect();
    for sourced in old {
        let reference = sourced.object.reference();
        // A document nobody can read may have held any object that is missing now.
        let lost = parsed.unreadable || parsed.wrong.contains(&reference);
        if lost && !present.contains(&reference) {
            parsed.objects.push(sourced.clone());
        }
    }
    parsed
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(FILE_LIMIT + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_LIMIT {
        let message = format!("it is larger than {} MiB; split it", FILE_LIMIT >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

fn about_file(path: &Path, message: String) -> Problem {
    let origin = Origin { file: path.display().to_string().into(), line: 0 };
    Problem::of_source(Severity::Error, message).at(Some(&origin))
}
