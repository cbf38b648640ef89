//! One host: a namespace, a data directory and the real `blixard` in it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::lan::Lan;
use crate::{http, process, wait};

/// How long a daemon may take from its start to its first answer.
const READY: Duration = Duration::from_secs(30);

/// A machine of a test's cluster. When dropped, everything that ran on it ends.
#[derive(Debug)]
pub struct Host {
    /// Its number: the last part of its address, and its node id unless a test says otherwise.
    pub number: u8,
    lan: Arc<Lan>,
    namespace: String,
    directory: PathBuf,
    mark: String,
    daemon: Option<Child>,
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
    let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join("blixard"));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no blixard beside {}: build the workspace first", own.display()))
}

impl Host {
    /// Plugs a new host into `lan`; its files are kept under `directory`.
    ///
    /// # Errors
    /// When the namespace or the directory cannot be made.
    pub fn new(lan: &Arc<Lan>, number: u8, directory: &Path) -> Result<Self> {
        let namespace = lan.plug_host(number)?;
        let directory = directory.join(format!("host{number}"));
        std::fs::create_dir_all(&directory)?;
        let mark = namespace.clone();
        Ok(Self { number, lan: lan.clone(), namespace, directory, mark, daemon: None })
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The daemon's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What the daemon wrote, of all its runs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default()
    }

    /// Starts the daemon on the host's address with `--id` its number and `arguments`, without
    /// waiting for it.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let id = self.number.to_string();
        let bind = format!("{}:7001", self.address());
        self.spawn_as(&[&["--id", &id, "--bind", &bind], arguments].concat())
    }

    /// Starts the daemon with just these arguments besides its data directory.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn_as(&mut self, arguments: &[&str]) -> Result<()> {
        if self.is_running() {
            bail!("the daemon of host {} runs already", self.number);
        }
        let log = File::options().create(true).append(true).open(self.directory.join("daemon.log"))?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(blixard()?)
            .arg("node")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--containerd", "private"])
            .args(arguments)
            .env(process::MARK, &self.mark)
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
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
            self.cli_json(&["cluster", "status", "-o", "json"]).map(|_| true)
        });
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the daemon of host {} ended:\n{}", self.number, self.log()),
            Err(error) => Err(error.context(format!("host {}:\n{}", self.number, self.log()))),
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

    /// The machine dies: cable, daemon, containerd, shims and containers at once.
    ///
    /// # Errors
    /// When the cable cannot be pulled.
    pub fn power_off(&mut self) -> Result<()> {
        self.lan.set_cable(self.number, false)?;
        process::power_off(&self.mark);
        self.daemon = None;
        Ok(())
    }

    /// The machine gets its cable back; the daemon is for the test to start.
    ///
    /// # Errors
    /// When the cable cannot be plugged.
    pub fn power_on(&mut self) -> Result<()> {
        self.lan.set_cable(self.number, true)
    }

    /// Pulls or plugs the cable alone.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_cable(&self, plugged: bool) -> Result<()> {
        self.lan.set_cable(self.number, plugged)
    }

    /// Every process of this host.
    pub fn processes(&self) -> std::collections::BTreeSet<u32> {
        process::of_host(&self.mark)
    }

    /// Runs the client against this host's daemon, whatever its code.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli_output(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments)?.stdin(Stdio::null()).output()?)
    }

    /// The client's command line against this host's daemon, for the caller to start.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(blixard()?);
        command
            .args(arguments)
            .env("BLIXARD_HOST", format!("unix://{}", self.data_dir().join("blixard.sock").display()))
            .env_remove("BLIXARD_DATA_DIR");
        Ok(command)
    }

    /// Runs the client against this host's daemon and gives its standard output.
    ///
    /// # Errors
    /// When it ends with another code than 0; the error holds both outputs.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli_output(arguments)?;
        if !output.status.success() {
            bail!(
                "host {}: `blixard {}` ended with {}:\n{}{}",
                self.number,
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the client and reads its output as JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cli(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// What `GET path` on this host's published `port` answers, asked from the LAN.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        http::get(self.lan.namespace(), (self.address(), port).into(), path)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        process::power_off(&self.mark);
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of host {}'s log", self.number);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
