//! Logs and metrics: names and labels in one place.
