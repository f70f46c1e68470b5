//! A file or folder of manifests, watched with inotify.
