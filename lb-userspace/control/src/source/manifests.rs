//! Objects from a file or a folder of manifests, watched.
//!
//! A folder is read without its sub-folders; hidden files and files that are neither `.yaml`, `.yml`
//! nor `.json` are left alone, and so is what is no file. What breaks while we run keeps its last good content in force.

mod doubts;
mod mirror;
mod parse;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{ConnectionErrors, Event, QUEUE, Source, SourceError, Sourced};
use crate::model::{Kind, ObjectRef};
use read::{Folder, Reading, refuse_what_is_no_file};

/// Quiet time after a change before the files are read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// Longest time a change waits for quiet.
const PATIENCE: Duration = Duration::from_millis(500);
/// The files are read now and then anyway: some file systems tell nobody of changes.
const RESCAN: Duration = Duration::from_secs(10);

/// So much text leaves much memory free when it is made into objects, and when these go: it takes several times its room, in
/// pieces that the allocator keeps.
const LARGE: u64 = 1 << 20;
/// Readings after which memory is given back, that one included: who listens frees what is his a moment later.
const GIVING_BACK: u32 = 2;

/// Starts watching `path`.
pub(super) fn spawn(path: PathBuf, give_back_memory: fn()) -> Result<Source, SourceError> {
    let unusable = |source| SourceError::Manifests { path: path.clone(), source };
    let metadata = std::fs::metadata(&path).map_err(unusable)?;
    if !metadata.is_dir() {
        refuse_what_is_no_file(metadata.file_type()).map_err(unusable)?;
    }
    let watched = if metadata.is_dir() { path.clone() } else { parent(&path) };
    let (changed, changes) = channel();
    let failed = |source| SourceError::Watch { path: path.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event| announce(&changed, event)).map_err(failed)?;
    // Before the first reading, so that no change falls between the two.
    watcher.watch(&watched, RecursiveMode::NonRecursive).map_err(failed)?;
    let (sender, events) = mpsc::channel(QUEUE);
    let folder = Folder::new(path.clone(), metadata.is_dir());
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || {
            let rewatch = move || {
                // Does nothing while the watch is alive; a folder made anew needs a new one.
                if let Err(error) = watcher.watch(&watched, RecursiveMode::NonRecursive) {
                    tracing::debug!(%error, "cannot watch {}", watched.display());
                }
            };
            // An error means that nobody listens any more.
            let _ = follow(folder, &changes, &sender, rewatch, give_back_memory);
        })
        .map_err(|source| SourceError::Manifests { path, source })?;
    Ok(Source {
        events,
        client: None,
        api_servers: Vec::new(),
        connection_errors: ConnectionErrors::default(),
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Passes on that something may have changed. Reading a file is no change.
fn announce(changed: &Sender<()>, event: notify::Result<notify::Event>) {
    let read_only = matches!(
        event.map(|event| event.kind),
        Ok(EventKind::Access(kind)) if kind != AccessKind::Close(AccessMode::Write)
    );
    if !read_only {
        // Fails when the reader has ended, and then there is nobody to tell.
        let _ = changed.send(());
    }
}

/// The receiver was dropped.
struct Closed;

/// Reads, tells, waits for a change; over and over until nobody listens.
fn follow(
    mut folder: Folder,
    changes: &Receiver<()>,
    sender: &mpsc::Sender<Event>,
    mut rewatch: impl FnMut(),
    give_back_memory: fn(),
) -> Result<(), Closed> {
    let send = |event| sender.blocking_send(event).map_err(|_| Closed);
    let Reading { objects: mut sent, mut problems, turned } = folder.read();
    for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
        let objects = sent.values().filter(|sourced| sourced.object.kind() == kind).cloned().collect();
        send(Event::Reset { kind, objects })?;
    }
    send(Event::Problems(problems.clone()))?;
    send(Event::Synced)?;
    let mut giving_back = 0;
    let mut tidy_up = |turned| {
        if turned >= LARGE {
            giving_back = GIVING_BACK;
        }
        if giving_back > 0 {
            giving_back -= 1;
            give_back_memory();
        }
    };
    tidy_up(turned);
    loop {
        wait(changes, sender)?;
        rewatch();
        let Reading { objects: now, problems: found, turned } = folder.read();
        for event in difference(&sent, &now) {
            send(event)?;
        }
        sent = now;
        if found != problems {
            problems = found;
            send(Event::Problems(problems.clone()))?;
        }
        tidy_up(turned);
    }
}

/// Waits for changes and then for quiet.
fn wait(changes: &Receiver<()>, sender: &mpsc::Sender<Event>) -> Result<(), Closed> {
    const LISTENER_CHECK: Duration = Duration::from_millis(500);
    let start = Instant::now();
    loop {
        match changes.recv_timeout(LISTENER_CHECK) {
            Ok(()) => break,
            Err(RecvTimeoutError::Timeout) if sender.is_closed() => return Err(Closed),
            Err(RecvTimeoutError::Timeout) if start.elapsed() < RESCAN => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            // The watcher lives as long as this thread.
            Err(RecvTimeoutError::Disconnected) => return Err(Closed),
        }
    }
    let first = Instant::now();
    while first.elapsed() < PATIENCE && changes.recv_timeout(QUIET).is_ok() {}
    if sender.is_closed() { Err(Closed) } else { Ok(()) }
}

/// The events that lead from one set of objects to another.
fn difference(old: &BTreeMap<ObjectRef, Sourced>, new: &BTreeMap<ObjectRef, Sourced>) -> Vec<Event> {
    let gone = old.keys().filter(|reference| !new.contains_key(*reference)).cloned().map(Event::Deleted);
    let changed = new.iter().filter(|(reference, sourced)| old.get(*reference) != Some(*sourced));
    gone.chain(changed.map(|(_, sourced)| Event::Applied(sourced.clone()))).collect()
}
