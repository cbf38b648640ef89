//! The daemon's options. They are only taken here; [`NodeOptions::check`] checks them.

use std::path::PathBuf;

use blixard_node::config::NodeOptions;

use crate::args::Connection;

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Options of the daemon")]
pub(super) struct DaemonArgs {
    /// This node's number, from 1, never reused [default: the leader assigns one]
    #[arg(long, value_name = "N")]
    id: Option<u64>,
    /// Where links from other nodes are accepted [default: the address of the default route, port 7001]
    #[arg(long, value_name = "IP[:PORT]")]
    bind: Option<String>,
    /// Where other nodes reach this one, when that is not --bind (repeatable)
    #[arg(long, value_name = "IP:PORT")]
    advertise: Vec<String>,
    /// How to find the cluster: a member's node-registry.json or its http(s) URL, HOST:PORT of a member,
    /// mdns (whoever announces itself on the local network), exec:PROGRAM that prints members, @FILE that
    /// holds a ticket, or - for one on standard input (repeatable)
    #[arg(long, visible_alias = "source", value_name = "FILE|URL|HOST:PORT|mdns|exec:PROGRAM|@FILE|-")]
    join: Vec<String>,
    /// Whether, or on which interfaces, the local network is told of this node and its containers by mDNS
    /// [default: on the interfaces that links come to]
    #[arg(long, value_name = "on|off|INTERFACES")]
    announce: Option<String>,
    /// A file that holds the token to join by, where --join alone has none; - for standard input
    #[arg(long, value_name = "FILE|-")]
    token_file: Option<PathBuf>,
    /// Make a new cluster although there are others to join: on one of several equal machines
    #[arg(long)]
    bootstrap: bool,
    /// Where the HTTP API listens besides its socket: a port, an address, or off [default: 127.0.0.1:8082]
    #[arg(long, value_name = "PORT|IP:PORT|off")]
    http: Option<String>,
    /// The certificate of the HTTP API, PEM, for TLS: needed to listen on other addresses than loopback
    #[arg(long, value_name = "FILE")]
    http_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    http_key: Option<PathBuf>,
    /// A label that bundles can ask for in their placement (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// This node's name [default: the host's]
    #[arg(long)]
    name: Option<String>,
    /// Which containerd: auto, private, or the path of its socket [default: auto]
    #[arg(long, value_name = "auto|private|PATH")]
    containerd: Option<String>,
    /// Where container networks are cut from; said once, by the first node [default: 10.210.0.0/16]
    #[arg(long, value_name = "RANGE")]
    subnets: Option<String>,
    /// A file that says how image registries are reached: plain HTTP, mirrors, credentials
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// A path of the host, with all below it, that containers may be given although it is the system's
    /// or blixard's own; may be repeated
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    allow_path: Vec<PathBuf>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or tracing's directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl DaemonArgs {
    /// The options as the node takes them; the daemon adds what the environment says.
    pub(super) fn options(self, connection: &Connection) -> NodeOptions {
        NodeOptions {
            id: self.id,
            bind: self.bind,
            advertise: self.advertise,
            join: self.join,
            token_file: self.token_file,
            join_token: None,
            announce: self.announce,
            bootstrap: self.bootstrap,
            data_dir: connection.data_dir().map(Into::into),
            http: self.http,
            http_cert: self.http_cert,
            http_key: self.http_key,
            labels: self.labels,
            name: self.name,
            containerd: self.containerd,
            subnets: self.subnets,
            registries: self.registries,
            allow_paths: self.allow_path,
            log_format: self.log_format,
            log: self.log,
        }
    }
}

/// Reads an absolute path.
///
/// # Errors
/// Why it is none.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("takes an absolute path, as /etc/ssl".to_owned()) }
}
