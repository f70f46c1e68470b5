//! Reads the per-CPU counters.
