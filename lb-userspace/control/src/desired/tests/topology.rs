//! Hints: `CategorizeEndpoints` and `topologyModeFromHints` of kube-proxy.

use super::*;

/// An endpoint with hints for zones and nodes.
fn hinted(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Value {
    let names = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let mut endpoint = endpoint(address, node);
    endpoint["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
    endpoint
}

/// The Cluster and the Local list on `node-a` in a zone.
fn chosen(zone: Option<&str>, endpoints: &[Value]) -> (Vec<u8>, Vec<u8>) {
    let node = NodeView { zone: zone.map(Into::into), ..NodeView::default() };
    let (desired, _) = desired(json!({}), endpoints, &node);
    let port = &desired.ports[0];
    (last(port, &port.lists[0].cluster), last(port, &port.lists[0].local))
}

#[test]
fn hints_narrow_the_cluster_list() {
    let (z1, none) = (Some("z1"), None);
    let one = |zones: &[&str], nodes: &[&str]| hinted("10.1.0.1", "node-b", zones, nodes);
    let two = |zones: &[&str], nodes: &[&str]| hinted("10.1.0.2", "node-b", zones, nodes);
    let stops = |mut endpoint: Value| {
        endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        endpoint
    };
    type Case<'a> = (&'a str, Option<&'a str>, Vec<Value>, &'a [u8]);
    let cases: [Case<'_>; 13] = [
        (
            "zone: every ready endpoint has hints, one names ours",
            z1,
            vec![one(&["z1"], &[]), two(&["z2"], &[])],
            &[1],
        ),
        (
            "zone: one endpoint has none, so hints are off",
            z1,
            vec![one(&["z1"], &[]), two(&[], &[])],
            &[1, 2],
        ),
        ("zone: none names ours, so hints are off", z1, vec![one(&["z3"], &[]), two(&["z2"], &[])], &[1, 2]),
        ("zone: an endpoint may name several", z1, vec![one(&["z2", "z1"], &[]), two(&["z1"], &[])], &[1, 2]),
        (
            "zone: our Node has no zone, so hints are off",
            none,
            vec![one(&["z1"], &[]), two(&["z2"], &[])],
            &[1, 2],
        ),
        ("node: goes before the zone", z1, vec![one(&["z2"], &["node-a"]), two(&["z1"], &["node-b"])], &[1]),
        ("node: counts without a zone", none, vec![one(&[], &["node-a"]), two(&[], &["node-b"])], &[1]),
        (
            "node: one endpoint has none, so the zone decides",
            z1,
            vec![one(&["z2"], &["node-a"]), two(&["z1"], &[])],
            &[2],
        ),
        (
            "node: none names us, so the zone decides",
            z1,
            vec![one(&["z1"], &["node-c"]), two(&["z2"], &["node-b"])],
            &[1],
        ),
        ("an endpoint that stops has no say", z1, vec![one(&["z1"], &[]), stops(two(&[], &[]))], &[1]),
        (
            "and gets nothing while a ready one is left",
            z1,
            vec![one(&["z1"], &[]), stops(two(&["z1"], &[]))],
            &[1],
        ),
        (
            "none ready: all that stop but serve, whatever their hints",
            z1,
            vec![stops(one(&["z1"], &["node-a"])), stops(two(&["z2"], &["node-b"]))],
            &[1, 2],
        ),
        ("no hints at all", z1, vec![endpoint("10.1.0.1", "node-b")], &[1]),
    ];
    for (what, zone, mut endpoints, expected) in cases {
        assert_eq!(chosen(zone, &endpoints).0, expected, "{what}");
        endpoints.reverse();
        assert_eq!(chosen(zone, &endpoints).0, expected, "{what}, in another order");
    }
}

/// Topology never applies to the Local list.
#[test]
fn hints_leave_the_local_list_alone() {
    let here = hinted("10.1.0.1", "node-a", &["z2"], &["node-b"]);
    let there = hinted("10.1.0.2", "node-b", &["z1"], &["node-a"]);
    assert_eq!(chosen(Some("z1"), &[here, there]), (vec![2], vec![1]));
}

/// Each family decides by its own endpoints.
#[test]
fn hints_of_one_family_do_not_count_for_the_other() {
    let slices = [
        read_slice(&slice(
            "a",
            "web",
            &[hinted("10.1.0.1", "b", &["z1"], &[]), hinted("10.1.0.2", "b", &["z2"], &[])],
        )),
        read_slice(&slice("b", "web", &[endpoint("fd00:1::1", "b"), endpoint("fd00:1::2", "b")])),
    ];
    let spec = json!({"clusterIPs": ["10.96.0.10", "fd00::10"]});
    let object = crate::source::objects::service("web", "10.96.0.10", spec);
    let node = NodeView { zone: Some("z1".into()), ..NodeView::default() };
    let (desired, _) = desired_of(&object, &slices, &node);
    let port = &desired.ports[0];
    assert_eq!(port.lists.each_ref().map(|lists| last(port, &lists.cluster)), [vec![1], vec![1, 2]]);
}
