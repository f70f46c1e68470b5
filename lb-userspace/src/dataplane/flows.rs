//! Reads the flow table through mmap.
