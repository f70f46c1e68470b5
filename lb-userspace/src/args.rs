//! The command line; every flag also as SHUNT_ variable, the agent's also in a YAML file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lb_kernel::programs::checks::OLDEST;

pub mod agent;
pub mod config;
pub mod kube_proxy;

pub use agent::AgentArgs;
pub use config::{Config, ConfigError};

/// A load balancer for Kubernetes Services in eBPF: kube-proxy's work, beside any CNI.
#[derive(Parser, Debug)]
#[command(name = "shunt", version, max_term_width = 110, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   something failed that has no code of its own
  64  the command line is wrong
  69  something needed is not there: no bpffs, no agent's maps, another agent running
  77  a capability is missing
  78  the configuration is wrong";

const AGENT_EXAMPLES: &str = "\
Examples:
  shunt agent                                                in a cluster, or with a kubeconfig
  shunt agent --source manifests --manifests ./services/     no cluster: a folder of Services and EndpointSlices
  shunt agent --config /etc/shunt.yaml --log-format json     flags win over variables, variables over the file
  shunt agent --kube-proxy-config ./kube-proxy.yaml          what kube-proxy was told, file or ConfigMap
  SHUNT_NODE_NAME=n1 shunt agent --uplink eth0 --xdp-mode generic

The file has the same names without the dashes in front:
  source: manifests
  manifests: /etc/shunt/services
  node-ip: [192.0.2.10]";

const GET_EXAMPLES: &str = "\
Examples:
  shunt get services                     what the kernel serves
  shunt get backends -n shop web -o wide
  shunt get flows --client 192.0.2.7
  shunt get interfaces -o json";

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the node agent
    #[command(after_help = format!("{AGENT_EXAMPLES}\n\nLinux {OLDEST} or newer."))]
    Agent(Box<AgentArgs>),
    /// Show what the kernel holds now, with no agent needed
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Take out every program, link and pin that is ours, and nothing else
    Cleanup(CleanupArgs),
    /// Serve new interfaces while the agent does not run; for a container of its own, elsewhere the agent starts one
    Keeper(KeeperArgs),
    /// For developers
    #[command(hide = true)]
    Debug(DebugArgs),
}

/// Where the pins are.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    /// Directory on a bpffs that holds our maps and links
    #[arg(long, env = "SHUNT_BPFFS", value_name = "PATH", default_value = agent::BPFFS)]
    pub bpffs: PathBuf,
}

/// How a table is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Output {
    /// The columns most asked for.
    #[default]
    Table,
    /// Every column.
    Wide,
    /// One JSON array.
    Json,
}

/// Arguments of `shunt get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// What to show
    #[arg(value_enum)]
    pub what: What,
    /// Only this Service (for interfaces: this interface)
    pub name: Option<String>,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Flows of this client only
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<std::net::IpAddr>,
    /// Flows of this Service only: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// How to write it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The pins to read.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// What `shunt get` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum What {
    /// Frontends and what is behind them
    #[value(aliases = ["service", "svc"])]
    Services,
    /// Endpoints and their share
    #[value(aliases = ["backend", "endpoints"])]
    Backends,
    /// Connections that are translated now
    #[value(alias = "flow")]
    Flows,
    /// The node's own addresses and networks, and where nodePorts are served
    #[value(alias = "address")]
    Addresses,
    /// Interfaces with programs of ours
    #[value(alias = "interface")]
    Interfaces,
    /// The kernel's memory for each map
    #[value(alias = "map")]
    Maps,
}

/// Arguments of `shunt cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// The pins to remove.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Arguments of `shunt keeper`.
#[derive(Args, Clone, Debug)]
pub struct KeeperArgs {
    /// Where agents connect (their --keeper); without it, standard input is the channel to the one that started it
    #[arg(long, env = "SHUNT_KEEPER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The pins of the agent.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Arguments of `shunt debug`.
#[derive(Args, Clone, Debug)]
pub struct DebugArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DebugCommand,
}

/// The subcommands of `shunt debug`.
#[derive(Subcommand, Clone, Debug)]
pub enum DebugCommand {
    /// Load every program, attach none, and show what the verifier made of it
    Verifier {
        /// How to write it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_agent_flag_has_a_variable_of_its_name() {
        let cli = Cli::command();
        let agent = cli.find_subcommand("agent").expect("agent");
        for arg in agent.get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version")) {
            let long = arg.get_long().expect("every argument is a flag");
            let expected = format!("SHUNT_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(expected.as_str()), "--{long}");
        }
    }

    #[test]
    fn the_flags_users_rely_on_exist() {
        let cli = Cli::command();
        let agent = cli.find_subcommand("agent").expect("agent");
        for flag in [
            "source",
            "manifests",
            "node-name",
            "node-ip",
            "cluster-cidr",
            "pod-cidr",
            "uplink",
            "pod-interface",
            "xdp-mode",
            "xdp-forward",
            "keeper",
            "socket-lb",
            "cgroup",
            "kubeconfig",
            "external-ips",
            "service-cidr",
            "nodeport-addresses",
            "masquerade-all",
            "masquerade-external",
            "detect-local-mode",
            "pod-bridge-interface",
            "pod-interface-name-prefix",
            "kube-proxy-config",
            "healthz-bind-address",
            "metrics-bind-address",
            "bpffs",
            "config",
        ] {
            assert!(agent.get_arguments().any(|arg| arg.get_long() == Some(flag)), "--{flag}");
        }
    }

    #[test]
    fn get_takes_a_kind_a_name_and_filters() {
        let cli = Cli::try_parse_from(["shunt", "get", "svc", "web", "-n", "shop", "-o", "wide"]);
        let Command::Get(get) = cli.expect("valid").command else { panic!("get") };
        assert_eq!((get.what, get.name.as_deref(), get.output), (What::Services, Some("web"), Output::Wide));
        assert!(Cli::try_parse_from(["shunt", "get", "pods"]).is_err());
    }
}
