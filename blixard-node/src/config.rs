//! The daemon's configuration: [`NodeOptions`] as flags and environment give them, and
//! [`NodeConfig`] once checked. Precedence: flag, environment, default. Every fault is found here,
//! before anything is opened; nothing here touches the disk or the network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use blixard_core::cluster::SubnetRange;
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
    /// Whom to join: registry files or tickets, in the order given.
    pub join: Vec<String>,
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
#[error("{option}: `{}` {}; {hint}", printable(value), printable(problem))]
pub struct ConfigError {
    /// The flag or environment variable.
    pub option: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub hint: &'static str,
}

impl ConfigError {
    fn new(option: &'static str, value: &str, problem: impl Into<String>, hint: &'static str) -> Self {
        Self { option, value: value.to_owned(), problem: problem.into(), hint }
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
        if let Some(Err(fault)) = self.log.as_deref().map(check_log) {
            keep(fault);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(NodeConfig {
            id,
            bind,
            advertise,
            join: self.join,
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
mod tests {
    use super::{Containerd, HttpListen, LOG, LogFormat, NodeOptions};

    fn options(edit: impl FnOnce(&mut NodeOptions)) -> NodeOptions {
        let mut options = NodeOptions::default();
        edit(&mut options);
        options
    }

    #[test]
    fn nothing_said_gives_the_defaults() {
        let config = NodeOptions::default().check(true).unwrap();
        assert_eq!(config.data_dir.to_str(), Some("/var/lib/blixard"));
        assert_eq!(config.http, HttpListen::Default("127.0.0.1:8082".parse().unwrap()));
        assert_eq!(config.containerd, Containerd::Auto);
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!((config.bind, config.id), (None, None));
        let as_user = |id| options(|o| o.id = id).check(false).unwrap().data_dir;
        assert_eq!(as_user(Some(3)).to_str(), Some("./data/node3"));
        assert_eq!(as_user(None).to_str(), Some("./data/node"));
    }

    #[test]
    fn faults_name_the_option_its_value_and_what_to_write() {
        let check = |edit: fn(&mut NodeOptions), expect: &str| {
            let faults = options(edit).check(true).expect_err(expect);
            let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(text.contains(expect), "`{expect}` in `{text}`");
        };
        check(|o| o.id = Some(0), "--id: `0` is not a node's number");
        check(|o| o.bind = Some("eth0".into()), "--bind: `eth0` is not an address");
        check(|o| o.bind = Some("10.0.0.1:99999".into()), "--bind: `10.0.0.1:99999` is not an address");
        check(|o| o.bind = Some("0.0.0.0:7001".into()), "add --advertise");
        check(|o| o.advertise = vec!["10.0.0.1".into()], "--advertise: `10.0.0.1` is not an address");
        check(|o| o.advertise = vec!["0.0.0.0:1".into()], "cannot be reached");
        check(|o| o.http = Some("http".into()), "neither a port nor an address");
        check(|o| o.labels = vec!["ssd".into()], "--label: `ssd` has no `=`");
        check(|o| o.labels = vec!["node.id=3".into()], "blixard sets itself");
        check(|o| o.labels = vec!["=3".into()], "has a key with characters");
        check(|o| o.subnets = Some("10.0.0.0".into()), "has no prefix length");
        check(|o| o.subnets = Some("10.0.0.0/25".into()), "8 to 24");
        check(|o| o.subnets = Some("10.1.2.3/16".into()), "host bits");
        check(|o| o.containerd = Some("docker".into()), "--containerd: `docker`");
        check(|o| o.log_format = Some("xml".into()), "--log-format: `xml`");
        check(|o| o.log = Some("inf".into()), "--log (BLIXARD_LOG): `inf` has `inf`, which is no level");
        check(|o| o.log = Some("verbose".into()), "which is no level; give error, warn");
        check(|o| o.log = Some("info,blixard_node=loud".into()), "cannot be read");
        check(|o| o.log = Some("blixard=debug".into()), "has `blixard`, which is no module");
        check(|o| o.log = Some("info, debgu".into()), "has `debgu`");
    }

    #[test]
    fn what_is_logged_is_levels_and_modules_with_levels() {
        let check = |log: &str| {
            assert_eq!(options(|o| o.log = Some(log.into())).check(true).map(|c| c.log), Ok(log.to_owned()));
        };
        check("debug");
        check("WARN");
        check("off");
        check("info,blixard_node::raft=debug");
        check("info,openraft=error,blixard_node[span{field=1}]=trace");
        check(LOG);
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let faults = options(|o| {
            o.id = Some(0);
            o.bind = Some("x".into());
            o.labels = vec!["a".into(), "b".into()];
        })
        .check(true)
        .unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
    }

    #[test]
    fn good_options_are_taken() {
        let config = options(|o| {
            o.bind = Some("10.77.0.1".into());
            o.http = Some("9000".into());
            o.labels = vec!["disk=ssd".into(), "zone=a=b".into()];
            o.subnets = Some("172.16.0.0/12".into());
            o.containerd = Some("/run/containerd/containerd.sock".into());
        })
        .check(true)
        .unwrap();
        assert_eq!(config.bind, Some("10.77.0.1:7001".parse().unwrap()));
        assert_eq!(config.http, HttpListen::Asked("127.0.0.1:9000".parse().unwrap()));
        assert_eq!(config.labels["zone"], "a=b");
        assert_eq!(config.subnets.prefix, 12);
        let http = |text: &str| options(|o| o.http = Some(text.into())).check(true).unwrap().http;
        assert_eq!(http("off"), HttpListen::Off);
        assert_eq!(http("127.0.0.2:80"), HttpListen::Asked("127.0.0.2:80".parse().unwrap()));
    }

    #[test]
    fn flags_win_over_the_environment() {
        let var = |name: &str| match name {
            "HTTP_PORT" => Some("9001".to_owned()),
            "NAME" => Some("from-env".to_owned()),
            "BLIXARD_DATA_DIR" => Some("/env".to_owned()),
            "BLIXARD_NODE_REGISTRIES" => Some("a.json, b.json,".to_owned()),
            "BLIXARD_LOG" => Some(" ".to_owned()),
            _ => None,
        };
        let mut flags = options(|o| {
            o.name = Some("from-flag".into());
            o.join = vec!["first.json".into()];
        });
        flags.merge_env(var);
        let config = flags.check(true).unwrap();
        assert_eq!(config.name.as_deref(), Some("from-flag"));
        assert_eq!(config.http, HttpListen::Asked("127.0.0.1:9001".parse().unwrap()));
        assert_eq!(config.data_dir.to_str(), Some("/env"));
        assert_eq!(config.join, ["first.json", "a.json", "b.json"]);
        assert_eq!(config.log, LOG);
    }

    #[test]
    fn http_off_loopback_takes_tls() {
        let check = |http: &str, tls: bool, expect: bool| {
            let config = options(|options| {
                options.http = Some(http.into());
                options.http_cert = tls.then(|| "c.pem".into());
                options.http_key = tls.then(|| "k.pem".into());
            });
            let checked = config.check(true);
            assert_eq!(checked.is_ok(), expect, "{http} {tls}: {checked:?}");
            if let Err(faults) = checked {
                assert!(faults[0].to_string().contains("--http-cert"), "{faults:?}");
            }
        };
        for local in ["8083", "127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "off"] {
            check(local, false, true);
            check(local, true, true);
        }
        for open in ["0.0.0.0:80", "[::]:80", "10.77.0.1:8082", "[::ffff:10.0.0.1]:80", "[fe80::1]:80"] {
            check(open, false, false);
            check(open, true, true);
        }
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        let check = |cert: bool, key: bool, expect: bool| {
            let config = options(|options| {
                options.http_cert = cert.then(|| "c.pem".into());
                options.http_key = key.then(|| "k.pem".into());
            });
            assert_eq!(config.check(true).is_ok(), expect, "{cert} {key}");
        };
        check(true, true, true);
        check(false, false, true);
        check(true, false, false);
        check(false, true, false);
    }

    #[test]
    fn options_survive_every_damage() {
        let check = |name: &str, seed: &str, set: fn(&mut NodeOptions, String)| {
            damage::survives(name, &[seed.as_bytes().to_vec()], |input| {
                let text = String::from_utf8_lossy(input).into_owned();
                let checked = options(|options| set(options, text)).check(true);
                checked.map(drop).map_err(|faults| faults[0].to_string())
            });
        };
        check("--bind", "10.77.0.1:7001", |options, text| options.bind = Some(text));
        check("--http", "127.0.0.1:8082", |options, text| options.http = Some(text));
        check("--label", "disk=ssd", |options, text| options.labels = vec![text]);
        check("--subnets", "10.210.0.0/16", |options, text| options.subnets = Some(text));
    }
}
