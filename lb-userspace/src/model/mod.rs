//! Validated domain types: no kube, no aya.
