//! The packet paths whose pods hang on a bridge.
mod lab_support;

use lab_support::{Checks, Scene, options, paths};
use lb_lab::{Layout, SocketLb, XdpMode};

fn check(xdp: XdpMode, socket_lb: SocketLb, parts: &[fn(&Scene, &mut Checks)]) {
    lab_support::check(Layout::Bridge, &options(xdp, socket_lb), parts);
}

#[test]
fn from_outside() {
    check(XdpMode::Native, SocketLb::Host, &[paths::from_outside]);
}

#[test]
fn from_outside_without_xdp() {
    check(XdpMode::Off, SocketLb::Host, &[paths::from_outside]);
}

#[test]
fn from_pods() {
    check(XdpMode::Native, SocketLb::Host, &[paths::from_pods_by_packets]);
}

#[test]
fn from_pods_by_their_sockets() {
    check(XdpMode::Native, SocketLb::All, &[paths::from_pods]);
}

#[test]
fn from_hosts() {
    check(XdpMode::Native, SocketLb::Host, &[paths::from_hosts]);
}

#[test]
fn what_matches_no_service_passes() {
    check(XdpMode::Native, SocketLb::All, &[paths::passed]);
}

#[test]
fn requests_spread_evenly() {
    check(XdpMode::Native, SocketLb::Host, &[paths::spread]);
}
