//! The store over the kernel's maps.
