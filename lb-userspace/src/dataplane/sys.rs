//! bpf() commands that aya has no call for.
