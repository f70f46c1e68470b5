//! The seed of rings and flow hashes: the same on every node of a cluster, and known to no client.

use std::fmt;

use sha2::{Digest, Sha256};
use tracing::info;

/// Who asks for a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Whoever runs the agent (`--hash-seed`): it comes into force whatever there is.
    Given(u64),
    /// What the cluster has in common. Flows that were made with another one keep that in force.
    Derived(u64),
}

/// Where no node knows of another, all have this one; every client can compute what follows from it.
pub const NONE: u64 = 0;

/// What is hashed before the identity, so that the seed is that of nothing else.
const DOMAIN: &[u8] = b"shunt hash seed 1:";

/// The seed of a cluster, from what its nodes can all read and its clients cannot: never [`NONE`].
pub fn of_cluster(identity: &str) -> u64 {
    let digest = Sha256::new().chain_update(DOMAIN).chain_update(identity).finalize();
    first_word(&digest).max(1)
}

fn first_word(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Tells seeds apart in a log, without saying what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint(u16);

impl Fingerprint {
    /// Of a seed.
    pub fn of(seed: u64) -> Self {
        let digest =
            Sha256::new().chain_update(b"shunt fingerprint 1:").chain_update(seed.to_be_bytes()).finalize();
        Self((first_word(&digest) >> 48) as u16)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// Says in the log which seed is in force, and why.
pub fn report(wanted: Wanted, in_force: u64) {
    let seed = Fingerprint::of(in_force);
    match wanted {
        Wanted::Given(_) => info!(%seed, "hash seed: that of --hash-seed"),
        Wanted::Derived(derived) if derived != in_force => info!(
            %seed,
            "hash seed: a former agent's, for flows that live were made with it; an agent that finds none, as after a \
             reboot, goes by the cluster's ({})",
            Fingerprint::of(derived)
        ),
        Wanted::Derived(NONE) => info!(
            %seed,
            "hash seed: none, so every client can compute backends and masquerading ports; give all nodes one --hash-seed"
        ),
        Wanted::Derived(_) => info!(%seed, "hash seed: the cluster's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_one_seed_for_ever_and_no_other_has_it() {
        let uid = "6e4e9a4c-5f0e-4f1e-9a57-0d6a7c4b1f42";
        // All nodes must agree, those of the next release too.
        assert_eq!(of_cluster(uid), 6_988_929_056_387_107_526);
        assert_ne!(of_cluster(uid), of_cluster("6e4e9a4c-5f0e-4f1e-9a57-0d6a7c4b1f43"));
        assert_ne!(of_cluster(""), NONE);
        assert_eq!(Fingerprint::of(7).to_string().len(), 4);
        assert_ne!(Fingerprint::of(7), Fingerprint::of(8));
    }
}
