//! Debian's docker-registry on a port of 127.0.0.1, and pushing to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::StatusCode;
use tempfile::TempDir;

use super::image::{Layout, manifests_below};

/// User name and password of registries that want them.
pub const CREDENTIALS: (&str, &str) = ("alice", "secret");
/// The bcrypt hash of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "alice:$2b$05$W7wZ8JRvH5SiK/k6PY7XCOubG/l7Z2peEKXDtHt3qDBNBbD34MdXi\n";

/// A running docker-registry; stopped when dropped.
pub struct TestRegistry {
    child: Child,
    dir: TempDir,
    /// `127.0.0.1:PORT`.
    pub host: String,
    access: Access,
}

/// How a registry lets others in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Open,
    Locked,
    Tls,
}

impl TestRegistry {
    /// Starts a registry open to all.
    pub async fn start() -> Self {
        Self::start_as(Access::Open).await
    }

    /// Starts a registry that wants [`CREDENTIALS`].
    pub async fn start_locked() -> Self {
        Self::start_as(Access::Locked).await
    }

    /// Starts a registry that speaks HTTPS with a certificate by the authority of
    /// [`TestRegistry::ca_file`].
    pub async fn start_tls() -> Self {
        Self::start_as(Access::Tls).await
    }

    async fn start_as(access: Access) -> Self {
        let dir = tempfile::Builder::new().prefix("bx-reg").tempdir().expect("temporary directory");
        let host = format!("127.0.0.1:{}", super::free_port());
        let storage = dir.path().join("storage");
        let mut text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            storage.display()
        );
        if access == Access::Locked {
            let path = dir.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).expect("write htpasswd");
            text.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
        }
        if access == Access::Tls {
            make_certificates(dir.path());
            let at = |name: &str| dir.path().join(name).display().to_string();
            text.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                at("tls.pem"),
                at("tls.key")
            ));
        }
        let config = dir.path().join("config.yml");
        std::fs::write(&config, text).expect("write config");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts: install the package docker-registry");
        super::wait_until("the registry answers", async || {
            tokio::net::TcpStream::connect(&host).await.is_ok()
        })
        .await;
        Self { child, dir, host, access }
    }

    /// Pushes what an archive holds under its own repository name and tag. Returns the digest.
    pub async fn push(&self, archive: &[u8]) -> String {
        let scheme = if self.access == Access::Tls { "https" } else { "http" };
        let credentials = (self.access == Access::Locked).then_some(CREDENTIALS);
        push(&format!("{scheme}://{}", self.host), archive, credentials).await
    }

    /// The authority that signed the registry's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Where the registry keeps a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("sha256");
        self.dir.path().join(format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// Stops the registry for good.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes an authority `ca.pem`, and a certificate `tls.pem` of it for 127.0.0.1.
fn make_certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
        let done = done.expect("openssl starts: install the package openssl");
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
    openssl(&format!("req {key} -keyout tls.key -out tls.csr -subj /CN=test-registry"));
    std::fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n").expect("write extensions");
    openssl(
        "x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out tls.pem -days 2 -extfile extensions",
    );
}

/// Pushes what an OCI archive holds to a registry, by its URL, under its own repository name and
/// tag. Certificates are not checked. Returns the digest of its root.
pub async fn push(registry: &str, archive: &[u8], credentials: Option<(&str, &str)>) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http =
        reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build().expect("client");
    let request = |method: reqwest::Method, url: String| {
        let request = http.request(method, url);
        match credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    };
    let layout = Layout::read(archive);
    let base = format!("{registry}/v2/{}", layout.repository);
    let manifests: BTreeMap<String, String> = manifests_below(&layout).into_iter().collect();
    for (digest, content) in &layout.blobs {
        if manifests.contains_key(digest) {
            continue;
        }
        let begun = request(reqwest::Method::POST, format!("{base}/blobs/uploads/"))
            .send()
            .await
            .expect("upload begins");
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        let location = begun.headers()["location"].to_str().expect("text").to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = request(reqwest::Method::PUT, format!("{location}{separator}digest={digest}"));
        let put = put.body(content.clone()).send().await.expect("upload ends");
        assert_eq!(put.status(), StatusCode::CREATED);
    }
    // The root last: a registry takes an index only after its manifests.
    let below = manifests.iter().filter(|(digest, _)| **digest != layout.root);
    let named = below.map(|(digest, media_type)| (digest.clone(), digest, media_type));
    for (name, digest, media_type) in
        named.chain([(layout.tag.clone(), &layout.root, &manifests[&layout.root])])
    {
        let put = request(reqwest::Method::PUT, format!("{base}/manifests/{name}"))
            .header("content-type", media_type)
            .body(layout.blobs[digest].clone())
            .send()
            .await
            .expect("manifest is put");
        assert_eq!(put.status(), StatusCode::CREATED, "{}", put.text().await.unwrap_or_default());
    }
    layout.root
}
