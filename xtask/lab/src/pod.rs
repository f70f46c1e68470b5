//! Pods, and the real servers in them.
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use super::error::{Doing, Result};
use super::netns::{Netns, Process};
use super::plan::{Family, NodeId};

const READY: Duration = Duration::from_secs(10);

/// Port of the HTTP server of a [`PodKind::Web`] pod.
pub const HTTP_PORT: u16 = 80;
/// Port of the UDP echo of a [`PodKind::Web`] pod.
pub const UDP_PORT: u16 = 7000;
/// Port of the TCP echo of a [`PodKind::Web`] pod, which keeps connections open.
pub const TCP_PORT: u16 = 7001;
/// Port of the DNS server of a [`PodKind::Dns`] pod.
pub const DNS_PORT: u16 = 53;
/// Port of the iperf3 server of a [`PodKind::Iperf`] pod.
pub const IPERF_PORT: u16 = 5201;
/// Size of what `GET /big` returns.
pub const BIG: usize = 1 << 20;
/// The name whose TXT record is the pod's name.
pub const DNS_NAME: &str = "who.lab";

/// What runs in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// nginx on [`HTTP_PORT`], a UDP echo on [`UDP_PORT`], a TCP echo on [`TCP_PORT`].
    Web,
    /// dnsmasq, whose TXT record of [`DNS_NAME`] is the pod's name and whose A and AAAA records its addresses.
    Dns,
    /// iperf3.
    Iperf,
    /// Nothing: a place to start clients in.
    Idle,
}

/// A pod of the lab.
#[derive(Debug)]
pub struct Pod {
    pub(super) name: String,
    pub(super) node: NodeId,
    pub(super) address: Ipv4Addr,
    pub(super) address6: Ipv6Addr,
    pub(super) device: String,
    pub(super) netns: Netns,
    /// Killed with the pod.
    pub(super) _servers: Vec<Process>,
}

impl Pod {
    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its address in a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.address.into(),
            Family::V6 => self.address6.into(),
        }
    }

    /// The name of its interface on the node.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Its namespace and control group.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

/// Where servers are to run, and under which name they answer.
pub(super) struct Site<'a> {
    pub netns: &'a Netns,
    pub folder: &'a Path,
    pub name: &'a str,
    pub addresses: [IpAddr; 2],
}

impl Site<'_> {
    /// Starts what the kind says and waits until it listens.
    pub fn start(&self, kind: PodKind) -> Result<Vec<Process>> {
        let Site { folder, name, addresses, .. } = self;
        fs::create_dir_all(folder).doing(|| format!("make the folder {}", folder.display()))?;
        match kind {
            PodKind::Web => {
                let config = folder.join("nginx.conf");
                write(&config, &nginx_config(name, folder))?;
                write(&folder.join("big"), &"shunt by shunt\n\n".repeat(BIG / 16))?;
                let errors = folder.join("nginx.err");
                let (config, errors) = (config.display().to_string(), errors.display().to_string());
                let nginx = self.serve(&["nginx", "-e", &errors, "-c", &config], &[("tcp", HTTP_PORT)])?;
                let (udp, tcp) = (UDP_PORT.to_string(), TCP_PORT.to_string());
                let echo =
                    self.netns.own_program(&["pod-server", "--name", name, "--udp", &udp, "--tcp", &tcp]);
                let echo: Vec<&str> = echo.iter().map(String::as_str).collect();
                Ok(vec![nginx, self.serve(&echo, &[("udp", UDP_PORT), ("tcp", TCP_PORT)])?])
            }
            PodKind::Dns => {
                let record = format!("--txt-record={DNS_NAME},{name}");
                let addresses = addresses.map(|address| format!("--address=/{DNS_NAME}/{address}"));
                let words =
                    ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
                let more = [
                    "--pid-file=",
                    "--user=root",
                    "--bind-interfaces",
                    "--log-facility=-",
                    &record,
                    &addresses[0],
                    &addresses[1],
                ];
                Ok(vec![
                    self.serve(&[&words[..], &more[..]].concat(), &[("udp", DNS_PORT), ("tcp", DNS_PORT)])?,
                ])
            }
            PodKind::Iperf => Ok(vec![self.serve(&["iperf3", "--server"], &[("tcp", IPERF_PORT)])?]),
            PodKind::Idle => Ok(Vec::new()),
        }
    }

    fn serve(&self, words: &[&str], ports: &[(&str, u16)]) -> Result<Process> {
        let mut process = self.netns.spawn(words, &self.folder.join("log"))?;
        for (protocol, port) in ports {
            process.await_port(protocol, *port, READY)?;
        }
        Ok(process)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).doing(|| format!("write {}", path.display()))
}

fn nginx_config(name: &str, folder: &Path) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        r#"daemon off;
master_process off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err warn;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    default_type text/plain;
    map $remote_addr $client {{
        ~: "[$remote_addr]:$remote_port";
        default $remote_addr:$remote_port;
    }}
{temporary}    server {{
        listen {HTTP_PORT} backlog=4096;
        listen [::]:{HTTP_PORT} backlog=4096;
        client_max_body_size 16m;
        location = /big {{ root {folder}; }}
        location / {{ return 200 "{name} client=$client host=$http_host\n"; }}
    }}
}}
"#
    )
}
