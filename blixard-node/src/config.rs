//! The daemon's configuration: [`NodeOptions`] as flags and environment give them, and
//! [`NodeConfig`] once checked. Precedence: flag, environment, default. Every fault is found here,
//! before anything is opened; nothing here touches the disk or the network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use blixard_core::api::token::Secret;
use blixard_core::cluster::SubnetRange;
use blixard_core::discovery::target::{JoinTarget, TargetError};
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::NodeId;
use blixard_core::text::printable;

/// The port that links are accepted on when `--bind` names none.
pub const BIND_PORT: u16 = 7001;
/// The port of the HTTP API when neither `--http` nor HTTP_PORT names one.
pub const HTTP_PORT: u16 = 8082;
/// Where root's node keeps its data.
pub const SYSTEM_DATA_DIR: &str = "/var/lib/blixard";
/// The API's socket in the data directory.
pub const SOCKET_NAME: &str = "blixard.sock";

/// Variables that list what to join by, separated by commas.
pub const JOIN_VARIABLES: [&str; 2] = ["BLIXARD_NODE_REGISTRIES", "BLIXARD_JOIN"];

/// The variable that holds a token to join by.
pub const TOKEN_VARIABLE: &str = "BLIXARD_JOIN_TOKEN";
/// Variables that may hold a secret: what the node starts has no business to see them.
pub const SECRET_VARIABLES: [&str; 4] =
    ["BLIXARD_NODE_REGISTRIES", "BLIXARD_JOIN", TOKEN_VARIABLE, "BLIXARD_TOKEN"];

/// What is logged unless told otherwise: openraft's and netlink's own news are for their developers.
const LOG: &str = "info,openraft=error,netlink_packet_route=error,iroh=warn,noq=warn";

/// The longest label key or value, in bytes.
const LABEL_BYTES_MAX: usize = 128;

/// What flags and environment say, unchecked. Absent and empty mean: not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeOptions {
    /// `--id`: the member's number.
    pub id: Option<u64>,
    /// `--bind`: where links are accepted, `IP[:PORT]`.
    pub bind: Option<String>,
    /// `--advertise`: where other members reach this one, `IP:PORT`, when that is not `bind`.
    pub advertise: Vec<String>,
    /// `--join`, then what [`JOIN_VARIABLES`] list: registry files of members, `@FILE` with a ticket, or
    /// tickets.
    pub join: Vec<String>,
    /// `--token-file`: a file that holds the token to join by.
    pub token_file: Option<PathBuf>,
    /// [`TOKEN_VARIABLE`], or what standard input held: the token itself, or a ticket. No flag gives it.
    pub join_token: Option<String>,
    /// `--announce`: `on`, `off`, or the interfaces that are announced on.
    pub announce: Option<String>,
    /// `--bootstrap`: make a cluster although there are others to join.
    pub bootstrap: bool,
    /// `--data-dir`, BLIXARD_DATA_DIR.
    pub data_dir: Option<PathBuf>,
    /// `--http`, HTTP_PORT: `IP:PORT`, a port on 127.0.0.1, or `off`.
    pub http: Option<String>,
    /// `--http-cert`: the certificate that the API's TCP listener is served within TLS by.
    pub http_cert: Option<PathBuf>,
    /// `--http-key`: its key.
    pub http_key: Option<PathBuf>,
    /// `--label`: `KEY=VALUE`.
    pub labels: Vec<String>,
    /// `--name`, NAME: the host's name when absent.
    pub name: Option<String>,
    /// `--containerd`: `auto`, `private` or a socket's path.
    pub containerd: Option<String>,
    /// `--subnets`: where container networks are cut from, `A.B.C.D/PREFIX`; for the first member.
    pub subnets: Option<String>,
    /// `--registries`: the file that says how image registries are reached.
    pub registries: Option<PathBuf>,
    /// `--allow-path`: paths of the host that containers may be given besides those that any may.
    pub allow_paths: Vec<PathBuf>,
    /// `--log-format`: `text` or `json`.
    pub log_format: Option<String>,
    /// `--log`, BLIXARD_LOG: what is logged, as tracing's directives.
    pub log: Option<String>,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The member's number; absent: the data directory's, else the leader assigns one.
    pub id: Option<NodeId>,
    /// Where links are accepted; absent: this machine's address on its default route, at
    /// [`BIND_PORT`].
    pub bind: Option<SocketAddr>,
    /// Where other members reach this one; empty: at `bind`.
    pub advertise: Vec<SocketAddr>,
    /// Whom to join, in the order given.
    pub join: Vec<JoinTarget>,
    /// The token to join by, besides those that come with `join`.
    pub token: Option<JoinToken>,
    /// Whether and where the local network is told of this node and its containers.
    pub announce: Announce,
    /// Whether to make a cluster although `join` is not empty.
    pub bootstrap: bool,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the HTTP API listens besides its socket.
    pub http: HttpListen,
    /// What the HTTP API is served with on TCP; absent: in the clear, on loopback.
    pub http_tls: Option<TlsFiles>,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The node's name; absent: the host's.
    pub name: Option<String>,
    /// Which containerd to use.
    pub containerd: Containerd,
    /// Where container networks are cut from, when this node makes the cluster.
    pub subnets: SubnetRange,
    /// The file that says how image registries are reached.
    pub registries: Option<PathBuf>,
    /// Paths of the host that containers may be given besides those that any may; absolute.
    pub allow_paths: Vec<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
}

impl NodeConfig {
    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join(SOCKET_NAME)
    }
}

/// The files of a certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those that vouch for it.
    pub certificates: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Whether and where the local network is told of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announce {
    /// On the interfaces that have the addresses that links come to.
    On,
    /// Nowhere.
    Off,
    /// On these interfaces.
    Interfaces(Vec<String>),
}

/// A token to join by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinToken {
    /// This one.
    Given(Secret),
    /// The one in this file, read when the node belongs to no cluster yet.
    File(PathBuf),
}

/// Where the HTTP API listens on TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpListen {
    /// Nowhere.
    Off,
    /// Here, as asked for: it is an error when it is taken.
    Asked(SocketAddr),
    /// Here by default: when it is taken the node says so and goes on without.
    Default(SocketAddr),
}

/// Which containerd runs the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Containerd {
    /// The system's when it answers, else a private one.
    Auto,
    /// One that this node starts and supervises.
    Private,
    /// The one at this socket.
    Socket(PathBuf),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Its value cannot be used.
    #[error("{option}: `{}` {}; {hint}", printable(value), printable(problem))]
    Value {
        /// The flag or environment variable.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        hint: &'static str,
    },
    /// It cannot be joined by.
    #[error(transparent)]
    Join(#[from] TargetError),
}

impl ConfigError {
    fn new(option: &'static str, value: &str, problem: impl Into<String>, hint: &'static str) -> Self {
        Self::Value { option, value: value.to_owned(), problem: problem.into(), hint }
    }
}

impl NodeOptions {
    /// Fills what no flag said from the environment, which `var` reads.
    pub fn merge_env(&mut self, var: impl Fn(&str) -> Option<String>) {
        let var = |name| var(name).filter(|value: &String| !value.trim().is_empty());
        let fill = |option: &mut Option<String>, name| {
            if option.is_none() {
                *option = var(name);
            }
        };
        fill(&mut self.http, "HTTP_PORT");
        fill(&mut self.name, "NAME");
        fill(&mut self.log, "BLIXARD_LOG");
        if self.token_file.is_none() {
            fill(&mut self.join_token, TOKEN_VARIABLE);
        }
        if self.data_dir.is_none() {
            self.data_dir = var("BLIXARD_DATA_DIR").map(PathBuf::from);
        }
        for list in JOIN_VARIABLES.into_iter().filter_map(var) {
            let listed = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            self.join.extend(listed.map(str::to_owned));
        }
    }

    /// Checks every option. `root` says whether the process is root's, which decides where data is
    /// kept by default.
    ///
    /// # Errors
    /// All faults, not only the first.
    pub fn check(self, root: bool) -> Result<NodeConfig, Vec<ConfigError>> {
        let mut faults = Vec::new();
        let mut keep = |fault: ConfigError| faults.push(fault);
        let id = self.id.and_then(|id| parse_id(id).map_err(&mut keep).ok());
        let bind = self.bind.as_deref().and_then(|text| parse_bind(text).map_err(&mut keep).ok());
        let advertise: Vec<SocketAddr> =
            self.advertise.iter().filter_map(|text| parse_advertise(text).map_err(&mut keep).ok()).collect();
        if let Some(bind) = bind
            && bind.ip().is_unspecified()
            && self.advertise.is_empty()
        {
            keep(ConfigError::new(
                "--bind",
                &bind.to_string(),
                "does not say where other members reach this node",
                "bind one address of this machine, or add --advertise IP:PORT",
            ));
        }
        let labels =
            self.labels.iter().filter_map(|text| parse_label(text).map_err(&mut keep).ok()).collect();
        let http = parse_http(self.http.as_deref()).unwrap_or_else(|fault| {
            keep(fault);
            HttpListen::Off
        });
        let http_tls = tls_files(self.http_cert, self.http_key).unwrap_or_else(|fault| {
            keep(fault);
            None
        });
        if let Some(fault) = exposed_http(http, http_tls.is_some()) {
            keep(fault);
        }
        let subnets = self.subnets.as_deref().map_or(Ok(SubnetRange::default()), parse_subnets);
        let subnets = subnets.unwrap_or_else(|fault| {
            keep(fault);
            SubnetRange::default()
        });
        let log_format = parse_log_format(self.log_format.as_deref()).unwrap_or_else(|fault| {
            keep(fault);
            LogFormat::Text
        });
        let containerd = parse_containerd(self.containerd.as_deref()).unwrap_or_else(|fault| {
            keep(fault);
            Containerd::Auto
        });
        let announce = parse_announce(self.announce.as_deref()).unwrap_or_else(|fault| {
            keep(fault);
            Announce::Off
        });
        if let Some(Err(fault)) = self.log.as_deref().map(check_log) {
            keep(fault);
        }
        let parsed = self.join.iter().map(|text| JoinTarget::parse(text));
        let mut join: Vec<JoinTarget> =
            parsed.filter_map(|target| target.map_err(|error| keep(error.into())).ok()).collect();
        let token = match (self.join_token, self.token_file) {
            (Some(text), _) => parse_token(&text, &mut join).map_err(&mut keep).ok(),
            (None, file) => file.map(JoinToken::File),
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(NodeConfig {
            id,
            bind,
            advertise,
            join,
            token,
            announce,
            bootstrap: self.bootstrap,
            data_dir: self.data_dir.unwrap_or_else(|| default_data_dir(id, root)),
            http,
            http_tls,
            labels,
            name: self.name,
            containerd,
            subnets,
            registries: self.registries,
            allow_paths: self.allow_paths,
            log_format,
            log: self.log.unwrap_or_else(|| LOG.to_owned()),
        })
    }
}

fn parse_announce(text: Option<&str>) -> Result<Announce, ConfigError> {
    /// The longest name of an interface (`IFNAMSIZ` less its end), in bytes.
    const NAME_BYTES_MAX: usize = 15;
    let text = match text.map(str::trim) {
        None | Some("on") => return Ok(Announce::On),
        Some("off") => return Ok(Announce::Off),
        Some(text) => text,
    };
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let fits = |name: &String| {
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_whitespace())
    };
    if !names.iter().all(fits) {
        let hint = "give on, off, or names of interfaces such as eth0,wlan0";
        return Err(ConfigError::new("--announce", text, "is not the name of an interface", hint));
    }
    Ok(Announce::Interfaces(names))
}

/// Reads a token, or the one of a ticket, which is then something to join by as well. What is wrong with
/// it does not repeat it.
fn parse_token(text: &str, join: &mut Vec<JoinTarget>) -> Result<JoinToken, ConfigError> {
    if let Ok(token) = text.trim().parse() {
        return Ok(JoinToken::Given(token));
    }
    let ticket: Ticket = text.parse().map_err(|_| {
        let hint = "give the output of `blixard cluster token create` on a member, or its token";
        ConfigError::new(TOKEN_VARIABLE, "(not shown)", "is no token to join by", hint)
    })?;
    let token = ticket.token.clone();
    join.push(JoinTarget::Ticket(Box::new(ticket)));
    Ok(JoinToken::Given(token))
}

fn default_data_dir(id: Option<NodeId>, root: bool) -> PathBuf {
    match id {
        _ if root => PathBuf::from(SYSTEM_DATA_DIR),
        Some(id) => PathBuf::from(format!("./data/node{id}")),
        None => PathBuf::from("./data/node"),
    }
}

fn parse_id(id: u64) -> Result<NodeId, ConfigError> {
    if id == 0 {
        return Err(ConfigError::new("--id", "0", "is not a node's number", "numbers start at 1"));
    }
    Ok(NodeId(id))
}

fn parse_bind(text: &str) -> Result<SocketAddr, ConfigError> {
    let whole = text.parse::<SocketAddr>();
    let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, BIND_PORT));
    whole.or(bare).map_err(|_| {
        ConfigError::new(
            "--bind",
            text,
            "is not an address",
            "give an IP address of this machine and a port, such as 10.77.0.1:7001",
        )
    })
}

fn parse_advertise(text: &str) -> Result<SocketAddr, ConfigError> {
    let hint = "give the IP address and port at which other members reach this node";
    let address = text
        .parse::<SocketAddr>()
        .map_err(|_| ConfigError::new("--advertise", text, "is not an address with a port", hint))?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(ConfigError::new("--advertise", text, "cannot be reached", hint));
    }
    Ok(address)
}

fn parse_http(text: Option<&str>) -> Result<HttpListen, ConfigError> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(text) = text else { return Ok(HttpListen::Default(local(HTTP_PORT))) };
    if text == "off" {
        return Ok(HttpListen::Off);
    }
    let port = text.parse::<u16>().map(local);
    let address = port.ok().or_else(|| text.parse().ok()).map(HttpListen::Asked);
    address.ok_or_else(|| {
        ConfigError::new(
            "--http (HTTP_PORT)",
            text,
            "is neither a port nor an address",
            "give a port such as 8082, an address such as 127.0.0.1:8082, or off",
        )
    })
}

/// The certificate's files: both or neither.
fn tls_files(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, ConfigError> {
    let lone = |given: &'static str, path: PathBuf, problem: &str, hint| {
        Err(ConfigError::new(given, &path.display().to_string(), problem, hint))
    };
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(certificates), Some(key)) => Ok(Some(TlsFiles { certificates, key })),
        (Some(cert), None) => lone("--http-cert", cert, "has no key", "give --http-key FILE as well"),
        (None, Some(key)) => lone("--http-key", key, "has no certificate", "give --http-cert FILE as well"),
    }
}

/// What is wrong with listening in the clear where others can listen in: tokens would be theirs too.
fn exposed_http(http: HttpListen, tls: bool) -> Option<ConfigError> {
    let HttpListen::Asked(address) = http else { return None };
    let is_loopback = address.ip().to_canonical().is_loopback();
    (!tls && !is_loopback).then(|| {
        ConfigError::new(
            "--http (HTTP_PORT)",
            &address.to_string(),
            "can be reached from other machines, which takes TLS",
            "give --http-cert FILE and --http-key FILE, or a port alone, which is served on 127.0.0.1",
        )
    })
}

fn parse_label(text: &str) -> Result<(String, String), ConfigError> {
    let fail = |problem: &str| ConfigError::new("--label", text, problem, "give KEY=VALUE, such as disk=ssd");
    let (key, value) = text.split_once('=').ok_or_else(|| fail("has no `=`"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.is_empty() || !key.chars().all(fits) {
        return Err(fail("has a key with characters other than letters, digits and . _ - /"));
    }
    if key.starts_with("node.") {
        return Err(fail("has a key that blixard sets itself"));
    }
    if key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX {
        return Err(fail("is longer than 128 bytes in key or value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_subnets(text: &str) -> Result<SubnetRange, ConfigError> {
    let fail = |problem: &str| {
        ConfigError::new("--subnets", text, problem, "give a private range such as 10.210.0.0/16")
    };
    let (base, prefix) = text.split_once('/').ok_or_else(|| fail("has no prefix length"))?;
    let base: Ipv4Addr = base.parse().map_err(|_| fail("is not an IPv4 range"))?;
    let prefix: u8 = prefix.parse().map_err(|_| fail("has no prefix length"))?;
    if !(8..=24).contains(&prefix) {
        return Err(fail("needs a prefix length of 8 to 24: every node takes a /24"));
    }
    if u32::from(base) << prefix != 0 {
        return Err(fail("has host bits set"));
    }
    Ok(SubnetRange { base, prefix })
}

fn parse_containerd(text: Option<&str>) -> Result<Containerd, ConfigError> {
    match text {
        None | Some("auto") => Ok(Containerd::Auto),
        Some("private") => Ok(Containerd::Private),
        Some(path) if path.starts_with('/') => Ok(Containerd::Socket(path.into())),
        Some(other) => Err(ConfigError::new(
            "--containerd",
            other,
            "is not one of the choices",
            "give auto, private, or the absolute path of containerd's socket",
        )),
    }
}

/// Checks what is logged: directives, separated by commas, each a level or `MODULE=LEVEL`. A word
/// that is neither would be taken for a module of that name, and nothing would be logged.
fn check_log(text: &str) -> Result<(), ConfigError> {
    let fail = |problem: String| {
        ConfigError::new(
            "--log (BLIXARD_LOG)",
            text,
            problem,
            "give error, warn, info, debug, trace or off, and MODULE=LEVEL for some, such as info,blixard_node=debug",
        )
    };
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(text) {
        return Err(fail(format!("cannot be read: {error}")));
    }
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let target = directive.split(['=', '[']).next().unwrap_or_default();
        if target == directive && directive.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
            return Err(fail(format!("has `{directive}`, which is no level")));
        }
        let krate = target.split("::").next().unwrap_or_default();
        if krate.starts_with("blixard") && !["blixard_core", "blixard_node"].contains(&krate) {
            return Err(fail(format!(
                "has `{krate}`, which is no module: there are blixard_node and blixard_core"
            )));
        }
    }
    Ok(())
}

fn parse_log_format(text: Option<&str>) -> Result<LogFormat, ConfigError> {
    match text {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(ConfigError::new("--log-format", other, "is not a format", "give text or json")),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
