//! What is attached and what is wrong, for whoever tells of it.

/// One interface that is not served as it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Trouble {
    /// Its name.
    pub interface: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Packets of this interface are not translated at all.
    pub fatal: bool,
}

/// What the rest of the agent may know of the attachment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Number of interfaces served.
    pub interfaces: usize,
    /// Interfaces that packets for Services may come in by, but that cannot be served.
    pub left_out: Vec<String>,
    /// Number of the host's chains and tables that packets of Services do not meet as with kube-proxy.
    pub host_rules: usize,
    /// Number of interfaces that the keeper has served in the agent's place.
    pub kept: u64,
    /// Everything has been attached once, but for what is in `troubles`.
    pub started: bool,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}

impl State {
    /// Whether every interface that should be served is.
    pub fn is_ready(&self) -> bool {
        self.started && !self.troubles.iter().any(|trouble| trouble.fatal)
    }
}
