//! Writes bundles.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::image::Image;

/// A bundle in the making. A bundle is YAML, of which JSON is a part.
#[derive(Debug, Clone)]
pub struct Bundle(Value);

/// A bundle on disk; gone when dropped.
#[derive(Debug)]
pub struct BundleFile(NamedTempFile);

impl BundleFile {
    /// Its path.
    pub fn path(&self) -> &str {
        self.0.path().to_str().expect("the path of temporary files is UTF-8")
    }
}

impl Bundle {
    /// One replica of `image`, called `name`, told to stop with a second's notice.
    pub fn new(name: &str, image: &Image) -> Self {
        Self::of(name, &image.reference)
    }

    /// The same, of an image by its reference.
    pub fn of(name: &str, reference: &str) -> Self {
        Self(json!({
            "version": "1.0", "name": name, "image": {"docker_image": reference},
            "replicas": {"min": 1, "max": 1}, "stop_timeout": 1,
        }))
    }

    /// Between `min` and `max` replicas.
    #[must_use]
    pub fn replicas(self, min: u32, max: u32) -> Self {
        self.set("replicas", json!({"min": min, "max": max}))
    }

    /// The container's TCP port `container` published as `host`.
    #[must_use]
    pub fn port(mut self, container: u16, host: u16) -> Self {
        let port = json!({"container_port": container, "host_port": host, "protocol": "tcp"});
        match self.0.get_mut("ports").and_then(Value::as_array_mut) {
            Some(ports) => ports.push(port),
            None => self.0["ports"] = json!([port]),
        }
        self
    }

    /// Runs `command` instead of the image's own.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.0["image"]["command"] = json!(command);
        self
    }

    /// Runs a line of shell.
    #[must_use]
    pub fn shell(self, line: &str) -> Self {
        self.command(&["sh", "-c", line])
    }

    /// An environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.0["environment"][name] = Value::from(value);
        self
    }

    /// Binds the host's `source` at `target`.
    #[must_use]
    pub fn volume(self, source: &str, target: &str) -> Self {
        self.set("volumes", json!([{"source": source, "target": target, "mode": "rw"}]))
    }

    /// Starts again whenever it ends.
    #[must_use]
    pub fn always(self) -> Self {
        self.set("restart_policy", json!({"name": "always"}))
    }

    /// Runs only where `constraint`, such as `node.name==host1`, holds.
    #[must_use]
    pub fn constraint(self, constraint: &str) -> Self {
        self.set("placement", json!({"constraints": [constraint]}))
    }

    /// Sets a key of the bundle.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.0[key] = value;
        self
    }

    /// Writes it to a temporary file.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn write(&self) -> Result<BundleFile> {
        let mut file = tempfile::Builder::new().prefix("bx").suffix(".bun").tempfile()?;
        file.write_all(serde_json::to_string_pretty(&self.0)?.as_bytes()).context("cannot write a bundle")?;
        Ok(BundleFile(file))
    }
}
