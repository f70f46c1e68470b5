//! Loads the object, verifies the ABI, adopts or replaces what is pinned.
