//! What of a node's routing the agent sees.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use lb_kernel::net::watch;
use nix::sched::{CloneFlags, setns};

use crate::testbed::Testbed;

const TOLD: Duration = Duration::from_secs(5);

/// Each rule, and whether it looks at more than a program tells when it asks for a route.
const RULES: [(&str, &str, bool); 6] = [
    ("-4", "from 10.0.0.0/8 lookup 100", false),
    ("-4", "iif lo lookup 100", false),
    ("-4", "fwmark 0x80/0x80 lookup 100", true),
    ("-6", "fwmark 7 lookup 100", true),
    ("-6", "ipproto tcp dport 80 lookup 100", true),
    ("-4", "tos 0x10 lookup 100", true),
];

fn ip(node: &str, option: &str, words: &str) {
    let status = Command::new("ip")
        .args(["-n", node, option])
        .args(words.split_ascii_whitespace())
        .status()
        .expect("ip");
    assert!(status.success(), "ip {option} {words}");
}

#[test]
fn rules_of_routing_that_programs_cannot_follow_are_seen() {
    let testbed = Testbed::new();
    let follow = || {
        let namespace = File::open(format!("/run/netns/{}", testbed.node())).expect("a namespace");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entered");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut network = watch::spawn().await.expect("netlink");
            assert!(!network.borrow().routes_by_more, "nothing but the kernel's own rules");
            for (option, rule, more) in RULES {
                ip(&testbed.node(), option, &format!("rule add {rule}"));
                assert_eq!(watch::snapshot().await.expect("listed").routes_by_more, more, "{rule}");
                let seen = async |more: bool| {
                    let is_it = network.clone().wait_for(|now| now.routes_by_more == more).await.is_ok();
                    assert!(is_it, "{rule}");
                };
                tokio::time::timeout(TOLD, seen(more)).await.unwrap_or_else(|_| panic!("{rule} is not told"));
                ip(&testbed.node(), option, &format!("rule del {rule}"));
                tokio::time::timeout(TOLD, seen(false)).await.unwrap_or_else(|_| panic!("{rule} stays"));
            }
            network.borrow_and_update();
        });
    };
    std::thread::scope(|scope| scope.spawn(follow).join().expect("followed"));
}
