//! The rules, by concern, each with the check that shows it.

use crate::rule::Section;

mod affinity;
mod endpoints;
mod health;
mod masquerade;
mod node_ports;
mod rest;
mod selection;
mod services;
mod verdicts;

/// All of them, in the order of the page.
pub const SECTIONS: [&Section; 13] = [
    &services::WHICH,
    &endpoints::SLICES,
    &services::FIELDS,
    &selection::SELECTION,
    &verdicts::VERDICTS,
    &masquerade::MASQUERADE,
    &node_ports::NODE_PORTS,
    &affinity::AFFINITY,
    &health::HEALTHZ,
    &health::HEALTH_CHECKS,
    &rest::METRICS,
    &rest::UDP,
    &rest::TIMING,
];
