//! Everything a developer runs.
