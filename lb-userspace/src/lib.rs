//! Shunt's node agent.
