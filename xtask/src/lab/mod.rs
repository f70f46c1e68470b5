//! A lab of network namespaces: an outside client, two nodes with an agent each, pods with real servers.
