//! Memory-mapped arrays.
