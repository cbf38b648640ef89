//! One host: a namespace, a data directory and the real `blixard` in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::lan::Lan;
use crate::{cleanup, http, machine, process, wait};

/// How long a daemon may take from its start to its first answer.
const READY: Duration = Duration::from_secs(30);
/// How long a program may take from its start to its first answer.
const SERVED: Duration = Duration::from_secs(10);

/// A machine of a test's cluster. When dropped, everything that ran on it ends.
#[derive(Debug)]
pub struct Host {
    /// Its number: the last part of its address, and its node id unless a test says otherwise.
    pub number: u8,
    /// Environment variables of its daemon, besides the test's own.
    pub environment: BTreeMap<String, String>,
    /// Options of its daemon at every start.
    pub arguments: Vec<String>,
    /// What its daemon has on standard input; nothing when absent.
    pub input: Option<PathBuf>,
    address: Ipv4Addr,
    lan: Arc<Lan>,
    directory: PathBuf,
    mark: String,
    daemon: Option<Child>,
    powered: bool,
}

/// The program under test: beside the test's own executable, or where `BLIXARD_BIN` says.
///
/// # Errors
/// When it has not been built.
pub fn blixard() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BLIXARD_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let mut candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join("blixard"));
    candidates
        .find(|path| path.is_file())
        .with_context(|| format!("no blixard beside {}: build the workspace first", own.display()))
}

impl Host {
    /// Plugs a new host into `lan`; its files are kept under `directory`.
    ///
    /// # Errors
    /// When the namespace or the directory cannot be made.
    pub fn new(lan: &Arc<Lan>, number: u8, directory: &Path) -> Result<Self> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        lan.plug_host(number, address)?;
        let directory = directory.join(format!("host{number}"));
        std::fs::create_dir_all(&directory)?;
        let mark = lan.namespace_of(number);
        Ok(Self {
            number,
            environment: BTreeMap::new(),
            arguments: Vec::new(),
            input: None,
            address,
            lan: lan.clone(),
            directory,
            mark,
            daemon: None,
            powered: true,
        })
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its network namespace.
    pub fn namespace(&self) -> String {
        self.lan.namespace_of(self.number)
    }

    /// The namespace of the LAN it is on.
    pub fn lan(&self) -> &str {
        self.lan.namespace()
    }

    /// The daemon's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The file by which others join through it.
    pub fn registry_file(&self) -> PathBuf {
        self.data_dir().join("node-registry.json")
    }

    /// What the daemon wrote, of all its runs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Starts the daemon on the host's address with `--id` its number and `arguments`, without
    /// waiting for it.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let id = self.number.to_string();
        let bind = format!("{}:7001", self.address);
        self.spawn_as(&[&["--id", &id, "--bind", &bind], arguments].concat())
    }

    /// Starts the daemon with just these arguments besides its data directory and containerd.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn_as(&mut self, arguments: &[&str]) -> Result<()> {
        cleanup::check_interrupted()?;
        if self.is_running() {
            bail!("the daemon of host {} runs already", self.number);
        }
        std::fs::create_dir_all(self.data_dir())?;
        let log = File::options().create(true).append(true).open(self.directory.join("daemon.log"))?;
        let input = self.input.as_ref().map(File::open).transpose()?.map_or_else(Stdio::null, Stdio::from);
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace()))
            // Whoever starts it may keep their files to themselves; containers are not to suffer from it.
            .args(["sh", "-c", "umask 077; exec \"$@\"", "sh"])
            .arg(blixard()?)
            .arg("node")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--containerd", "private"])
            .args(&self.arguments)
            .args(arguments)
            .env(process::MARK, &self.mark)
            .env("NAME", format!("host{}", self.number))
            .envs(&self.environment)
            // A terminal's Ctrl-C is the test's to handle, not the daemon's.
            .process_group(0)
            .stdin(input)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start nsenter")?;
        self.daemon = Some(child);
        Ok(())
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time; the error holds its log.
    pub fn start(&mut self, arguments: &[&str]) -> Result<()> {
        self.spawn(arguments)?;
        self.wait_ready()
    }

    /// Waits until the daemon answers on its socket.
    ///
    /// # Errors
    /// When it ends or does not answer in time; the error holds its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let waited = wait::until("the daemon to answer", READY, || {
            if !self.is_running() {
                return Ok(false);
            }
            self.status().map(|_| true)
        });
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the daemon of host {} ended:\n{}", self.number, self.log_tail(40)),
            Err(error) => Err(error.context(format!("host {}:\n{}", self.number, self.log_tail(40)))),
        }
    }

    /// Whether the daemon runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.daemon.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// The daemon's pid.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Waits for the daemon's end and gives its code; absent when a signal ended it.
    ///
    /// # Errors
    /// When it was never started or goes on past `deadline`.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<Option<i32>> {
        let daemon = self.daemon.as_mut().context("the daemon was never started")?;
        let status = wait::until("the daemon to end", deadline, || daemon.try_wait()?.context("it goes on"))?;
        self.daemon = None;
        Ok(status.code())
    }

    /// Sends the daemon alone a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            process::signal(pid, signal);
        }
    }

    /// Kills the daemon alone, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// When it was never started.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(10)).map(drop)
    }

    /// Stops the daemon as Ctrl-C does.
    ///
    /// # Errors
    /// When it does not end within 30 seconds.
    pub fn interrupt(&mut self) -> Result<()> {
        self.signal(Signal::INT);
        self.wait_exit(Duration::from_secs(30)).map(drop)
    }

    /// The machine dies: cable, daemon, containerd, shims and containers at once; with them goes
    /// all that a machine keeps in memory.
    ///
    /// # Errors
    /// When the cable cannot be pulled.
    pub fn power_off(&mut self) -> Result<()> {
        self.lan.set_cable(self.number, false)?;
        process::power_off(&self.mark);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait()?;
        }
        machine::forget_running_state(&self.data_dir());
        self.lan.unplug_host(self.number)?;
        self.powered = false;
        Ok(())
    }

    /// The machine boots and has its cable; the daemon is for the test to start.
    ///
    /// # Errors
    /// When it is not off, or its namespace cannot be made.
    pub fn power_on(&mut self) -> Result<()> {
        if self.powered {
            bail!("host {} is not off", self.number);
        }
        self.lan.plug_host(self.number, self.address)?;
        self.powered = true;
        Ok(())
    }

    /// Gives the machine another address, from its next boot on.
    pub fn readdress(&mut self, last: u8) {
        self.address = Ipv4Addr::new(10, 77, 0, last);
    }

    /// Whether the machine has power.
    pub fn is_powered(&self) -> bool {
        self.powered
    }

    /// Pulls or plugs the cable alone.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_cable(&self, plugged: bool) -> Result<()> {
        self.lan.set_cable(self.number, plugged)
    }

    /// Every process of this host.
    pub fn processes(&self) -> BTreeSet<u32> {
        process::of_host(&self.mark)
    }

    /// The pid of the host's own containerd.
    ///
    /// # Errors
    /// When none runs.
    pub fn containerd_pid(&self) -> Result<u32> {
        let is_containerd = |pid: &u32| process::name_of(*pid).as_deref() == Some("containerd");
        self.processes().into_iter().find(is_containerd).context("no containerd runs on the host")
    }

    /// What `GET path` on this host's published `port` answers, asked from the LAN.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        http::get(self.lan.namespace(), (self.address, port).into(), path)
    }

    /// The page that this host's published `port` serves, asked from the LAN. Waited for, since a
    /// program listens some time after its process began.
    ///
    /// # Errors
    /// When it is not served in time.
    pub fn served(&self, port: u16) -> Result<String> {
        wait::until(&format!("the page of host {}", self.number), SERVED, || {
            let (status, page) = self.get(port, "/")?;
            wait::ensure(status == 200, format!("it answers {status}"))?;
            Ok(page)
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        process::power_off(&self.mark);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait().ok();
        }
        machine::forget_running_state(&self.data_dir());
        if std::thread::panicking() {
            eprintln!("--- the end of host {}'s log\n{}", self.number, self.log_tail(60));
        }
    }
}
