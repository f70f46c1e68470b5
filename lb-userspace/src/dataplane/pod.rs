//! The one bridge between shared types and aya's Pod.
