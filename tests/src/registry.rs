//! Debian's docker-registry on a test's LAN.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Response, get, request};
use crate::image::{Image, Layout};
use crate::lan::Lan;
use crate::{process, wait};

/// User name and password of a registry that wants them.
pub const CREDENTIALS: (&str, &str) = ("alice", "secret");
/// `CREDENTIALS` as HTTP's basic authentication writes them.
const BASIC: &str = "Authorization: Basic YWxpY2U6c2VjcmV0";
/// The bcrypt hash of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "alice:$2b$05$W7wZ8JRvH5SiK/k6PY7XCOubG/l7Z2peEKXDtHt3qDBNBbD34MdXi\n";
const PORT: u16 = 5000;

/// A running registry at 10.77.0.254:5000, plain HTTP; stopped when dropped.
#[derive(Debug)]
pub struct Registry {
    lan: Arc<Lan>,
    mark: String,
    locked: bool,
    _directory: TempDir,
}

impl Registry {
    /// Starts it; a `locked` one wants [`CREDENTIALS`].
    ///
    /// # Errors
    /// When Debian's docker-registry is not installed or does not answer.
    pub fn start(lan: &Arc<Lan>, locked: bool) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bxreg").tempdir()?;
        let config = directory.path().join("config.yml");
        std::fs::write(&config, configuration(directory.path(), locked)?)?;
        let mark = format!("{}-registry", lan.namespace());
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lan.namespace()))
            .args(["docker-registry", "serve"])
            .arg(&config)
            .env(process::MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nsenter")?;
        let registry = Self { lan: lan.clone(), mark, locked, _directory: directory };
        wait::until("the registry to answer", Duration::from_secs(20), || {
            let (status, _) = get(lan.namespace(), registry.address(), "/v2/")?;
            wait::ensure(status == if locked { 401 } else { 200 }, format!("it answers {status}"))
        })
        .context("is the Debian package docker-registry installed?")?;
        Ok(registry)
    }

    fn address(&self) -> SocketAddr {
        (Lan::gateway(), PORT).into()
    }

    /// `HOST:PORT` as references name it.
    pub fn host(&self) -> String {
        self.address().to_string()
    }

    /// The content of a registries file by which a node can pull from it, with credentials when
    /// `credentials`.
    pub fn registries_file(&self, credentials: bool) -> String {
        let mut entry = json!({"plain_http": true});
        if credentials {
            entry["username"] = Value::from(CREDENTIALS.0);
            entry["password"] = Value::from(CREDENTIALS.1);
        }
        json!({"registries": {self.host(): entry}}).to_string()
    }

    /// Pushes `image` as `name:tag`; gives its digest.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, image: &Image, name: &str, tag: &str) -> Result<String> {
        let layout = Layout::read(&image.path)?;
        for (digest, content) in layout.blobs.iter().filter(|(digest, _)| **digest != layout.root) {
            let begun = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[])?;
            ensure!(begun.status == 202, "an upload begins with {}: {}", begun.status, begun.body);
            let place = begun.header("location").context("an upload has no place")?;
            let place = place.strip_prefix(&format!("http://{}", self.host())).unwrap_or(place);
            let put = self.ask("PUT", &format!("{place}&digest={digest}"), &[], content)?;
            ensure!(put.status == 201, "an upload ends with {}: {}", put.status, put.body);
        }
        let kind = format!("Content-Type: {}", Layout::ROOT_TYPE);
        let put =
            self.ask("PUT", &format!("/v2/{name}/manifests/{tag}"), &[kind], &layout.blobs[&layout.root])?;
        ensure!(put.status == 201, "the manifest is answered with {}: {}", put.status, put.body);
        Ok(layout.root)
    }

    fn ask(&self, method: &str, path: &str, headers: &[String], body: &[u8]) -> Result<Response> {
        let mut headers = headers.to_vec();
        headers.extend(self.locked.then(|| BASIC.to_owned()));
        request(self.lan.namespace(), self.address(), method, path, &headers, body)
    }
}

fn configuration(directory: &Path, locked: bool) -> Result<String> {
    let storage = directory.join("storage");
    let mut text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {}:{PORT}\n",
        storage.display(),
        Lan::gateway(),
    );
    if locked {
        let path = directory.join("htpasswd");
        std::fs::write(&path, HTPASSWD)?;
        text.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
    }
    Ok(text)
}

impl Drop for Registry {
    fn drop(&mut self) {
        process::power_off(&self.mark);
    }
}
