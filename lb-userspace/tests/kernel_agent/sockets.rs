//! Connected UDP sockets, with real programs behind real socket hooks.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::testbed::{Testbed, write};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: t}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::10'], ports: [{port: 53, protocol: UDP}]}
";

fn slice(family: &str, address: &str) -> String {
    format!(
        "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: dns-{family}, namespace: t, labels: {{kubernetes.io/service-name: dns}}}}
addressType: {family}
ports: [{{name: '', port: 5353, protocol: UDP}}]
endpoints: {address}
"
    )
}

fn manifest(v4: &str, v6: &str) -> String {
    format!("{SERVICE}{}{}", slice("IPv4", v4), slice("IPv6", v6))
}

const V4: &str = "[{addresses: [192.0.2.77]}]";
const V6: &str = "[{addresses: ['2001:db8::77']}]";

/// Bash with a connected UDP socket, reading from it.
struct Reader {
    child: Child,
    lines: Receiver<String>,
}

impl Reader {
    /// Waits until it is connected. In the cgroup of the hooks, in a network namespace.
    fn connect(testbed: &Testbed, namespace: &str, address: &str, port: u16) -> Self {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec nsenter --net=/run/netns/{namespace} bash -c \
             'exec 3<>/dev/udp/{address}/{port} && echo connected; read -u 3; echo ended' 2>&1",
            testbed.cgroup().display()
        );
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .env("LC_ALL", "C")
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let reader = Self { child, lines };
        assert_eq!(reader.line().as_deref(), Ok("connected"), "{address}");
        reader
    }

    fn line(&self) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(Duration::from_secs(20))
    }

    /// It was told that its connection is no more.
    fn was_ended(&self) {
        let said = self.line().expect("the socket is ended");
        assert!(said.contains("Software caused connection abort"), "{said}");
    }

    /// Nobody has touched it; asked when another one has been told already.
    fn is_untouched(&self) {
        assert_eq!(self.lines.try_recv().ok(), None);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn testbed() -> Testbed {
    let testbed = Testbed::new();
    testbed.ip(&["address", "add", "2001:db8::10/64", "dev", "eth0", "nodad"]);
    write(&testbed.manifests().join("dns.yaml"), &manifest(V4, V6));
    testbed
}

#[test]
fn sockets_connected_through_a_service_end_with_their_endpoint() {
    let testbed = testbed();
    let _agent = testbed.agent(&[]);
    let node = testbed.node();
    let through4 = Reader::connect(&testbed, &node, "10.96.0.10", 53);
    let through6 = Reader::connect(&testbed, &node, "fd00:96::10", 53);
    let direct = Reader::connect(&testbed, &node, "192.0.2.77", 5353);
    let direct6 = Reader::connect(&testbed, &node, "2001:db8::77", 5353);

    write(&testbed.manifests().join("dns.yaml"), &manifest("[]", V6));
    through4.was_ended();
    through6.is_untouched();

    std::fs::remove_file(testbed.manifests().join("dns.yaml")).expect("removed");
    through6.was_ended();
    direct.is_untouched();
    direct6.is_untouched();
}

#[test]
fn an_agent_that_starts_ends_what_went_meanwhile() {
    let testbed = testbed();
    testbed.agent(&[]).stop(Signal::SIGKILL);
    let reader = Reader::connect(&testbed, &testbed.node(), "10.96.0.10", 53);
    write(&testbed.manifests().join("dns.yaml"), &manifest("[{addresses: [192.0.2.78]}]", V6));
    reader.is_untouched();
    let _agent = testbed.agent(&[]);
    reader.was_ended();
}

#[test]
fn sockets_of_pods_end_too_where_they_are_served() {
    let testbed = testbed();
    let pod = testbed.other();
    testbed.in_other(&["address", "add", "192.0.2.1/24", "dev", "outside"]);
    testbed.in_other(&["link", "set", "outside", "up"]);
    testbed.in_other(&["route", "add", "default", "via", "192.0.2.10"]);
    let _agent = testbed.agent(&["--socket-lb", "all"]);
    let through = Reader::connect(&testbed, &pod, "10.96.0.10", 53);
    let direct = Reader::connect(&testbed, &pod, "192.0.2.77", 5353);
    write(&testbed.manifests().join("dns.yaml"), &manifest("[]", V6));
    through.was_ended();
    direct.is_untouched();
}
