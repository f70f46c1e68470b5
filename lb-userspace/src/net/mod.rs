//! Interfaces and addresses of this node, followed over netlink.
