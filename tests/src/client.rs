//! What a user sees of a host's node: the command line, and the runtime's own list.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use blixard_core::api::node::{ClusterStatus, NodeView};
use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
use blixard_core::api::service::{ServiceDetail, ServiceRow};
use serde::de::DeserializeOwned;

use crate::bundle::Bundle;
use crate::command::{self, printed};
use crate::host::{Host, blixard};
use crate::image::Image;
use crate::machine;

/// A task as the container runtime itself lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// The container's id.
    pub container: String,
    /// Its process.
    pub pid: u32,
    /// Whether that runs.
    pub running: bool,
}

impl Host {
    /// The client's command line against this host's daemon, for the caller to start.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(blixard()?);
        command
            .args(arguments)
            .env("BLIXARD_HOST", format!("unix://{}", self.data_dir().join("blixard.sock").display()))
            .env_remove("BLIXARD_DATA_DIR")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the client against this host's daemon, whatever its code.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli_output(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Runs the client against this host's daemon and gives its standard output.
    ///
    /// # Errors
    /// When it ends with another code than 0; the error holds both outputs.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli_output(arguments)?;
        if !output.status.success() {
            let (line, status) = (arguments.join(" "), output.status);
            bail!("host {}: `blixard {line}` ended with {status}:\n{}", self.number, printed(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the client, which must fail, and gives all it printed.
    ///
    /// # Errors
    /// When it ends with 0, or by a signal, or a panic.
    pub fn cli_refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli_output(arguments)?;
        let text = printed(&output);
        if !matches!(output.status.code(), Some(1..=100)) {
            let (line, status) = (arguments.join(" "), output.status);
            bail!("host {}: `blixard {line}` ended with {status}:\n{text}", self.number);
        }
        Ok(text)
    }

    /// Runs the client with `-o json` and reads what it prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn cli_json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.cli(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`blixard {}` printed: {text}", arguments.join(" ")))
    }

    /// `cluster status`
    ///
    /// # Errors
    /// When the client fails.
    pub fn status(&self) -> Result<ClusterStatus> {
        self.cli_json(&["cluster", "status"])
    }

    /// `node ls`
    ///
    /// # Errors
    /// When the client fails.
    pub fn nodes(&self) -> Result<Vec<NodeView>> {
        self.cli_json(&["node", "ls"])
    }

    /// `service ls`
    ///
    /// # Errors
    /// When the client fails.
    pub fn services(&self) -> Result<Vec<ServiceRow>> {
        self.cli_json(&["service", "ls"])
    }

    /// `service inspect`
    ///
    /// # Errors
    /// When the client fails.
    pub fn service(&self, name: &str) -> Result<ServiceDetail> {
        self.cli_json(&["service", "inspect", name])
    }

    /// `ps`, of one service.
    ///
    /// # Errors
    /// When the client fails.
    pub fn replicas(&self, service: &str) -> Result<Vec<ReplicaRow>> {
        let rows: Vec<ReplicaRow> = self.cli_json(&["ps"])?;
        Ok(rows.into_iter().filter(|row| row.service.as_str() == service).collect())
    }

    /// `inspect` of a container.
    ///
    /// # Errors
    /// When the client fails.
    pub fn inspect(&self, target: &str) -> Result<ReplicaDetail> {
        let text = self.cli(&["inspect", target])?;
        serde_json::from_str(&text).with_context(|| format!("`blixard inspect {target}` printed: {text}"))
    }

    /// The pid of the process of a container.
    ///
    /// # Errors
    /// When the client fails or the container has none.
    pub fn pid_of(&self, target: &str) -> Result<u32> {
        let detail = self.inspect(target)?;
        detail
            .container
            .and_then(|container| container.pid)
            .with_context(|| format!("{target} has no process"))
    }

    /// `image import`
    ///
    /// # Errors
    /// When the client fails.
    pub fn import(&self, image: &Image) -> Result<()> {
        self.cli(&["image", "import", image.archive()]).map(drop)
    }

    /// `run`, waiting until it runs.
    ///
    /// # Errors
    /// When the client fails.
    pub fn run(&self, bundle: &Bundle) -> Result<String> {
        let file = bundle.write()?;
        self.cli(&["run", file.path()])
    }

    /// `run -d`
    ///
    /// # Errors
    /// When the client fails.
    pub fn submit(&self, bundle: &Bundle) -> Result<String> {
        let file = bundle.write()?;
        self.cli(&["run", "-d", file.path()])
    }

    /// `run` that must fail within about `seconds`; gives all it printed.
    ///
    /// # Errors
    /// When the client succeeds.
    pub fn run_refused(&self, bundle: &Bundle, seconds: u32) -> Result<String> {
        let file = bundle.write()?;
        self.cli_refused(&["run", "--timeout", &seconds.to_string(), file.path()])
    }

    /// The tasks that the host's containerd has, by its own client.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let socket = machine::run_directory(&self.data_dir()).join("containerd.sock");
        let socket = socket.to_str().context("the path is not UTF-8")?;
        let ctr = |arguments: &[&str]| {
            command::run("ctr", &[&["-a", socket, "--connect-timeout", "5s"], arguments].concat())
        };
        let mut tasks = Vec::new();
        for namespace in ctr(&["namespaces", "list", "-q"])?.lines() {
            let listed = ctr(&["-n", namespace, "tasks", "list"])?;
            // The first line is a title.
            for line in listed.lines().skip(1) {
                let mut words = line.split_whitespace();
                let (Some(container), Some(pid), Some(state)) = (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                tasks.push(Task {
                    container: container.to_owned(),
                    pid: pid.parse().unwrap_or(0),
                    running: state == "RUNNING",
                });
            }
        }
        Ok(tasks)
    }
}
