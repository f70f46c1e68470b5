//! A store in memory, for tests: can be told to fail.
